"""Where an effect is strongest: of an average, and of each fact.

Axes are those of per_fact.py.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import pandas as pd

from ktrace.analysis.clusters import (
    Array,
    Clusters,
    intraclass_correlation,
)
from ktrace.analysis.intervals import (
    FEWEST_CLUSTERS,
    averages,
)
from ktrace.analysis.per_fact import MediatorEffects
from ktrace.analysis.rows import Averaging, rows
from ktrace.analysis.strongest import peak_of
from ktrace.terms import METRICS, effects_fall

_SPLITS, _SEED = 200, 0
_AT_PEAK = (
    *("aie", "ci_low", "ci_high", "ie_te", "ie_te_low", "ie_te_high"),
    *("n_facts", "n_clusters"),
)
PEAK_COLUMNS = (
    *("mediator", "metric", "role", "layer", "aie", "ci_low", "ci_high"),
    *("layers", "first", "last"),
    *("ie_te", "ie_te_low", "ie_te_high", "half_rank", "half_share", "sample_rank"),
    *("n_facts", "n_nothing", "n_clusters", "icc"),
)


class AveragePeak(TypedDict):
    """The layer of a role's strongest AIE, as `summary.json` has it."""

    layer: int
    aie: float


def average_peaks(aie: pd.DataFrame, metric: str) -> dict[str, AveragePeak]:
    """The layer of the strongest AIE for each role.

    Args:
        aie: from `average_indirect_effects`, one mediator and metric.
        metric: which.
    """
    found: dict[str, AveragePeak] = {}
    key = str(aie["mediator"].iloc[0])
    for role, cells in aie.groupby("role", observed=True):
        best = cells.iloc[peak_of(cells["aie"].to_numpy(), metric, key)]
        found[str(role)] = {"layer": int(best["layer"]), "aie": float(best["aie"])}
    return found


def peak_layers(effects: MediatorEffects, role: str, scheme: str, metric: str) -> Array:
    """The layer of each fact's strongest effect in one row, `(n_facts with the row,)`."""
    row = rows(scheme).index(role)
    have = effects.counts[:, row] > 0
    curves = effects.totals[have][:, METRICS.index(metric), row]
    peaks = [peak_of(curve, metric, effects.key) for curve in curves]
    return np.array(peaks, dtype=np.float64)


def nothing_to_peak(
    effects: MediatorEffects, role: str, scheme: str, metric: str, smallest: float
) -> npt.NDArray[np.bool_]:
    """Whether a fact's strongest effect in one row is below the smallest that counts.

    Returns:
        `(n_facts with the row,)`.
    """
    row = rows(scheme).index(role)
    curves, weights = effects.curves(metric, "facts")
    falls = effects_fall(metric, effects.key)
    own = _rising(curves[weights[:, row] > 0, row], falls=falls)
    found: npt.NDArray[np.bool_] = own.max(axis=-1) < smallest
    return found


def _rising(values: Array, *, falls: bool) -> Array:
    """So that the strongest is the largest."""
    return -values if falls else values


def peak_set(
    totals: Array, weights: Array, clusters: Clusters, *, falls: bool = False
) -> npt.NDArray[np.intp] | None:
    """Layers that the peak of an average may lie in.

    A layer is left out where the interval of its paired difference to the observed peak, at a level
    that holds for all layers together, excludes 0.

    Args:
        totals: of each fact, `(n_facts, n_layers)`.
        weights: `(n_facts,)`; facts of weight 0 do not count.
        clusters: of the facts.
        falls: whether the strongest effect is the lowest.

    Returns:
        In ascending order, the observed peak among them; None where units are too few to tell.
    """
    rising = _rising(totals, falls=falls)
    peak = int(np.argmax(rising.sum(axis=0)))
    cells = averages(rising - rising[:, [peak]], weights, clusters)
    if cells.blocks[0].note:
        return None
    # Where a difference has no spread it has no interval, and the layer stays.
    _, high = cells.at_once(fewest=0)
    return np.flatnonzero(~(high < 0))


def run_around(layers: Sequence[int], peak: int) -> tuple[int, int]:
    """First and last of the layers that join the peak without a gap."""
    first = last = peak
    while first - 1 in layers:
        first -= 1
    while last + 1 in layers:
        last += 1
    return first, last


def peak_table(effects: MediatorEffects, averaging: Averaging, aie: pd.DataFrame) -> pd.DataFrame:
    """Where the AIE of each role is strongest, and how sure that is.

    Args:
        effects: one mediator.
        averaging: rows, pooling, and the smallest effect that counts.
        aie: of the mediator and one metric, from `average_indirect_effects`.

    Returns:
        Columns `PEAK_COLUMNS`, a row for each role: the peak `layer` with `aie` and `ie_te` there;
        `layers`, those that the peak may lie in (`peak_set`), as text such as `0-2, 5`, empty where
        that cannot be told; `first` and `last` of those that join the peak; `half_rank` and
        `sample_rank`, how alike halves of the units and single noise samples rank the layers (mean
        of Spearman's correlations); `half_share`, how many of the halves peak between first and
        last; `n_nothing`, facts without an effect that counts; `icc`, the intraclass correlation of
        the effects at the peak.
    """
    metric = str(aie["metric"].iloc[0])
    falls = effects_fall(metric, effects.key)
    curves, weights = effects.curves(metric, averaging.pool)
    found = []
    for role, cells in aie.groupby("role", observed=True):
        row = rows(averaging.scheme).index(str(role))
        best = cells.iloc[peak_of(cells["aie"].to_numpy(), metric, effects.key)]
        has = weights[:, row] > 0
        totals, weight, clusters = curves[has, row], weights[has, row], effects.clusters[has]
        layer = int(best["layer"])
        told = peak_set(totals, weight, clusters, falls=falls)
        first, last = (pd.NA, pd.NA) if told is None else run_around(told.tolist(), layer)
        halves = _halves(_rising(totals, falls=falls), weight, clusters)
        nothing = nothing_to_peak(effects, str(role), averaging.scheme, metric, averaging.smallest)
        found.append(
            {
                "mediator": effects.key,
                "metric": metric,
                "role": role,
                **{name: best[name] for name in ("layer", *_AT_PEAK)},
                "layers": "" if told is None else as_ranges(told.tolist()),
                "first": first,
                "last": last,
                "half_rank": _rank_agreement(halves[0::2], halves[1::2]),
                "half_share": _share_within(halves, first, last),
                "sample_rank": _all_agree(effects.by_sample[:, METRICS.index(metric), row]),
                "n_nothing": int(nothing.sum()),
                "icc": intraclass_correlation(totals[:, layer] / weight, clusters),
            }
        )
    table = pd.DataFrame(found).astype({"first": "Int64", "last": "Int64"})
    ordered: pd.DataFrame = table[list(PEAK_COLUMNS)]
    return ordered


def as_ranges(layers: Sequence[int]) -> str:
    """Layers in words: `0-2, 5`."""
    starts = [layer for layer in layers if layer - 1 not in layers]
    runs = [run_around(layers, start) for start in starts]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def layers_in(ranges: str) -> set[int]:
    """What `as_ranges` put in words."""
    found: set[int] = set()
    for one in filter(None, ranges.split(", ")):
        first, _, last = one.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _halves(totals: Array, weights: Array, clusters: Clusters) -> Array:
    """Averages over random halves of the units, one after the other, `(2 × n_splits, n_layers)`.

    Units are clusters where intervals take them as such, so that both halves are of other ones.
    """
    codes = np.unique(clusters.codes, return_inverse=True)[1].ravel()
    if codes.max() + 1 < FEWEST_CLUSTERS:
        codes = np.arange(len(totals))
    n_units = int(codes.max()) + 1
    if n_units < 2:
        return np.empty((0, totals.shape[1]))
    generator = np.random.default_rng(_SEED)
    orders = generator.permuted(np.tile(np.arange(n_units), (_SPLITS, 1)), axis=1)
    first = (orders < n_units // 2).astype(np.float64)
    chosen = np.stack([first, 1 - first], axis=1).reshape(-1, n_units)[:, codes]
    found: Array = (chosen @ totals) / (chosen @ weights)[:, None]
    return found


def _ranks(curves: Array) -> Array:
    """Of the layers in each curve, centred and scaled, so that products are correlations."""
    ranks = pd.DataFrame(curves).rank(axis=1).to_numpy(np.float64)
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Array = ranks / np.sqrt((ranks**2).sum(axis=1, keepdims=True))
    return found


def _rank_agreement(left: Array, right: Array) -> float:
    """Mean of Spearman's correlations of pairs of curves; NaN where none is told."""
    found = (_ranks(left) * _ranks(right)).sum(axis=1)
    found = found[~np.isnan(found)]
    return float(found.mean()) if len(found) and left.shape[1] > 1 else float("nan")


def _all_agree(curves: Array) -> float:
    """The same of all pairs of some curves, `(n_curves, n_layers)`."""
    left, right = np.triu_indices(len(curves), 1)
    return _rank_agreement(curves[left], curves[right])


def _share_within(curves: Array, first: object, last: object) -> float:
    """Curves whose largest value lies from the first to the last of some layers."""
    if not isinstance(first, int) or not isinstance(last, int) or not len(curves):
        return float("nan")
    peaks = curves.argmax(axis=1)
    return float(((first <= peaks) & (peaks <= last)).mean())
