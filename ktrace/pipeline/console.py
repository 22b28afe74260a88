"""What a person at the terminal sees: progress bars, and the closing tables.

Progress goes to stderr, and only to a terminal; results go to stdout.
"""

import sys
from collections.abc import Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ktrace.pipeline.jobs import DONE, Job, failures, numbered, own_overrides
from ktrace.redaction import redacted
from ktrace.terms import metric_title

# A pipe or a log file has no width of its own.
_PIPE_WIDTH = 110
_UNBOUNDED = 10_000
if TYPE_CHECKING:
    from ktrace.analysis.compare import Comparison
    from ktrace.pipeline.upkeep import Upkeep


class _Redacting(Console):
    """Lines without secrets; cells of tables are names, or redacted where they are made."""

    def print(self, *objects: Any, **options: Any) -> None:
        """See `Console.print`."""
        told = (redacted(text) if isinstance(text, str) else text for text in objects)
        super().print(*told, **options)


def _stdout(pipe_width: int = _PIPE_WIDTH) -> Console:
    width = None if Console().is_terminal else pipe_width
    # Paths, names and overrides are shown as they are: no [tags], no :emoji:.
    return _Redacting(width=width, markup=False, emoji=False, highlight=False)


def print_summary(summary: Mapping[str, Any], files: Sequence[Path]) -> None:
    """The closing table of an analysed run, and where its files are."""
    console = _stdout()
    console.print(
        f"{summary['model']} on {summary['dataset']}, {summary['noise']}: "
        f"{summary['n_candidates']} of {summary['n_facts']} facts are candidates, "
        f"p_clean {summary['p_clean']:.3f}, p_corrupted {summary['p_corrupted']:.3f}, "
        f"ATE {_with_interval(summary['ate'], summary['ate_ci'])}",
        soft_wrap=True,
    )
    for reason, count in summary["left_out"].items():
        console.print(f"  left out: {count} × {reason} (candidates.csv)", soft_wrap=True)
    table = Table(title="Peak AIE (layer)", title_justify="left")
    table.add_column("mediator", no_wrap=True)
    roles = dict.fromkeys(role for peaks in summary["peaks"].values() for role in peaks)
    for role in roles:
        table.add_column(role, justify="right")
    for key, peaks in summary["peaks"].items():
        table.add_row(key, *(_peak(peaks.get(role)) for role in roles))
    if summary["peaks"]:
        console.print(table)
    for key, by_role in summary["heads"].items():
        for role, heads in by_role.items():
            strongest = ", ".join(f"{h['layer']}.{h['head']} ({h['aie']:.3f})" for h in heads)
            console.print(f"{key}, strongest at {role} (layer.head): {strongest}", soft_wrap=True)
    for name, by_role in summary["layers"]["windows"].items():
        console.print(_windows_in_words(name, by_role), soft_wrap=True)
    console.print(summary["answer"], soft_wrap=True)
    _print_files(console, files)


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
    console = _stdout()
    table = Table(title=f"Total effect ({runs[0]['metric']})", title_justify="left")
    table.add_column("run", no_wrap=True)
    for name in ("candidates", "ATE", "shared facts", f"minus {runs[0]['run']}"):
        table.add_column(name, justify="right")
    for run in runs:
        table.add_row(
            str(run["run"]),
            str(run["n_candidates"]),
            _with_interval(run["ate"], (run["ate_ci_low"], run["ate_ci_high"])),
            str(run["n_shared"]),
            _difference(run),
        )
    console.print(table)
    console.print(_methods(comparison.methods.to_dict("records")))
    _print_files(console, comparison.files)


def _methods(methods: Sequence[Mapping[Any, Any]]) -> Table:
    """Which layers each method names, and how far it agrees with the others."""
    table = Table(title="Layers named at the last subject token", title_justify="left")
    for name in ("run", "mediator", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("AIE", "peak", "may peak in", "agreement"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in methods:
        table.add_row(
            *(str(row["run"]), str(row["mediator"]), metric_title(str(row["metric"]))),
            _with_interval(row["aie"], (row["ci_low"], row["ci_high"])),
            str(row["layer"]),
            str(row["layers"]),
            "" if isnan(row["agreement"]) else f"{row['agreement']:.2f}",
        )
    return table


def _print_files(console: Console, files: Sequence[Path]) -> None:
    for folder in dict.fromkeys(path.parent for path in files):
        names = ", ".join(path.name for path in files if path.parent == folder)
        console.print(f"wrote {folder}/: {names}", soft_wrap=True)


def print_counts(counts: Mapping[str, int], folder: Path, candidates: Path | None) -> None:
    """The closing lines of a run that stopped before the analysis."""
    console = _stdout()
    for name, count in counts.items():
        console.print(f"{name}: {count}", soft_wrap=True)
    if candidates is not None:
        console.print(f"each fact, what was predicted, why left out: {candidates}", soft_wrap=True)
    console.print(f"stores in {folder.parent}", soft_wrap=True)


def print_upkeep(upkeep: "Upkeep") -> None:
    """How far a run is, or how its parts were merged."""
    table = Table(title=redacted(upkeep.title), title_justify="left")
    for name in upkeep.columns:
        of_text = name in ("store", "by")
        table.add_column(name, justify="left" if of_text else "right", overflow="fold")
    for row in upkeep.rows:
        table.add_row(*row)
    _stdout().print(table)


def print_comparison(jobs: Sequence[Job]) -> None:
    """One row for each job of a sweep and mediator; each reason of failures stands below, once."""
    table = Table(title="Sweep", title_justify="left")
    for name in ("job", "overrides", "model", "noise", "mediator"):
        table.add_column(name, overflow="fold")
    for name in ("facts", "candidates", "ATE", "peak at last subject", "peak at last"):
        table.add_column(name, justify="right")
    told = dict(zip((job.job for job in jobs), own_overrides(jobs), strict=True))
    for job in jobs:
        own = told[job.job]
        if job.status != DONE:
            table.add_row(job.job, own, job.model, "", "failed")
        elif job.summary is None:  # a stage before the analysis
            counts = (str((job.counts or {}).get(name, "")) for name in ("facts", "candidates"))
            table.add_row(job.job, own, job.model, "", "", *counts)
        else:
            for key in job.mediators:
                table.add_row(job.job, own, *_cells(job.summary, key))
    console = _stdout(_UNBOUNDED)  # overrides may be long: who reads a file can scroll
    console.print(table)
    for message, alike in failures(jobs).items():
        who = f"job {alike[0].job} ({told[alike[0].job]})" if len(alike) == 1 else numbered(alike)
        console.print(f"{who} failed: {message}", soft_wrap=True)


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
