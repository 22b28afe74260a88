"""The comparison stage: several runs side by side, and each against the first on shared facts."""

import glob
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ktrace.analysis.averaged_run import RunAverages, average_run
from ktrace.analysis.estimate import total_effect
from ktrace.analysis.figures.heatmaps import depth_panels, difference_heatmap
from ktrace.analysis.figures.style import save
from ktrace.analysis.intervals import interval, ratio
from ktrace.analysis.per_fact import MediatorEffects, total_effects
from ktrace.analysis.rows import Averaging, rows
from ktrace.errors import KtraceError
from ktrace.files import write_text
from ktrace.store import RunFolders
from ktrace.terms import METRICS, mediator_title, metric_title

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """What the stage found.

    Attributes:
        runs: the content of `runs.csv`: a row for each run.
        aie: the content of `aie.csv`: that of every run, with the relative depth of each layer.
        differences: the content of `differences.csv`: each run minus its baseline.
        files: what was written.
        notes: what was left out, and why.
    """

    runs: pd.DataFrame
    aie: pd.DataFrame
    differences: pd.DataFrame
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

    Raises:
        KtraceError: fewer than two runs, or one that is not complete.
    """
    folders = _run_folders(patterns)
    # Every run stays in memory: its facts at all positions, without the axis of noise samples.
    runs = [average_run(run, averaging, limit=limit, partial=partial) for run in folders]
    labels = _labels(runs)
    notes = [
        f"{label}: {words}"
        for label, run in zip(labels, runs, strict=True)
        for words in (*run.missing, *run.notes)
    ]
    differences = []
    for key in _all_keys(runs):
        holders = [(label, run) for label, run in zip(labels, runs, strict=True) if key in run.keys]
        (baseline, first), others = holders[0], holders[1:]
        for label, run in others:
            mine, theirs = _effects(first, key), _effects(run, key)
            # An unfinished mediator lacks facts that its run has traced.
            held = set(mine.indices), set(theirs.indices)
            shared = _shared_facts(first, run)
            pairs = [(a, b) for a, b in shared if a in held[0] and b in held[1]]
            if not pairs:
                notes.append(f"{key}: {label} shares no traced fact with {baseline}")
                continue
            one = _differences(mine, theirs, pairs, metric, averaging)
            differences.append(one.assign(run=label, baseline=baseline, mediator=key))
    columns = ["run", "baseline", "mediator", "metric", "role", "depth"]
    columns += ["difference", "ci_low", "ci_high", "n_facts"]
    table = (
        pd.concat(differences, ignore_index=True)[columns]
        if differences
        else pd.DataFrame(columns=columns)
    )
    summary = pd.DataFrame(
        [_row(label, run, runs[0], metric) for label, run in zip(labels, runs, strict=True)]
    )
    aie = pd.concat(
        [run.aie.assign(run=label, **run.names) for label, run in zip(labels, runs, strict=True)],
        ignore_index=True,
    )
    depth = aie.groupby("run")["layer"].transform("max").clip(lower=1)
    aie["depth"] = aie["layer"] / depth
    order = ["run", "model", "dataset", "noise", "mediator", "metric", "role", "layer", "depth"]
    aie = aie[[*order, "aie", "ci_low", "ci_high", "n_facts"]]
    files = []
    for stem, frame in (("runs", summary), ("aie", aie), ("differences", table)):
        buffer = io.StringIO()
        frame.to_csv(buffer, index=False)
        write_text(folder / f"{stem}.csv", buffer.getvalue())
        files.append(folder / f"{stem}.csv")
    figures = _draw(folder, labels, runs, aie, table, metric, averaging)
    for kind in ("png", "pdf"):
        for stem in ("models", "difference"):
            for path in folder.glob(f"{stem}-*.{kind}"):
                if path not in figures:
                    path.unlink(missing_ok=True)
    return Comparison(summary, aie, table, [*files, *figures], notes)


def _run_folders(patterns: Sequence[str]) -> list[Path]:
    # Not Path.glob: a pattern may be absolute.
    matched = [Path(n) for pattern in patterns for n in sorted(glob.glob(pattern))]  # noqa: PTH207
    runs = [path for path in dict.fromkeys(matched) if RunFolders(path).mediator_keys()]
    if len(runs) < 2:
        raise KtraceError(
            f"runs={' '.join(patterns)!r} matches {len(runs)} run folders with restorations of "
            f"{len(matched)} folders: at least 2 are compared, such as runs='outputs/*/*/*'"
        )
    return runs


def _labels(runs: Sequence[RunAverages]) -> list[str]:
    """What tells runs apart: the parts of the folder's path in which they differ."""
    parts = [tuple(run.names.values()) for run in runs]
    differing = [i for i in range(3) if len({part[i] for part in parts}) > 1] or [0]
    labels = [" ".join(part[i] for i in differing) for part in parts]
    if len(set(labels)) == len(labels):
        return labels
    return [str(run.survey.folders.run) for run in runs]


def _all_keys(runs: Sequence[RunAverages]) -> list[str]:
    return list(dict.fromkeys(key for run in runs for key in run.keys))


def _effects(run: RunAverages, key: str) -> MediatorEffects:
    return run.effects[run.keys.index(key)]


def _shared_facts(first: RunAverages, other: RunAverages) -> list[tuple[int, int]]:
    """Traced facts of both runs, as pairs of their indices: the same words, whatever the file."""

    def by_text(run: RunAverages) -> dict[tuple[str, ...], int]:
        names = ("prompt", "subject", "attribute")
        return {
            tuple(run.survey.clean[index][name] for name in names): index
            for index in run.survey.traced
        }

    mine, theirs = by_text(first), by_text(other)
    return [(mine[text], theirs[text]) for text in mine if text in theirs]


def depth_grid(first: int, second: int) -> Array:
    """Relative depths at which models are compared: the layers of the shallower one.

    Args:
        first: its number of layers.
        second: likewise.

    Returns:
        From 0, the first layer, to 1, the last one, `(min(first, second),)`.
    """
    return np.linspace(0, 1, min(first, second)) if min(first, second) > 1 else np.zeros(1)


def _curves(effects: MediatorEffects, row: int, metric: str, depths: Array) -> Array:
    """Effects of each fact in one row at relative depths, `(n_facts, n_depths)`."""
    totals = effects.totals[:, METRICS.index(metric), row]
    curves: Array = totals / np.maximum(effects.counts[:, row, None], 1)
    n_layers = curves.shape[1]
    if n_layers == len(depths):
        return curves
    place = depths * (n_layers - 1)
    below = np.minimum(np.floor(place).astype(np.intp), n_layers - 1)
    above = np.minimum(below + 1, n_layers - 1)
    found: Array = curves[:, below] + (curves[:, above] - curves[:, below]) * (place - below)
    return found


def _differences(
    first: MediatorEffects,
    other: MediatorEffects,
    pairs: Sequence[tuple[int, int]],
    metric: str,
    averaging: Averaging,
) -> pd.DataFrame:
    """Paired by fact: `role, metric, depth, difference, ci_low, ci_high, n_facts`.

    `pairs` are facts that both hold, at least one.
    """
    mine = {index: row for row, index in enumerate(first.indices)}
    theirs = {index: row for row, index in enumerate(other.indices)}
    left, right = np.array([(mine[a], theirs[b]) for a, b in pairs], dtype=np.intp).T
    depths = depth_grid(first.n_layers, other.n_layers)
    frames = []
    for row, role in enumerate(rows(averaging.scheme)):
        have = (first.counts[left, row] > 0) & (other.counts[right, row] > 0)
        if not have.any():
            continue
        apart = (
            _curves(other, row, metric, depths)[right[have]]
            - _curves(first, row, metric, depths)[left[have]]
        )
        weights = np.ones(len(apart))
        low, high = interval(apart, weights)
        frame = pd.DataFrame({"depth": depths, "difference": ratio(apart, weights)})
        frames.append(frame.assign(role=role, ci_low=low, ci_high=high, n_facts=len(apart)))
    found: pd.DataFrame = pd.concat(frames, ignore_index=True).assign(metric=metric)
    return found


def _row(label: str, run: RunAverages, first: RunAverages, metric: str) -> dict[str, Any]:
    number = METRICS.index(metric)
    clean, corrupted = (scores[:, number] for scores in total_effects(run.survey))
    found = total_effect(clean, corrupted)
    row: dict[str, Any] = {
        "run": label,
        **run.names,
        "metric": metric,
        "n_layers": run.effects[0].n_layers,
        "n_facts": len(run.survey.clean),
        "n_candidates": len(run.survey.candidates),
        "n_traced": len(run.survey.traced),
        "clean": float(clean.mean()),
        "corrupted": float(corrupted.mean()),
        "ate": found["ate"],
        "ate_ci_low": found["ate_ci"][0],
        "ate_ci_high": found["ate_ci"][1],
        "ate_sample_sd": found["ate_sample_sd"],
    }
    pairs = _shared_facts(first, run)
    row["n_shared"] = len(pairs)
    if run is not first and pairs:
        mine, theirs = np.array(pairs).T
        apart = _total(run, theirs, number) - _total(first, mine, number)
        low, high = interval(apart[:, None], np.ones(len(apart)))
        row |= {"ate_difference": apart.mean()}
        row |= {"ate_difference_ci_low": low[0], "ate_difference_ci_high": high[0]}
    return row


def _total(run: RunAverages, indices: npt.NDArray[Any], number: int) -> Array:
    clean, corrupted = total_effects(run.survey)
    where = {index: row for row, index in enumerate(run.survey.traced)}
    chosen = [where[int(index)] for index in indices]
    found: Array = (clean[:, number] - corrupted[:, number]).mean(axis=1)[chosen]
    return found


def _draw(
    folder: Path,
    labels: Sequence[str],
    runs: Sequence[RunAverages],
    aie: pd.DataFrame,
    differences: pd.DataFrame,
    metric: str,
    averaging: Averaging,
) -> list[Path]:
    names = list(rows(averaging.scheme))
    files: list[Path] = []
    for key in _all_keys(runs):
        cells = aie[(aie["mediator"] == key) & (aie["metric"] == metric)]
        grids = {
            f"{label}\nn = {cells.loc[cells['run'] == label, 'n_facts'].max()}": cells[
                cells["run"] == label
            ]
            .pivot(index="role", columns="layer", values="aie")
            .reindex(names)
            for label, run in zip(labels, runs, strict=True)
            if key in run.keys
        }
        title = f"Average indirect effect: {mediator_title(key)}\n{_about(runs)}"
        figure = depth_panels(grids, title=title, label=f"AIE ({metric_title(metric)})")
        files += save(figure, folder / f"models-{key}")
        of_key = differences[differences["mediator"] == key]
        panels = {
            f"{label}\nn = {one['n_facts'].max()} shared": one
            for label, one in of_key.groupby("run", sort=False)
        }
        if panels:
            baseline = of_key["baseline"].iloc[0]
            title = f"{mediator_title(key)}: difference to {baseline}\n{_about(runs)}"
            title += "\ndots: the 95 % interval excludes 0"
            figure = difference_heatmap(panels, roles=names, title=title, metric=metric)
            files += save(figure, folder / f"difference-{key}")
    return files


def _about(runs: Sequence[RunAverages]) -> str:
    """What the runs have in common, of what a title states."""
    same = []
    for name in ("model", "dataset", "noise"):
        values = {run.names[name] for run in runs}
        same += [f"{name} {values.pop()}"] if len(values) == 1 else []
    sigmas = [run.survey.corrupted[run.survey.traced[0]]["sigma"] for run in runs]
    sigma = "–".join(dict.fromkeys((f"{min(sigmas):.3g}", f"{max(sigmas):.3g}")))
    return ", ".join([*same, f"σ = {sigma}"])
