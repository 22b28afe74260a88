"""From the stores to arrays of one fact: what every average, interval and figure starts from.

Samples are averaged here, so that what is kept does not grow with them.

Axes: n_facts, those of one mediator (or all that are traced); n_metrics, in the order of `METRICS`;
n_samples, draws of the noise; n_rows, those of a role scheme; n_layers; n_positions, of a prompt.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ktrace.analysis.intervals import Array
from ktrace.analysis.rows import Averaging, membership, rows
from ktrace.analysis.stored import Survey
from ktrace.store import CorruptedRecord, RestoredRecord
from ktrace.terms import METRICS


@dataclass(frozen=True)
class FactGrid:
    """Indirect effects of one fact at every position.

    Attributes:
        mean: over noise samples, `(n_metrics, n_layers, n_positions)`.
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
        grids: by the fact's index.
    """

    key: str
    indices: tuple[int, ...]
    totals: Array
    counts: Array
    by_sample: Array
    grids: Mapping[int, FactGrid]

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return int(self.totals.shape[-1])


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
    sums = _Sums(found, averaging)
    for record in records:
        sums.add(record)
    order = sorted(range(len(sums.indices)), key=sums.indices.__getitem__)
    with np.errstate(invalid="ignore"):
        by_sample = sums.samples / sums.weights[:, None]
    return MediatorEffects(
        key,
        tuple(sums.indices[i] for i in order),
        np.stack([sums.totals[i] for i in order]),
        np.stack([sums.counts[i] for i in order]),
        by_sample,
        {sums.indices[i]: sums.grids[i] for i in order},
    )


@dataclass
class _Sums:
    """What facts add up to, in the order in which they come."""

    found: Survey
    averaging: Averaging
    indices: list[int] = field(default_factory=list)
    totals: list[Array] = field(default_factory=list)
    counts: list[Array] = field(default_factory=list)
    grids: list[FactGrid] = field(default_factory=list)

    def __post_init__(self) -> None:
        n_rows = len(rows(self.averaging.scheme))
        self.weights = np.zeros(n_rows)
        self.samples: Array = np.zeros((1, 1, n_rows, 1))

    def add(self, record: RestoredRecord) -> None:
        """Take one fact."""
        effects = indirect_effects(record, self.found.corrupted[record.index])
        clean = self.found.clean[record.index]
        members = membership(clean.roles, clean.span, self.averaging)
        # (n_metrics, n_samples, n_layers, n_rows) to (n_metrics, n_samples, n_rows, n_layers)
        by_row = np.swapaxes(effects @ members, -1, -2)
        counts = members.sum(axis=0)
        mean = effects.mean(axis=1)
        self.indices.append(record.index)
        self.totals.append(by_row.mean(axis=1))
        self.counts.append(counts)
        self.grids.append(FactGrid(mean.astype(np.float32)))
        divisor, weight = pooling(counts, self.averaging.pool)
        self.samples = self.samples + by_row.swapaxes(0, 1) / divisor[:, None]
        self.weights += weight


def indirect_effects(restored: RestoredRecord, corrupted: CorruptedRecord) -> Array:
    """`restored − corrupted` of one fact, `(n_metrics, n_samples, n_layers, n_positions)`."""
    after = np.stack([restored.scores[metric] for metric in METRICS]).astype(np.float64)
    before = np.stack([corrupted.corrupted[metric] for metric in METRICS]).astype(np.float64)
    return after - before[:, :, None, None]


@dataclass(frozen=True)
class TotalEffects:
    """What total effects of the traced facts are made of, in the order of the dataset.

    Attributes:
        clean: the score that each sample is compared with, `(n_facts, n_metrics, n_samples)`.
        corrupted: its score in the corrupted run, likewise.
    """

    clean: Array
    corrupted: Array

    @classmethod
    def of(cls, found: Survey) -> "TotalEffects":
        """The total effects of a run."""
        records = [found.corrupted[index] for index in found.traced]
        clean = [[record.clean[metric] for metric in METRICS] for record in records]
        corrupted = [[record.corrupted[metric] for metric in METRICS] for record in records]
        return cls(np.array(clean, np.float64), np.array(corrupted, np.float64))

    def in_metric(self, metric: str) -> tuple[Array, Array]:
        """Clean and corrupted scores in one metric, `(n_facts, n_samples)` both."""
        number = METRICS.index(metric)
        return self.clean[:, number], self.corrupted[:, number]
