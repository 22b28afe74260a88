"""The comparison stage: several runs side by side, and each against the first on shared facts."""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import pandas as pd

from ktrace.analysis.averaged_run import RunAverages, average_run
from ktrace.analysis.csv_files import write_tables
from ktrace.analysis.figures.comparison import COMPARISON_FIGURES, draw_comparison
from ktrace.analysis.figures.drawing import Drawing
from ktrace.analysis.figures.files import remove_older
from ktrace.analysis.figures.look import Look
from ktrace.analysis.figures.processes import artists
from ktrace.analysis.methods import method_tables, methods_of
from ktrace.analysis.paired import (
    effect_differences,
    shared_effects,
    shared_facts,
    total_difference,
)
from ktrace.analysis.rows import Averaging
from ktrace.analysis.steps import Tell, untold
from ktrace.errors import KtraceError
from ktrace.store import RunFolders
from ktrace.terms import METRICS

_AIE_COLUMNS = [
    *("run", "model", "dataset", "noise", "mediator", "metric", "role", "layer", "depth"),
    *("aie", "ci_low", "ci_high", "n_facts", "n_clusters", "ie_te", "ie_te_low", "ie_te_high"),
]
_DIFFERENCE_COLUMNS = [
    *("run", "baseline", "mediator", "metric", "role", "depth"),
    *("difference", "ci_low", "ci_high", "band_low", "band_high", "n_facts", "n_clusters"),
    *("ci_over", "ci_note", "band_note", "beyond", "beyond_all"),
]

# What tells a run from the others in tables and titles, and the run.
Labelled = Mapping[str, RunAverages]


@dataclass(frozen=True)
class Comparison:
    """What the stage found.

    Attributes:
        runs: the content of `runs.csv`: a row for each run.
        aie: the content of `aie.csv`: that of every run, with the relative depth of each layer.
        differences: the content of `differences.csv`: each run minus its baseline.
        methods: the content of `methods.csv`: the layers that each mediator of each run names.
        files: what was written.
        notes: what was left out, and why.
    """

    runs: pd.DataFrame
    aie: pd.DataFrame
    differences: pd.DataFrame
    methods: pd.DataFrame
    files: list[Path]
    notes: list[str]


def compare(
    patterns: Sequence[str],
    folder: Path,
    *,
    averaging: Averaging = Averaging(),  # noqa: B008  # frozen
    metric: str = METRICS[0],
    limit: int | None = None,
    partial: bool = False,
    palette: str = "shared",
    tell: Tell = untold,
) -> Comparison:
    """Compare stored runs.

    Args:
        patterns: of run folders, `<output_dir>/<model>/<dataset>/<noise>`. Every run is compared
            with the first one, in the order of the patterns, and of the names each matches; for a
            mediator, with the first one that holds it. Folders that are no run (clean stores,
            sweeps) are passed over.
        folder: where tables and figures go.
        averaging: rows of the figures; facts weigh the same.
        metric: what is compared.
        limit: only the first `limit` facts of each dataset.
        partial: take what is there of unfinished runs.
        palette: of the heatmaps.
        tell: learns how far it is.

    Raises:
        KtraceError: fewer than two runs, or one that is not complete.
    """
    folders = _run_folders(patterns)
    with artists() as drawers:
        # Every run stays in memory: its facts at all positions, without the axis of noise samples.
        runs = _labelled(_averages(folders, folder, averaging, limit, partial, tell))
        run_table, aie = _run_table(runs, metric), _aie_table(runs)
        differences, unpaired = _differences(runs, metric)
        into, look = Drawing(folder, drawers, tell), Look(metric, palette)
        found = methods_of(runs)
        drawing = draw_comparison(runs, into, aie, differences, found, look)
        methods, agreement = method_tables(found)
        tables = {"runs": run_table, "aie": aie, "differences": differences}
        files = write_tables(folder, tables | {"methods": methods, "agreement": agreement})
        drawn = drawing.finished()
    remove_older(folder, COMPARISON_FIGURES, drawn.files)
    left_out = [
        f"{label}: {words}" for label, run in runs.items() for words in (*run.missing, *run.notes)
    ]
    notes = [*left_out, *unpaired, *drawn.notes]
    return Comparison(run_table, aie, differences, methods, [*files, *drawn.files], notes)


def _averages(
    runs: Sequence[Path],
    folder: Path,
    averaging: Averaging,
    limit: int | None,
    partial: bool,
    tell: Tell,
) -> list[RunAverages]:
    """Of each run."""
    found: list[RunAverages] = []
    for run in runs:
        tell("averaging runs", len(found), len(runs))
        folders = RunFolders(run, elsewhere=folder)
        found.append(average_run(folders, averaging, limit=limit, partial=partial))
    tell("averaging runs", len(found), len(runs))
    return found


def _run_folders(patterns: Sequence[str]) -> list[Path]:
    # Not Path.glob: a pattern may be absolute.
    matched = [Path(name) for pattern in patterns for name in _matches(pattern)]
    runs = [path for path in dict.fromkeys(matched) if RunFolders(path).mediator_keys()]
    if len(runs) < 2:
        raise KtraceError(f"runs={' '.join(patterns)!r} {_too_few(runs, len(matched))}")
    return runs


def _too_few(runs: Sequence[Path], n_matched: int) -> str:
    """Why these cannot be compared, and what to do."""
    if runs:
        return (
            f"matches one run with restorations, {runs[0]}, and at least 2 are compared: trace "
            "another (noise=zero, say), or name more folders"
        )
    if n_matched:
        return f"matches no run with restorations (other folders: {n_matched})"
    return "matches nothing: a run's folder is <output_dir>/<model>/<dataset>/<noise>"


def _matches(pattern: str) -> list[str]:
    """Names in order; brackets are those of a folder's name, where there is such a folder."""
    literal = pattern.replace("[", "[[]")
    return sorted(glob.glob(literal)) or sorted(glob.glob(pattern))  # noqa: PTH207


def _labelled(runs: Sequence[RunAverages]) -> Labelled:
    """Runs by the parts of their folders' paths in which they differ."""
    differing = [i for i in range(3) if len({run.names[i] for run in runs}) > 1] or [0]
    found = {" ".join(run.names[i] for i in differing): run for run in runs}
    if len(found) == len(runs):
        return found
    # Whole paths would leave figures no room.
    paths = [run.survey.folders.run.parts for run in runs]
    first = _n_shared(paths)
    last = _n_shared([path[first:][::-1] for path in paths])
    found = {
        "/".join(path[first : len(path) - last]): run for path, run in zip(paths, runs, strict=True)
    }
    if len(found) == len(runs) and all(found):
        return found
    return {str(run.survey.folders.run): run for run in runs}


def _n_shared(paths: Sequence[Sequence[str]]) -> int:
    """How many parts all of them begin with."""
    by_place = zip(*paths, strict=False)
    return len(list(takewhile(lambda names: len(set(names)) == 1, by_place)))


def _run_table(runs: Labelled, metric: str) -> pd.DataFrame:
    """The content of `runs.csv`."""
    baseline = next(iter(runs.values()))
    rows = [_run_row(label, run, baseline, metric) for label, run in runs.items()]
    table: pd.DataFrame = pd.DataFrame(rows)
    return table


def _run_row(label: str, run: RunAverages, baseline: RunAverages, metric: str) -> dict[str, object]:
    found = run.total_effect(metric)
    pairs = shared_facts(baseline, run)
    row: dict[str, object] = {
        "run": label,
        **run.names._asdict(),
        "metric": metric,
        "n_layers": run.n_layers,
        "n_facts": len(run.survey.clean),
        "n_candidates": len(run.survey.candidates),
        "n_traced": len(run.survey.traced),
        "clean": found["clean"],
        "corrupted": found["corrupted"],
        "ate": found["ate"],
        "ate_ci_low": found["ate_ci"][0],
        "ate_ci_high": found["ate_ci"][1],
        "ate_sample_sd": found["ate_sample_sd"],
        "n_shared": len(pairs),
    }
    if run is not baseline and pairs:
        apart = total_difference(baseline, run, pairs, metric)
        row["ate_difference"] = apart.mean
        row |= {"ate_difference_ci_low": apart.ci_low, "ate_difference_ci_high": apart.ci_high}
    return row


def _aie_table(runs: Labelled) -> pd.DataFrame:
    """The content of `aie.csv`."""
    aie = pd.concat(
        [run.aie.assign(run=label, **run.names._asdict()) for label, run in runs.items()],
        ignore_index=True,
    )
    depth = aie.groupby("run")["layer"].transform("max").clip(lower=1)
    aie["depth"] = aie["layer"] / depth
    table: pd.DataFrame = aie[_AIE_COLUMNS]
    return table


def _differences(runs: Labelled, metric: str) -> tuple[pd.DataFrame, list[str]]:
    """The content of `differences.csv`, and notes on what could not be compared."""
    frames: list[pd.DataFrame] = []
    notes: list[str] = []
    for key in dict.fromkeys(key for run in runs.values() for key in run.keys):
        holders = {label: run for label, run in runs.items() if key in run.keys}
        (baseline, first), *others = holders.items()
        for label, run in others:
            pairs = shared_effects(first, run, key)
            if not pairs:
                notes.append(f"{key}: {label} shares no traced fact with {baseline}")
                continue
            frame = effect_differences(first.of(key), run.of(key), pairs, metric, run.averaging)
            frames.append(frame.assign(run=label, baseline=baseline, mediator=key))
    if not frames:
        return pd.DataFrame(columns=_DIFFERENCE_COLUMNS), notes
    table: pd.DataFrame = pd.concat(frames, ignore_index=True)[_DIFFERENCE_COLUMNS]
    return table, notes
