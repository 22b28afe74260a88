"""From the stores to arrays of one fact: what every average, interval and figure starts from.

Samples are averaged here, so that what is kept does not grow with them.

Axes: n_facts, those of one mediator (or all that are traced); n_metrics, in the order of `METRICS`;
n_samples, draws of the noise; n_rows, those of a role scheme; n_layers (of a mediator with heads,
layers times heads); n_positions, of a prompt; n_groups of sources.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ktrace.analysis.clusters import (
    Array,
    Clusters,
)
from ktrace.analysis.rows import Averaging, membership, rows
from ktrace.analysis.stored import Survey, batches
from ktrace.analysis.strongest import subject_peak
from ktrace.store import CorruptedRecord, RestoredRecord
from ktrace.terms import METRICS, SOURCE_GROUPS, cuts_edges


@dataclass(frozen=True)
class MediatorEffects:
    """Indirect effects of one mediator.

    Attributes:
        key: the mediator's, such as `mlp-w10`.
        indices: the facts, in the order of the dataset.
        totals: the effects, averaged over samples and summed over the positions of a row,
            `(n_facts, n_metrics, n_rows, n_layers)`.
        counts: positions in each row, `(n_facts, n_rows)`.
        by_sample: AIE of each noise sample alone, `(n_samples, n_metrics, n_rows, n_layers)`; NaN
            where no fact has the row.
        total_effects: averaged over samples, `(n_facts, n_metrics)`.
        clusters: of the facts.
        relations: `relation_id` of the facts; may be empty.
        peaks: the strongest effect inside the subject, averaged over samples: its layer, its
            position, and itself, `(n_facts, n_metrics, 3)`.
        groups: effects of sources that are cut together, averaged over samples, `(n_facts,
            n_metrics, n_groups, n_layers)`; NaN where a fact lacks a group. No group where nothing
            is cut.
        n_heads: of a layer, whose heads are neighbours; 1 for a mediator without heads.
    """

    key: str
    indices: tuple[int, ...]
    totals: Array
    counts: Array
    by_sample: Array
    total_effects: Array
    clusters: Clusters
    relations: tuple[str, ...]
    peaks: Array
    groups: Array
    n_heads: int = 1

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return int(self.totals.shape[-1])

    @cached_property
    def row_of(self) -> dict[int, int]:
        """By the fact's index, its row."""
        return {index: row for row, index in enumerate(self.indices)}

    def curves(self, metric: str, pool: str) -> tuple[Array, Array]:
        """What facts give to each row and layer, and what it weighs.

        Args:
            metric: of the effects.
            pool: see `pooling`.

        Returns:
            `(n_facts, n_rows, n_layers)` and `(n_facts, n_rows)`.
        """
        divisor, weights = pooling(self.counts, pool)
        return self.totals[:, METRICS.index(metric)] / divisor[..., None], weights


def clusters_of(found: Survey, indices: Sequence[int], cluster: str | None) -> Clusters:
    """Which facts of a run are dependent.

    Args:
        found: the run.
        indices: of the facts, in their order.
        cluster: one of `ktrace.terms.CLUSTERS`, or None.
    """
    if cluster is None:
        return Clusters.none(len(indices))
    return Clusters.of(cluster, [getattr(found.clean[index], cluster) for index in indices])


def pooling(counts: Array, pool: str) -> tuple[Array, Array]:
    """How positions of a row are weighed.

    Args:
        counts: positions in each row, of any shape.
        pool: `facts` averages within a fact first, so that facts weigh the same; `positions` makes
            every position weigh the same.

    Returns:
        What a fact's sum over positions is divided by, and what the result then weighs; both in
        the shape of `counts`.
    """
    if pool == "positions":
        return np.ones_like(counts), counts
    return np.maximum(counts, 1), (counts > 0).astype(np.float64)


def reduce_mediator(
    found: Survey, key: str, averaging: Averaging, records: Iterable[RestoredRecord]
) -> MediatorEffects:
    """Reduce one mediator's restorations.

    Args:
        found: the run.
        key: the mediator's.
        averaging: rows, and the weights of `by_sample`.
        records: of each fact that `found` says the mediator holds, at least one, in any order; one
            is in memory at a time.
    """
    reduction: _Reduction | None = None
    for record in records:
        if reduction is None:
            reduction = _Reduction(found, key, averaging, record)
        reduction.add(record)
    if reduction is None:
        raise ValueError(f"{key} has no restorations")
    return reduction.effects()


class _Reduction:
    """The effects of one mediator, while its facts come in: every array has its size at once."""

    def __init__(
        self, found: Survey, key: str, averaging: Averaging, first: RestoredRecord
    ) -> None:
        self._found, self._key, self._averaging = found, key, averaging
        # In the order of the dataset, whatever the parts.
        self._indices = tuple(sorted(found.restored[key]))
        self._row = {index: row for row, index in enumerate(self._indices)}
        n_facts, n_rows, n_units = len(self._indices), len(rows(averaging.scheme)), first.n_units
        n_groups = len(SOURCE_GROUPS) if cuts_edges(key) else 0
        self._n_heads = first.shape[2]
        # Layers lie apart in memory and rows together, as `by_row` has them: means over layers hang
        # on that in their last bits.
        self._totals = np.zeros((n_facts, len(METRICS), n_units, n_rows)).swapaxes(-1, -2)
        self._counts = np.zeros((n_facts, n_rows))
        self._peaks = np.zeros((n_facts, len(METRICS), 3))
        self._groups = np.full((n_facts, len(METRICS), n_groups, n_units), np.nan)
        self._by_sample = Sum((first.shape[0], len(METRICS), n_rows, n_units))

    def add(self, record: RestoredRecord) -> None:
        """Take in one fact."""
        effects = indirect_effects(record, self._found.corrupted[record.index], self._key)
        clean, row = self._found.clean[record.index], self._row[record.index]
        positions = _positions(record)
        members = np.zeros((len(positions), self._counts.shape[1]))
        members[positions >= 0] = membership(clean.roles, clean.span, self._averaging)[
            positions[positions >= 0]
        ]
        # (n_metrics, n_samples, n_layers, n_rows) to (n_metrics, n_samples, n_rows, n_layers)
        by_row = np.swapaxes(effects @ members, -1, -2)
        counts = members.sum(axis=0)
        divisor, _ = pooling(counts, self._averaging.pool)
        mean = effects.mean(axis=1)
        self._totals[row] = by_row.mean(axis=1)
        self._counts[row] = counts
        self._by_sample.add(by_row.swapaxes(0, 1) / divisor[:, None])
        grid = _grid(record, mean, len(clean.tokens))
        self._peaks[row] = [
            subject_peak(values, clean.span, metric, self._key)
            for metric, values in zip(METRICS, grid, strict=True)
        ]
        if self._groups.shape[2]:
            for column, place in enumerate(record.places):
                if place < 0:
                    self._groups[row, :, -1 - place] = mean[..., column]

    def effects(self) -> MediatorEffects:
        """Of all facts that came."""
        found, indices = self._found, self._indices
        _, weights = pooling(self._counts, self._averaging.pool)
        with np.errstate(invalid="ignore"):
            by_sample = self._by_sample.total / weights.sum(axis=0)[:, None]
        return MediatorEffects(
            key=self._key,
            indices=indices,
            totals=self._totals,
            counts=self._counts,
            by_sample=by_sample,
            total_effects=TotalEffects.of(found, indices).mean,
            clusters=clusters_of(found, indices, self._averaging.cluster),
            relations=tuple(found.clean[index].relation_id for index in indices),
            peaks=self._peaks,
            groups=self._groups,
            n_heads=self._n_heads,
        )


class Sum:
    """A sum of arrays that does not hang on their order.

    Two doubles for each number, the second of them what the first lost by rounding (Knuth's
    two-sum): other orders differ some 50 bits below the last one that is shown.

    Args:
        shape: of every array.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._high, self._low = np.zeros((2, *shape))

    def add(self, values: Array) -> None:
        """One more."""
        with np.errstate(invalid="ignore"):
            high = self._high + values
            of_values = high - self._high
            self._low += (self._high - (high - of_values)) + (values - of_values)
        self._high = high

    @property
    def total(self) -> Array:
        """Of all that came."""
        found: Array = np.where(np.isfinite(self._high), self._high + self._low, self._high)
        return found


def fact_grids(found: Survey, key: str, indices: Collection[int]) -> dict[int, Array]:
    """Indirect effects of some facts at every position, read from the store again.

    Args:
        found: the run.
        key: the mediator's.
        indices: of the facts; those that the mediator lacks are not among what comes back.

    Returns:
        By index, the mean over noise samples, `(n_metrics, n_layers, n_positions)` in float32; NaN
        where the mediator did not act.
    """
    grids = {}
    for batch in batches(found, key, indices):
        for record in batch:
            effects = indirect_effects(record, found.corrupted[record.index], key)
            n_positions = len(found.clean[record.index].tokens)
            grids[record.index] = _grid(record, effects.mean(axis=1), n_positions)
    return grids


def _grid(record: RestoredRecord, mean: Array, n_positions: int) -> Array:
    """At every position, from `(n_metrics, n_layers, n_places)`."""
    grid = np.full((*mean.shape[:2], n_positions), np.nan, dtype=np.float32)
    positions = _positions(record)
    grid[..., positions[positions >= 0]] = mean[..., positions >= 0]
    return grid


def _positions(record: RestoredRecord) -> npt.NDArray[np.int64]:
    """Of each place; -1 for a group of sources, but for the query itself, which has one."""
    itself = -len(SOURCE_GROUPS)
    # Sources are all positions before the query.
    query = int((record.places >= 0).sum())
    return np.where(record.places == itself, query, np.maximum(record.places, -1))


def indirect_effects(restored: RestoredRecord, corrupted: CorruptedRecord, key: str) -> Array:
    """`restored − corrupted` of one fact, of a mediator that noises or cuts `restored − clean`.

    Returns:
        `(n_metrics, n_samples, n_layers, n_places)`; with heads, layers times heads.
    """
    after = np.stack([restored.by_unit(metric) for metric in METRICS]).astype(np.float64)
    base = corrupted.base(key)
    before = np.stack([base[metric] for metric in METRICS]).astype(np.float64)
    return after - before[:, :, None, None]


@dataclass(frozen=True)
class TotalEffects:
    """What total effects are made of.

    Attributes:
        clean: the score that each sample is compared with, `(n_facts, n_metrics, n_samples)`.
        corrupted: its score in the corrupted run, likewise.
    """

    clean: Array
    corrupted: Array

    @classmethod
    def of(cls, found: Survey, indices: Sequence[int]) -> "TotalEffects":
        """The total effects of some facts of a run."""
        records = [found.corrupted[index] for index in indices]
        clean = [[record.clean[metric] for metric in METRICS] for record in records]
        corrupted = [[record.corrupted[metric] for metric in METRICS] for record in records]
        return cls(np.array(clean, np.float64), np.array(corrupted, np.float64))

    @property
    def mean(self) -> Array:
        """Over samples, `(n_facts, n_metrics)`."""
        found: Array = (self.clean - self.corrupted).mean(axis=-1)
        return found

    def in_metric(self, metric: str) -> tuple[Array, Array]:
        """Clean and corrupted scores in one metric, `(n_facts, n_samples)` both."""
        number = METRICS.index(metric)
        return self.clean[:, number], self.corrupted[:, number]
