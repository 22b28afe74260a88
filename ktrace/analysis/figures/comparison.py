"""Which figures a comparison of runs gets, and what stands above them."""

import re
from collections.abc import Mapping, Sequence

import pandas as pd

from ktrace.analysis.averaged_run import RunAverages
from ktrace.analysis.figures.draw import sigma_in_words
from ktrace.analysis.figures.drawing import Drawing
from ktrace.analysis.figures.look import Look
from ktrace.analysis.methods import Method, method_profiles
from ktrace.analysis.rows import rows
from ktrace.terms import mediator_title

# As `RUN_FIGURES` (ktrace/analysis/figures/draw.py).
COMPARISON_FIGURES = re.compile(r"(models|difference)-.*|methods")
_MARKS = (
    "open dot: the 95 % interval of the cell excludes 0; filled: so does that of all cells at once"
)


def draw_comparison(
    runs: Mapping[str, RunAverages],
    into: Drawing,
    aie: pd.DataFrame,
    differences: pd.DataFrame,
    methods: Sequence[Method],
    look: Look,
) -> Drawing:
    """Begin a comparison's figures, as PNG, PDF and SVG: two for each mediator.

    Args:
        runs: by their labels.
        into: where they go, and what draws them.
        aie: of all runs, with columns `run, mediator, metric, role, layer, aie, n_facts`.
        differences: to the first run, with columns `run, baseline, mediator, role, depth,
            difference, n_facts, beyond, beyond_all`.
        methods: of all runs.
        look: what they show, and in which colours.
    """
    for key in dict.fromkeys(key for run in runs.values() for key in run.keys):
        cells = aie[(aie["mediator"] == key) & (aie["metric"] == look.metric)]
        holders = {label: run for label, run in runs.items() if key in run.keys}
        _models(into, holders, key, cells, look)
        of_key = differences[differences["mediator"] == key]
        if len(of_key):
            _difference(into, holders, key, of_key, look)
    into.add(
        *("methods", "heatmaps.method_map", method_profiles(methods, look.metric)),
        title=f"Layers that methods name at the last subject token\n{_in_common(runs)}\n"
        "dot: the peak may lie there",
    )
    return into


def _models(
    into: Drawing, runs: Mapping[str, RunAverages], key: str, cells: pd.DataFrame, look: Look
) -> None:
    grids = {}
    for label, run in runs.items():
        own = cells[cells["run"] == label]
        grid = own.pivot(index="role", columns="layer", values="aie")
        roles = list(rows(run.averaging.scheme))
        grids[f"{label}\nn = {own['n_facts'].max()}"] = grid.reindex(roles)
    title = f"Average indirect effect: {mediator_title(key)}\n{_in_common(runs)}"
    by_depth = not _same_model(runs)
    into.add(
        *(f"models-{key}", "heatmaps.named_heatmaps", grids),
        key=key,
        title=title,
        look=look,
        by_depth=by_depth,
    )


def _difference(
    into: Drawing, runs: Mapping[str, RunAverages], key: str, differences: pd.DataFrame, look: Look
) -> None:
    panels = {
        f"{label}\nn = {one['n_facts'].max()} shared": one
        for label, one in differences.groupby("run", sort=False)
    }
    baseline = differences["baseline"].iloc[0]
    # Those that share no fact with the baseline have no panel.
    drawn = {label: runs[label] for label in (baseline, *differences["run"].unique())}
    title = f"{mediator_title(key)}: difference to {baseline}\n{_in_common(drawn)}\n{_MARKS}"
    into.add(
        *(f"difference-{key}", "heatmaps.difference_heatmap", panels),
        roles=list(rows(runs[baseline].averaging.scheme)),
        key=key,
        title=title,
        look=look,
        by_depth=not _same_model(drawn),
    )


def _same_model(runs: Mapping[str, RunAverages]) -> bool:
    """Whether layer l is the same layer in all of them."""
    prints = [run.survey.folders.clean.fingerprint() or {} for run in runs.values()]
    layers = {run.n_layers for run in runs.values()}
    return len(layers) == 1 and all(one.get("model") == prints[0].get("model") for one in prints)


def _in_common(runs: Mapping[str, RunAverages]) -> str:
    """What the runs share of what a title states."""
    names = [run.names for run in runs.values()]
    same = []
    for what in names[0]._fields:
        values = {getattr(one, what) for one in names}
        same += [f"{what} {values.pop()}"] if len(values) == 1 else []
    return ", ".join([*same, *sigma_in_words([run.survey.example.sigma for run in runs.values()])])
