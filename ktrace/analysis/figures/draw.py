"""Which figures a run gets, and what stands above them."""

import re
from collections.abc import Sequence
from pathlib import Path

from ktrace.analysis.averaged_run import RunAverages
from ktrace.analysis.estimate import peak_layers
from ktrace.analysis.figures.curves import peak_histogram, role_lines, severed_bars
from ktrace.analysis.figures.heatmaps import aie_heatmaps, fact_heatmap
from ktrace.analysis.figures.style import save
from ktrace.analysis.rows import rows
from ktrace.errors import KtraceError
from ktrace.terms import MEDIATOR_TITLES, METRICS, mediator_title, metric_title

_KEY = rf"({'|'.join(MEDIATOR_TITLES)})(-w\d+)?"
# Every figure's name without its suffix; older ones are removed (ktrace/analysis/analyze.py).
NAMES = re.compile(rf"aie|lines|severed|peaks|aie-{_KEY}|fact--?\d+-{_KEY}")
_PEAK_ROLES = ("last subject", "last")


def draw_figures(
    run: RunAverages, folder: Path, *, shown: Sequence[str], metric: str, facts: Sequence[int] = ()
) -> list[Path]:
    """Draw a run's figures as PNG and PDF.

    Args:
        run: the averages.
        folder: where they go.
        shown: mediators in the figures that show several.
        metric: what they show.
        facts: known_ids that get a heatmap of their own for each mediator shown.

    Returns:
        The files written.

    Raises:
        KtraceError: one of `facts` was not traced.
    """
    chosen = _fact_indices(run, facts)
    aie = run.aie[run.aie["metric"] == metric]
    roles = rows(run.averaging.scheme)
    title = f"{_about(run, 'average indirect effect')}\n{_noise(run)}"
    files = []
    for key in run.keys:
        one = aie_heatmaps(aie, keys=[key], roles=roles, title=title, metric=metric)
        files += save(one, folder / f"aie-{key}")
    together = aie_heatmaps(aie, keys=shown, roles=roles, title=title, metric=metric)
    files += save(together, folder / "aie")
    lines = role_lines(aie, keys=shown, roles=roles, title=title, metric=metric)
    files += save(lines, folder / "lines")
    files += _severed(run, folder, shown, metric, title)
    files += _peaks(run, folder, shown, metric)
    for index in chosen:
        files += _fact(run, folder, shown, metric, index)
    return files


def _about(run: RunAverages, what: str) -> str:
    names = run.names
    sizes = sorted({len(one.indices) for one in run.effects})
    n_facts = "–".join(str(size) for size in dict.fromkeys((sizes[0], sizes[-1])))
    unfinished = " (unfinished)" if run.missing else ""
    return f"{names['model']} on {names['dataset']}: {what}, n = {n_facts} facts{unfinished}"


def _noise(run: RunAverages) -> str:
    record = run.survey.corrupted[run.survey.traced[0]]
    n_samples = len(run.effects[0].by_sample)
    source = run.survey.sigma_measured_on
    measured = f" ({source['facts']} facts, {source['tokens']} tokens)" if source else ""
    return (
        f"noise {run.names['noise']}, σ = {record['sigma']:.3g}{measured}, "
        f"{n_samples} sample{'s' if n_samples > 1 else ''}"
    )


def _severed(
    run: RunAverages, folder: Path, shown: Sequence[str], metric: str, title: str
) -> list[Path]:
    keys = [key for key in shown if key.startswith("hidden")]
    aie = run.aie[(run.aie["metric"] == metric) & (run.aie["role"] == "last subject")]
    if len(set(keys) & set(aie["mediator"])) < 2:
        return []
    figure = severed_bars(aie, keys=keys, role="last subject", title=title, metric=metric)
    return save(figure, folder / "severed")


def _peaks(run: RunAverages, folder: Path, shown: Sequence[str], metric: str) -> list[Path]:
    chosen = [one for one in run.effects if one.key in shown]
    peaks = {
        one.key: {
            role: peak_layers(one, role, run.averaging.scheme, metric) for role in _PEAK_ROLES
        }
        for one in chosen
    }
    what = f"layer of each fact's strongest effect ({metric_title(metric)})"
    title = f"{_about(run, what)}\n{_noise(run)}"
    figure = peak_histogram(peaks, n_layers=chosen[0].n_layers, title=title)
    return save(figure, folder / "peaks")


def _fact_indices(run: RunAverages, facts: Sequence[int]) -> list[int]:
    by_id = {run.survey.clean[index]["known_id"]: index for index in run.survey.traced}
    unknown = [known_id for known_id in facts if known_id not in by_id]
    if unknown:
        raise KtraceError(
            f"analysis.facts: known_id={unknown[0]} is not among the {len(by_id)} traced facts of "
            f"{run.survey.folders.run}"
        )
    return [by_id[known_id] for known_id in facts]


def _fact(
    run: RunAverages, folder: Path, shown: Sequence[str], metric: str, index: int
) -> list[Path]:
    fact, scores = run.survey.clean[index], run.survey.corrupted[index]
    files = []
    for one in run.effects:
        if one.key not in shown or index not in one.grids:
            continue
        title = (
            f"{run.names['model']}: {mediator_title(one.key)}, fact {fact['known_id']} "
            f"({fact['attribute'].strip()})\np clean {scores['clean_probability'].mean():.3f}, "
            f"corrupted {scores['probability'].mean():.3f}\n{_noise(run)}"
        )
        figure = fact_heatmap(
            one.grids[index].mean[METRICS.index(metric)],
            tokens=fact["tokens"],
            subject=(int(fact["span"][0]), int(fact["span"][1])),
            title=title,
            label=f"IE ({metric_title(metric)})",
        )
        files += save(figure, folder / f"fact-{fact['known_id']}-{one.key}")
    return files
