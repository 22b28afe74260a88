"""What a person at the terminal sees when a run has ended: the closing tables, on stdout."""

import sys
from collections.abc import Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ktrace.pipeline.fitting import UNBOUNDED, Cells, Redacting, print_table, stdout
from ktrace.pipeline.jobs import DONE, Job, failures, numbered, own_overrides
from ktrace.redaction import redacted
from ktrace.terms import metric_title

if TYPE_CHECKING:
    from ktrace.analysis.compare import Comparison
    from ktrace.pipeline.upkeep import Upkeep

_REPORT = "report.html"


def print_summary(summary: Mapping[str, Any], files: Sequence[Path]) -> None:
    """The closing table of an analysed run, and where its files are."""
    console = stdout()
    console.say(
        f"{summary['model']} on {summary['dataset']}, {summary['noise']}: "
        f"{summary['n_candidates']} of {summary['n_facts']} facts are candidates, "
        f"p_clean {summary['p_clean']:.3f}, p_corrupted {summary['p_corrupted']:.3f}, "
        f"ATE {_with_interval(summary['ate'], summary['ate_ci'])}"
    )
    for reason, count in summary["left_out"].items():
        console.say(f"  left out: {count} × {reason} (candidates.csv)")
    _print_peaks(console, summary["peaks"])
    for key, by_role in summary["heads"].items():
        for role, heads in by_role.items():
            strongest = ", ".join(f"{h['layer']}.{h['head']} ({h['aie']:.3f})" for h in heads)
            console.say(f"{key}, strongest at {role} (layer.head): {strongest}")
    for name, by_role in summary["layers"]["windows"].items():
        console.say(_windows_in_words(name, by_role))
    console.say(summary["answer"])
    _print_files(console, files)


def _print_peaks(console: Redacting, by_mediator: Mapping[str, Mapping[str, Any]]) -> None:
    roles = list(dict.fromkeys(role for peaks in by_mediator.values() for role in peaks))
    rows = [
        (key, *(_peak(peaks.get(role)) for role in roles)) for key, peaks in by_mediator.items()
    ]
    if rows:
        columns, mediator = ("mediator", *roles), ("mediator",)
        cells = Cells(columns, rows, frozenset(mediator), mediator)
        print_table(console, "Peak AIE (layer)", cells)


def _windows_in_words(name: str, by_role: Mapping[str, Mapping[str, Any]]) -> str:
    """The smallest window of a mediator that suffices at each role."""
    said = []
    for role, found in by_role.items():
        where = f"window {found['window']} at layer {found['layer']}"
        said.append(f"{role} {'none' if found['window'] is None else where} ({found['ie_te']:.0%})")
    share = next(iter(by_role.values()))["share"]
    return f"{name}, smallest window with {share:.0%} of the total effect: {', '.join(said)}"


def print_compared(comparison: "Comparison") -> None:
    """The closing tables of a comparison: a row for each run, and for each method."""
    for note in comparison.notes:
        print(redacted(note), file=sys.stderr)
    runs = comparison.runs.to_dict("records")
    console = stdout()
    names = ("run", "candidates", "ATE", "shared facts", f"minus {runs[0]['run']}")
    rows = [
        (
            str(run["run"]),
            str(run["n_candidates"]),
            _with_interval(run["ate"], (run["ate_ci_low"], run["ate_ci_high"])),
            str(run["n_shared"]),
            _difference(run),
        )
        for run in runs
    ]
    cells = Cells(names, rows, frozenset({"run"}), ("run",))
    print_table(console, f"Total effect ({runs[0]['metric']})", cells)
    methods = _methods(comparison.methods.to_dict("records"))
    print_table(console, "Layers named at the last subject token", methods)
    _print_files(console, comparison.files)


def _methods(methods: Sequence[Mapping[Any, Any]]) -> Cells:
    """Which layers each method names, and how far it agrees with the others."""
    keys = ("run", "mediator", "metric")
    rows = [
        (
            *(str(row["run"]), str(row["mediator"]), metric_title(str(row["metric"]))),
            _with_interval(row["aie"], (row["ci_low"], row["ci_high"])),
            str(row["layer"]),
            str(row["layers"]),
            "" if isnan(row["agreement"]) else f"{row['agreement']:.2f}",
        )
        for row in methods
    ]
    names = (*keys, "AIE", "peak", "may peak in", "agreement")
    return Cells(names, rows, frozenset(keys), keys)


def _print_files(console: Redacting, files: Sequence[Path]) -> None:
    for folder in dict.fromkeys(path.parent for path in files):
        names = [path.name for path in files if path.parent == folder]
        told = f"{len(names)} files" if len(names) > 1 else names[0]
        if _REPORT in names and len(names) > 1:
            told = f"{_REPORT} and {len(names) - 1} more"
        console.say_path(f"wrote {told} to", folder)


def print_counts(counts: Mapping[str, int], folder: Path, candidates: Path | None) -> None:
    """The closing lines of a run that stopped before the analysis."""
    console = stdout()
    for name, count in counts.items():
        console.say(f"{name}: {count}")
    if candidates is not None:
        console.say_path("each fact, what was predicted, why left out:", candidates)
    console.say_path("stores in", folder.parent)


def print_upkeep(upkeep: "Upkeep") -> None:
    """How far a run is, or how its parts were merged."""
    first = upkeep.columns[:1]
    cells = Cells(upkeep.columns, upkeep.rows, frozenset({*first, *upkeep.texts}), first)
    print_table(stdout(), upkeep.title, cells)


def print_comparison(jobs: Sequence[Job]) -> None:
    """One row for each job of a sweep and mediator; each reason of failures stands below, once."""
    texts = ("job", "overrides", "model", "noise", "mediator")
    names = (*texts, "facts", "candidates", "ATE", "peak at last subject", "peak at last")
    told = dict(zip((job.job for job in jobs), own_overrides(jobs), strict=True))
    rows: list[tuple[str, ...]] = []
    for job in jobs:
        own = told[job.job]
        if job.status != DONE:
            rows.append((job.job, own, job.model, "", "failed"))
        elif job.summary is None:  # a stage before the analysis
            counts = (str((job.counts or {}).get(name, "")) for name in ("facts", "candidates"))
            rows.append((job.job, own, job.model, "", "", *counts))
        else:
            rows += [(job.job, own, *_cells(job.summary, key)) for key in job.mediators]
    whole = [(*row, *[""] * (len(names) - len(row))) for row in rows]
    console = stdout(UNBOUNDED)  # overrides may be long: who reads a file can scroll
    print_table(console, "Sweep", Cells(names, whole, frozenset(texts), ("job", "mediator")))
    for message, alike in failures(jobs).items():
        who = f"job {alike[0].job} ({told[alike[0].job]})" if len(alike) == 1 else numbered(alike)
        console.say(f"{who} failed: {message}")


def _cells(summary: Mapping[str, Any], key: str) -> tuple[str, ...]:
    peaks = summary["peaks"].get(key, {})
    return (
        summary["model"],
        summary["noise"],
        key,
        str(summary["n_facts"]),
        str(summary["n_candidates"]),
        _with_interval(summary["ate"], summary["ate_ci"]),
        _peak(peaks.get("last subject")),
        _peak(peaks.get("last")),
    )


def _with_interval(value: float, interval: Sequence[float | None]) -> str:
    low, high = interval
    if low is None or high is None or isnan(low):
        return f"{value:.3f}"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _difference(run: Mapping[Any, Any]) -> str:
    value = run.get("ate_difference", nan)
    if isnan(value):  # the baseline itself, or no fact in common
        return ""
    return _with_interval(value, (run["ate_difference_ci_low"], run["ate_difference_ci_high"]))


def _peak(peak: Mapping[str, Any] | None) -> str:
    return "" if peak is None else f"{peak['aie']:.3f} ({peak['layer']})"
