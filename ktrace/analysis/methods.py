"""Which layers each method names, over runs, and how far the methods agree.

A method is a mediator in a run, in one metric: another corruption, direction or metric is another
method. Each names the layer where its AIE is strongest, and those where the peak may lie.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple

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
        by_head = values.reshape(*values.shape[:-1], one.n_layers // one.n_heads, one.n_heads)
        total: Array = np.nansum(by_head, axis=-1)
        return total

    totals, by_sample, groups = map(summed, (one.totals, one.by_sample, one.groups))
    return replace(one, totals=totals, by_sample=by_sample, groups=groups, n_heads=1)


class Method(NamedTuple):
    """What one method names.

    Attributes:
        row: of `methods.csv`, without its agreement.
        profile: its effects over layers, the strongest the largest, `(n_layers,)`.
    """

    row: dict[str, Any]
    profile: Array

    @property
    def named(self) -> set[int]:
        """Layers that the peak may lie in."""
        return layers_in(str(self.row["layers"]))


def methods_of(runs: Mapping[str, RunAverages]) -> list[Method]:
    """Every method of some runs, by their labels."""
    return [one for label, run in runs.items() for one in _methods_of(label, run)]


def method_tables(methods: Sequence[Method]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What methods name, and how far they agree.

    Args:
        methods: from `methods_of`.

    Returns:
        `methods.csv`: a row for each run, mediator and metric of `COMPARED`, in columns
        `METHOD_COLUMNS`: `layer` and `layers` as in `peaks.csv`, at the last subject token (of a
        knockout, cut from it); heads are summed over a layer; `agreement` is the mean of `rank`
        with the other methods. `agreement.csv`: a row for each two methods on models of as many
        layers, in columns `AGREEMENT_COLUMNS`: `rank`, Spearman's correlation of their effects over
        layers, strongest first; `overlap`, layers that both name by those that either does.
    """
    pairs = list(_pairs(methods))
    rows = []
    for number, method in enumerate(methods):
        ranks = [pair["rank"] for one, other, pair in pairs if number in (one, other)]
        known = [rank for rank in ranks if not pd.isna(rank)]
        rows.append(method.row | {"agreement": float(np.mean(known)) if known else np.nan})
    table: pd.DataFrame = pd.DataFrame(rows, columns=list(METHOD_COLUMNS))
    agreement: pd.DataFrame = pd.DataFrame(
        [pair for _, _, pair in pairs], columns=list(AGREEMENT_COLUMNS)
    )
    return table, agreement


def _methods_of(label: str, run: RunAverages) -> Iterator[Method]:
    by_key = {one.key: one for one in (*run.effects, *run.heads)}
    for key in run.every_key:
        one = whole_layers(by_key[key])
        every = run.aie[run.aie["mediator"] == key]
        if every.empty:  # a mediator with heads
            every = average_indirect_effects(one, run.averaging)
        for metric in COMPARED:
            aie = every[(every["metric"] == metric) & (every["role"] == ROLE)]
            if aie.empty:
                continue
            [peak] = peak_table(one, run.averaging, aie).to_dict("records")
            row = {"run": label, **run.names._asdict()} | {str(k): v for k, v in peak.items()}
            sign = -1.0 if effects_fall(metric, key) else 1.0
            yield Method(row, sign * aie.sort_values("layer")["aie"].to_numpy(np.float64))


def _pairs(methods: Sequence[Method]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    for one, other in combinations(range(len(methods)), 2):
        left, right = methods[one], methods[other]
        if len(left.profile) != len(right.profile):
            continue
        sides = {
            f"{side}_{name}": method.row[name]
            for side, method in (("left", left), ("right", right))
            for name in ("run", "mediator", "metric")
        }
        both, either = left.named & right.named, left.named | right.named
        overlap = len(both) / len(either) if left.named and right.named else np.nan
        rank = pd.Series(left.profile).corr(pd.Series(right.profile), method="spearman")
        yield one, other, {**sides, "rank": rank, "overlap": overlap}


def method_profiles(methods: Sequence[Method], metric: str) -> pd.DataFrame:
    """For a figure: the share of its strongest AIE that each method has in each layer.

    Returns:
        Columns `method, layer, share, named`; `named` where the peak may lie.
    """
    metric = metric if metric in COMPARED else METRICS[0]
    frames = []
    for method in methods:
        row, profile = method
        if row["metric"] != metric:
            continue
        layers = np.arange(len(profile))
        frames.append(
            pd.DataFrame(
                {
                    "method": f"{row['run']}: {row['mediator']}",
                    "layer": layers,
                    "share": profile / (np.abs(profile).max() or 1.0),
                    "named": np.isin(layers, list(method.named)),
                }
            )
        )
    found: pd.DataFrame = pd.concat(frames, ignore_index=True)
    return found
