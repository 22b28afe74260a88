"""Two runs compared fact by fact: which facts they share, and how their effects differ.

Models of different depth are compared at relative depths, from 0, the first layer, to 1, the last.

Axes: n_facts, those of one mediator or of the pairs; n_depths, see `depth_grid`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from ktrace.analysis.averaged_run import RunAverages
from ktrace.analysis.clusters import (
    Array,
)
from ktrace.analysis.estimate import difference_table, effect_range
from ktrace.analysis.intervals import (
    averages,
)
from ktrace.analysis.per_fact import MediatorEffects, clusters_of
from ktrace.analysis.rows import Averaging, rows
from ktrace.terms import METRICS

# Indices of one fact in the first run and in the other.
Pair = tuple[int, int]


class Difference(NamedTuple):
    """A mean over pairs of facts with its interval."""

    mean: float
    ci_low: float
    ci_high: float


def shared_facts(first: RunAverages, other: RunAverages) -> list[Pair]:
    """Facts that both runs have traced: the same words, whatever the file."""
    mine, theirs = _by_text(first), _by_text(other)
    return [(mine[text], theirs[text]) for text in mine if text in theirs]


def _by_text(run: RunAverages) -> dict[tuple[str, ...], int]:
    traced = ((index, run.survey.clean[index]) for index in run.survey.traced)
    return {(fact.prompt, fact.subject, fact.attribute): index for index, fact in traced}


def shared_effects(first: RunAverages, other: RunAverages, key: str) -> list[Pair]:
    """Shared facts that one mediator holds of both: an unfinished one lacks facts of its run."""
    mine, theirs = set(first.of(key).indices), set(other.of(key).indices)
    return [(a, b) for a, b in shared_facts(first, other) if a in mine and b in theirs]


def total_difference(
    first: RunAverages, other: RunAverages, pairs: Sequence[Pair], metric: str
) -> Difference:
    """Total effect of the other run minus that of the first.

    Args:
        first: the baseline.
        other: what it is compared with.
        pairs: at least one, from `shared_facts`.
        metric: of the scores.
    """
    mine, theirs = np.array(pairs).T
    apart = _total(other, theirs, metric) - _total(first, mine, metric)
    clusters = clusters_of(first.survey, mine.tolist(), first.averaging.cluster)
    cells = averages(apart[:, None], np.ones(len(apart)), clusters)
    low, high = cells.interval(limits=effect_range(metric, 2))
    return Difference(float(cells.value[0]), float(low[0]), float(high[0]))


def _total(run: RunAverages, indices: npt.NDArray[np.int64], metric: str) -> Array:
    """Total effects of some facts, `(n_facts,)`."""
    where = {index: row for row, index in enumerate(run.survey.traced)}
    chosen = [where[index] for index in indices.tolist()]
    found: Array = run.total.mean[chosen, METRICS.index(metric)]
    return found


def effect_differences(
    first: MediatorEffects,
    other: MediatorEffects,
    pairs: Sequence[Pair],
    metric: str,
    averaging: Averaging,
) -> pd.DataFrame:
    """Indirect effects of the other run minus those of the first.

    Args:
        first: one mediator of the baseline.
        other: the same of what it is compared with.
        pairs: at least one, of facts that both hold.
        metric: of the effects.
        averaging: rows, and the smallest difference that counts.

    Returns:
        Columns `metric, role, depth` and those of `difference_table`; no row where no pair has the
        role.
    """
    mine = {index: row for row, index in enumerate(first.indices)}
    theirs = {index: row for row, index in enumerate(other.indices)}
    left, right = np.array([(mine[a], theirs[b]) for a, b in pairs], dtype=np.intp).T
    depths = depth_grid(first.n_layers, other.n_layers)
    apart = _at_depths(other, metric, depths)[right] - _at_depths(first, metric, depths)[left]
    table = difference_table(
        apart.reshape(len(pairs), -1),
        first.clusters[left],
        effect_range(metric, 2),
        averaging.smallest,
    )
    names = rows(averaging.scheme)
    table.insert(0, "metric", metric)
    table.insert(1, "role", np.repeat(names, len(depths)))
    table.insert(2, "depth", np.tile(depths, len(names)))
    kept: pd.DataFrame = table[table["n_facts"] > 0].reset_index(drop=True)
    return kept


def depth_grid(first: int, second: int) -> Array:
    """Relative depths at which models are compared: the layers of the shallower one.

    Args:
        first: its number of layers.
        second: likewise.

    Returns:
        From 0, the first layer, to 1, the last one, `(min(first, second),)`.
    """
    return np.linspace(0, 1, min(first, second)) if min(first, second) > 1 else np.zeros(1)


def _at_depths(effects: MediatorEffects, metric: str, depths: Array) -> Array:
    """Effects at relative depths, `(n_facts, n_rows, n_depths)`; NaN where a fact lacks the row."""
    curves, weights = effects.curves(metric, "facts")
    curves = np.where(weights[..., None] > 0, curves, np.nan)
    n_layers = curves.shape[-1]
    if n_layers == len(depths):
        return curves
    place = depths * (n_layers - 1)
    below = np.minimum(np.floor(place).astype(np.intp), n_layers - 1)
    above = np.minimum(below + 1, n_layers - 1)
    found: Array = curves[..., below] + (curves[..., above] - curves[..., below]) * (place - below)
    return found
