"""`report.html`: everything that the report shows, put into one file.

Text from data reaches the page escaped, or as JSON that the scripts show as text.
"""

import base64
import html
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Template

import yaml

from ktrace.analysis.layers import RoleLayers
from ktrace.analysis.report.assets import as_json, asset, cell_elements, shared_parts
from ktrace.analysis.report.cells import pack_cells, shown_in_full
from ktrace.analysis.report.collected import CollectedCells
from ktrace.analysis.report.data import page_data, reported_run
from ktrace.analysis.stored import Survey
from ktrace.analysis.summary import Summary
from ktrace.analysis.tokens import shortened
from ktrace.files import read_regular, write_text
from ktrace.terms import mediator_title

# A page of 25 MB still opens in a few seconds and passes most mail servers and issue trackers.
_MOST_BYTES = 25_000_000
_MOST_SETTINGS = 2**20  # bytes of run.yaml
# Room for cells that figures and texts may not take.
_LEAST_CELL_BYTES = 8_000_000

# Pixels from which a figure takes a page's width: one of a column has 1,020.
_WIDE = 1500


def write_report(
    found: Survey,
    keys: Sequence[str],
    cells: CollectedCells,
    *,
    summary: Summary,
    figures: Callable[[], Sequence[Path]],
    palette: str = "shared",
) -> Path:
    """Write `analysis/report.html`.

    Args:
        found: the run.
        keys: mediators, in the order in which they are offered.
        cells: of these, by the fact's index; at least one.
        summary: the content of `summary.json`.
        figures: gives PNG files, in the order in which they are shown; it may wait for them.
        palette: of the heatmaps.

    Returns:
        The file, at most 25 MB unless figures and texts leave less than 8 MB: rather than growing,
        the page gives its numbers with fewer decimals, and says so.

    Raises:
        KtraceError: the file cannot be written.
    """
    run, metric = reported_run(found, keys, cells), summary["metric"]
    n_traced = len(run.facts)
    in_full = shown_in_full(n_traced)
    longest = as_json(page_data(run, metric, palette, in_full))
    parts = _parts(summary, figures(), found.folders.run_yaml)
    template = asset("template.html")
    room = _MOST_BYTES - sum(len(part.encode()) for part in (template, *parts.values()))
    budget = max(room - len(longest), _LEAST_CELL_BYTES)
    packed = pack_cells(run.cells, run.corrupted, metric, budget)
    shown = packed.shown(n_traced)
    data = longest if shown == in_full else as_json(page_data(run, metric, palette, shown))
    text = Template(template).substitute(parts, data=data, cells=cell_elements(packed))
    path = found.folders.analysis / "report.html"
    write_text(path, text)
    return path


def _parts(summary: Summary, figures: Sequence[Path], run_yaml: Path) -> dict[str, str]:
    """What fills the template, beside the facts."""
    model, dataset = html.escape(summary["model"]), html.escape(summary["dataset"])
    return {
        **shared_parts(),
        "title": f"{model} on {dataset}: causal tracing",
        "heading": f"{model} <span>on {dataset}</span>",
        "lead": html.escape(_lead(summary)),
        "state": _state(summary),
        "answer": _answer(summary),
        "cards": "\n".join(_cards(summary)),
        "left_out": _left_out(summary["left_out"]),
        "peaks": _peaks(summary["layers"]["mediators"]),
        "figures": "\n".join(map(_figure, figures)),
        "settings": "\n".join(_settings(run_yaml, summary)),
    }


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}".replace("-", "−")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _lead(summary: Summary) -> str:
    scores, n_samples = summary["metrics"][summary["metric"]], summary["n_samples"]
    samples = "1 noise sample" if n_samples == 1 else f"{n_samples} noise samples"
    return (
        f"Of {summary['n_facts']:,} facts, the model answers {summary['n_candidates']:,}; "
        f"{summary['n_traced']:,} were traced with {samples} each. Corrupting the subject "
        f"({summary['noise']}) moves the answer's {_words(summary['metric'])} from "
        f"{_number(scores['clean'])} to {_number(scores['corrupted'])}."
    )


def _cards(summary: Summary) -> Iterator[str]:
    metric = summary["metric"]
    scores = summary["metrics"][metric]
    low, high = scores["ate_ci"]
    samples = f"mean over facts and {summary['n_samples']} samples"
    cards = (
        ("Facts traced", f"{summary['n_traced']:,}", f"of {summary['n_facts']:,}"),
        ("Clean run", _number(scores["clean"]), f"mean {_words(metric)}"),
        ("Corrupted run", _number(scores["corrupted"]), samples),
        (
            "Average total effect",
            _number(scores["ate"]),
            f"95% interval {_number(low)} to {_number(high)}",
        ),
    )
    for title, value, note in cards:
        yield (
            f"<div><dt>{html.escape(title)}</dt>"
            f"<dd>{html.escape(value)} <small>{html.escape(note)}</small></dd></div>"
        )


def _state(summary: Summary) -> str:
    """Whether the run is done, and what it lacks otherwise."""
    missing = summary["missing"]
    if not missing:
        return '<p class="done"><strong>Done</strong>: nothing of this run is missing.</p>'
    listed = "".join(f"<li>{html.escape(words)}</li>" for words in missing)
    return (
        '<div class="unfinished" role="note"><p><strong>This run is unfinished.</strong> '
        f"The numbers below are of what is there. Missing:</p><ul>{listed}</ul></div>"
    )


def _answer(summary: Summary) -> str:
    return f'<p class="answer">{html.escape(summary["answer"])}</p>'


def _left_out(reasons: Mapping[str, int]) -> str:
    if not reasons:
        return ""
    listed = "; ".join(f"{count:,} because {reason}" for reason, count in reasons.items())
    return f"<p>Left out: {html.escape(listed)}.</p>"


def _peaks(found: Mapping[str, Mapping[str, RoleLayers]]) -> str:
    roles = list(dict.fromkeys(role for by_role in found.values() for role in by_role))
    head = "".join(f'<th scope="col">{html.escape(role)}</th>' for role in roles)
    lines = [f'<thead><tr><th scope="col" class="text">mediator</th>{head}</tr></thead>', "<tbody>"]
    for key, by_role in found.items():
        cells = "".join(_peak(by_role.get(role)) for role in roles)
        lines.append(f'<tr><th scope="row">{html.escape(mediator_title(key))}</th>{cells}</tr>')
    return "\n".join([*lines, "</tbody>"])


def _peak(found: RoleLayers | None) -> str:
    if found is None:
        return "<td>–</td>"
    low, high = found["ci"]
    sure = "" if low is None else f"{_number(low)} to {_number(high)}<br>"
    others = found["may_peak_in"]
    doubt = "" if others in ("", str(found["peak"])) else f", or {html.escape(shortened(others))}"
    small = f"{sure}layer {found['peak']}{doubt}"
    return f"<td>{_number(found['aie'])} <small>{small}</small></td>"


def _figure(path: Path) -> str:
    caption, content = html.escape(_caption(path.stem)), path.read_bytes()
    source = base64.b64encode(content).decode("ascii")
    image = f'<img alt="{caption}" src="data:image/png;base64,{source}" decoding="async">'
    text = f"<figcaption>{caption} ({html.escape(path.name)})</figcaption>"
    if int.from_bytes(content[16:20], "big") < _WIDE:  # where a PNG has its width
        return f"<figure>{image}{text}</figure>"
    # On a narrow screen it scrolls, which takes a focus for those who use the keyboard.
    scrolls = f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}">{image}</div>'
    return f'<figure class="wide">{scrolls}{text}</figure>'


_CAPTIONS = {
    "aie": "Average indirect effect by role and layer",
    "lines": "Average indirect effect with its 95 % interval",
    "severed": "Average indirect effect at the last subject token, whole and severed",
    "peaks": "Facts by the layer at which their effect is strongest",
    "relations": "Average indirect effect by relation",
}


def _caption(stem: str) -> str:
    kind, _, rest = stem.partition("-")
    if kind == "aie" and rest:
        return f"Average indirect effect: {mediator_title(rest)}"
    return _CAPTIONS.get(stem, _words(stem))


def _settings(run_yaml: Path, summary: Summary) -> Iterator[str]:
    """What `run.yaml` says of the run, a block for each of its sections, then `summary.json`."""
    content = _mapping(run_yaml)
    if "status" in content:  # it was written when the run began
        content["status"] = "unfinished" if summary["missing"] else "done"
    sections = {name: values for name, values in content.items() if isinstance(values, dict)}
    about = {name: value for name, value in content.items() if name not in sections}
    blocks = [("this run", about), *sections.items()] if about else [*sections.items()]
    for number, (section, values) in enumerate(blocks):
        rows = "\n".join(
            f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
            for name, value in _flat(values)
        )
        yield (
            f"<details{' open' if number == 0 else ''}><summary>{html.escape(str(section))}"
            f"</summary><dl>{rows}</dl></details>"
        )
    if not content:
        yield "<p>There is no run.yaml with settings beside these stores.</p>"
    text = json.dumps(summary, indent=2, ensure_ascii=False)
    scrolls = '<pre tabindex="0" role="region" aria-label="summary.json">'
    yield f"<details><summary>summary.json</summary>{scrolls}{html.escape(text)}</pre></details>"


class _Plain(yaml.SafeLoader):
    """Without aliases, which lead a small file to itself, or to a huge one. ktrace writes none."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)


def _mapping(path: Path) -> dict[object, object]:
    """What a YAML file holds; nothing where it holds no mapping, such as after a full disk."""
    try:
        content = _Plain(read_regular(path, _MOST_SETTINGS)).get_single_data()
        json.dumps(content, default=str, ensure_ascii=False).encode()
    # It may be a stranger's: what YAML makes of dates, numbers and depths that are none.
    except (OSError, RecursionError, TypeError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _flat(values: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values of a nested mapping."""
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from _flat(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(values, list):
        yield prefix, ", ".join(map(str, values))
    elif values is None or isinstance(values, bool):
        yield prefix, "null" if values is None else str(values).lower()  # as YAML has it
    else:
        yield prefix, str(values)
