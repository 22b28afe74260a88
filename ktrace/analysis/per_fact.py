"""From the stores to arrays of one fact: what every average, interval and figure starts from.

Samples are averaged here, so that what is kept does not grow with them.

Axes: n_facts, those of one mediator (or all that are traced); n_metrics, in the order of `METRICS`;
n_samples, draws of the noise; n_rows, those of a role scheme; n_layers (of a mediator with heads,
layers times heads); n_positions, of a prompt; n_groups of sources.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ktrace.analysis.clusters import (
    Array,
    Clusters,
)
from ktrace.analysis.rows import Averaging, membership, rows
from ktrace.analysis.stored import Survey
from ktrace.store import CorruptedRecord, RestoredRecord
from ktrace.terms import METRICS, SOURCE_GROUPS


@dataclass(frozen=True)
class FactGrid:
    """Indirect effects of one fact at every position.

    Attributes:
        mean: over noise samples, `(n_metrics, n_layers, n_positions)`; NaN where the mediator did
            not act.
    """

    mean: npt.NDArray[np.float32]


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
        grids: by the fact's index.
        groups: effects of sources that are cut together, averaged over samples, `(n_facts,
            n_metrics, n_groups, n_layers)`; NaN where a fact lacks a group, and where nothing is
            cut.
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
    grids: Mapping[int, FactGrid]
    groups: Array
    n_heads: int = 1

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return int(self.totals.shape[-1])

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
        records: at least one, in any order; one is in memory at a time.
    """
    facts = sorted(
        (_reduced(found, key, record, averaging) for record in records), key=lambda f: f.index
    )
    # In the order of the dataset, whatever the parts: other sums would differ in their last bits.
    indices = tuple(fact.index for fact in facts)
    counts = np.stack([fact.counts for fact in facts])
    _, weights = pooling(counts, averaging.pool)
    with np.errstate(invalid="ignore"):
        by_sample = sum(fact.by_sample for fact in facts) / weights.sum(axis=0)[:, None]
    return MediatorEffects(
        key=key,
        indices=indices,
        totals=np.stack([fact.totals for fact in facts]),
        counts=counts,
        by_sample=by_sample,
        total_effects=TotalEffects.of(found, indices).mean,
        clusters=clusters_of(found, indices, averaging.cluster),
        relations=tuple(found.clean[index].relation_id for index in indices),
        grids={fact.index: fact.grid for fact in facts},
        groups=np.stack([fact.groups for fact in facts]),
        n_heads=facts[0].n_heads,
    )


@dataclass(frozen=True)
class _Reduced:
    """One fact of one mediator; `by_sample` is what it adds to `MediatorEffects.by_sample`."""

    index: int
    totals: Array
    counts: Array
    by_sample: Array
    grid: FactGrid
    groups: Array
    n_heads: int


def _reduced(found: Survey, key: str, record: RestoredRecord, averaging: Averaging) -> _Reduced:
    effects = indirect_effects(record, found.corrupted[record.index], key)
    clean = found.clean[record.index]
    positions = _positions(record)
    members = np.zeros((len(positions), len(rows(averaging.scheme))))
    members[positions >= 0] = membership(clean.roles, clean.span, averaging)[
        positions[positions >= 0]
    ]
    # (n_metrics, n_samples, n_layers, n_rows) to (n_metrics, n_samples, n_rows, n_layers)
    by_row = np.swapaxes(effects @ members, -1, -2)
    counts = members.sum(axis=0)
    divisor, _ = pooling(counts, averaging.pool)
    mean = effects.mean(axis=1)
    n_groups = len(SOURCE_GROUPS)
    grid = np.full((*mean.shape[:2], len(clean.tokens)), np.nan, dtype=np.float32)
    groups = np.full((len(METRICS), n_groups, mean.shape[1]), np.nan)
    for column, place in enumerate(record.places):
        if positions[column] >= 0:
            grid[..., positions[column]] = mean[..., column]
        if place < 0:
            groups[:, -1 - place] = mean[..., column]
    return _Reduced(
        record.index,
        by_row.mean(axis=1),
        counts,
        by_row.swapaxes(0, 1) / divisor[:, None],
        FactGrid(grid),
        groups,
        record.shape[2],
    )


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
