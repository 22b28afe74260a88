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
from ktrace.analysis.intervals import Array, interval, ratio
from ktrace.analysis.per_fact import MediatorEffects
from ktrace.analysis.rows import rows
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
    low, high = interval(apart[:, None], np.ones(len(apart)))
    return Difference(apart.mean(), low[0], high[0])


def _total(run: RunAverages, indices: npt.NDArray[np.int64], metric: str) -> Array:
    """Total effects of some facts, `(n_facts,)`."""
    clean, corrupted = run.total.in_metric(metric)
    where = {index: row for row, index in enumerate(run.survey.traced)}
    chosen = [where[index] for index in indices.tolist()]
    found: Array = (clean - corrupted).mean(axis=1)[chosen]
    return found


def effect_differences(
    first: MediatorEffects,
    other: MediatorEffects,
    pairs: Sequence[Pair],
    metric: str,
    scheme: str,
) -> pd.DataFrame:
    """Indirect effects of the other run minus those of the first.

    Args:
        first: one mediator of the baseline.
        other: the same of what it is compared with.
        pairs: at least one, of facts that both hold.
        metric: of the effects.
        scheme: of the rows.

    Returns:
        Columns `depth, difference, role, ci_low, ci_high, n_facts, metric`; no row where no pair
        has the role.
    """
    mine = {index: row for row, index in enumerate(first.indices)}
    theirs = {index: row for row, index in enumerate(other.indices)}
    left, right = np.array([(mine[a], theirs[b]) for a, b in pairs], dtype=np.intp).T
    depths = depth_grid(first.n_layers, other.n_layers)
    frames = []
    for row, role in enumerate(rows(scheme)):
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
