"""Which layers each method names, over runs, and how far the methods agree.

A method is a mediator in a run, in one metric: another corruption, direction or metric is another
method. Each names the layer where its AIE is strongest, and those where the peak may lie.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from ktrace.analysis.averaged_run import RunAverages
from ktrace.analysis.clusters import Array
from ktrace.analysis.estimate import average_indirect_effects
from ktrace.analysis.peaks import layers_in, peak_table
from ktrace.analysis.per_fact import MediatorEffects
from ktrace.terms import METRICS, effects_fall

ROLE = "last subject"  # where the published finding is
# Of probabilities, and of what does not saturate.
COMPARED = ("probability", "logit_difference")

_METHOD = ("run", "model", "dataset", "noise", "mediator", "metric", "role")
_NAMED = ("layer", "layers", "first", "last", "aie", "ci_low", "ci_high", "ie_te")
METHOD_COLUMNS = (*_METHOD, *_NAMED, "n_facts", "n_clusters", "agreement")
AGREEMENT_COLUMNS = (
    *("left_run", "left_mediator", "left_metric", "right_run", "right_mediator", "right_metric"),
    *("rank", "overlap"),
)


def whole_layers(one: MediatorEffects) -> MediatorEffects:
    """Of a mediator with heads, the sum over a layer's heads; others as they are."""
    if one.n_heads == 1:
        return one

    def summed(values: Array) -> Array:
        by_head = values.reshape(*values.shape[:-1], -1, one.n_heads)
        total: Array = np.nansum(by_head, axis=-1)
        return total

    totals, by_sample, groups = map(summed, (one.totals, one.by_sample, one.groups))
    return replace(one, totals=totals, by_sample=by_sample, groups=groups, n_heads=1, grids={})


def method_tables(runs: Mapping[str, RunAverages]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What methods name, and how far they agree.

    Args:
        runs: by their labels.

    Returns:
        `methods.csv`: a row for each run, mediator and metric of `COMPARED`, in columns
        `METHOD_COLUMNS`: `layer` and `layers` as in `peaks.csv`, at the last subject token (of a
        knockout, cut from it); heads are summed over a layer; `agreement` is the mean of `rank`
        with the other methods. `agreement.csv`: a row for each two methods on models of as many
        layers, in columns `AGREEMENT_COLUMNS`: `rank`, Spearman's correlation of their effects over
        layers, strongest first; `overlap`, layers that both name by those that either does.
    """
    rows: list[dict[str, Any]] = []
    profiles: list[Array] = []
    for label, run in runs.items():
        for row, profile in _methods_of(label, run):
            rows.append(row)
            profiles.append(profile)
    pairs = list(_pairs(rows, profiles))
    for number, row in enumerate(rows):
        ranks = [pair["rank"] for one, other, pair in pairs if number in (one, other)]
        known = [rank for rank in ranks if not pd.isna(rank)]
        row["agreement"] = float(np.mean(known)) if known else np.nan
    methods: pd.DataFrame = pd.DataFrame(rows, columns=list(METHOD_COLUMNS))
    agreement: pd.DataFrame = pd.DataFrame(
        [pair for _, _, pair in pairs], columns=list(AGREEMENT_COLUMNS)
    )
    return methods, agreement


def _methods_of(label: str, run: RunAverages) -> Iterator[tuple[dict[str, Any], Array]]:
    by_key = {one.key: one for one in (*run.effects, *run.heads)}
    for key in run.every_key:
        one = whole_layers(by_key[key])
        every = average_indirect_effects(one, run.averaging)
        for metric in COMPARED:
            aie = every[(every["metric"] == metric) & (every["role"] == ROLE)]
            if aie.empty:
                continue
            [peak] = peak_table(one, run.averaging, aie).to_dict("records")
            row = {"run": label, **run.names._asdict()} | {str(k): v for k, v in peak.items()}
            sign = -1.0 if effects_fall(metric, key) else 1.0
            yield row, sign * aie.sort_values("layer")["aie"].to_numpy(np.float64)


def _pairs(
    rows: list[dict[str, Any]], profiles: list[Array]
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    for one, other in combinations(range(len(rows)), 2):
        if len(profiles[one]) != len(profiles[other]):
            continue
        sides = {
            f"{side}_{name}": rows[number][name]
            for side, number in (("left", one), ("right", other))
            for name in ("run", "mediator", "metric")
        }
        left, right = (layers_in(str(rows[number]["layers"])) for number in (one, other))
        overlap = len(left & right) / len(left | right) if left and right else np.nan
        rank = pd.Series(profiles[one]).corr(pd.Series(profiles[other]), method="spearman")
        yield one, other, {**sides, "rank": rank, "overlap": overlap}


def method_profiles(runs: Mapping[str, RunAverages], metric: str) -> pd.DataFrame:
    """For a figure: the share of its strongest AIE that each method has in each layer.

    Returns:
        Columns `method, layer, share, named`; `named` where the peak may lie.
    """
    metric = metric if metric in COMPARED else METRICS[0]
    frames = []
    for label, run in runs.items():
        for row, profile in _methods_of(label, run):
            if row["metric"] != metric:
                continue
            largest = np.abs(profile).max() or 1.0
            frames.append(
                pd.DataFrame(
                    {
                        "method": f"{label}: {row['mediator']}",
                        "layer": np.arange(len(profile)),
                        "share": profile / largest,
                        "named": [n in layers_in(str(row["layers"])) for n in range(len(profile))],
                    }
                )
            )
    found: pd.DataFrame = pd.concat(frames, ignore_index=True)
    return found
