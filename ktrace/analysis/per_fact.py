"""From the stores to arrays of one fact: what every average, interval and figure starts from.

Samples are averaged here, so that what is kept does not grow with them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ktrace.analysis.rows import Averaging, membership, rows
from ktrace.analysis.stored import Record, Survey, batches
from ktrace.store import CLEAN_SCORES
from ktrace.terms import METRICS

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FactGrid:
    """Indirect effects of one fact at every position.

    Attributes:
        mean: over noise samples, `(n_metrics, n_layers, n_positions)`, in the order of `METRICS`.
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
    found: Survey,
    key: str,
    averaging: Averaging,
    seen: Callable[[list[Record]], None] = lambda batch: None,
) -> MediatorEffects:
    """Stream one mediator's restorations.

    Args:
        found: the run.
        key: the mediator's.
        averaging: rows, and the weights of `by_sample`.
        seen: called with each batch of records on its way through.
    """
    sums = _Sums(found, averaging)
    for batch in batches(found, key):
        seen(batch)
        for record in batch:
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

    def add(self, record: Record) -> None:
        """Take one fact."""
        index = record["index"]
        effects = indirect_effects(record, self.found.corrupted[index])
        clean = self.found.clean[index]
        members = membership(clean["roles"], clean["span"], self.averaging)
        # (n_metrics, n_samples, n_layers, n_rows) to (n_metrics, n_samples, n_rows, n_layers)
        by_row = np.swapaxes(effects @ members, -1, -2)
        counts = members.sum(axis=0)
        mean = effects.mean(axis=1)
        self.indices.append(index)
        self.totals.append(by_row.mean(axis=1))
        self.counts.append(counts)
        self.grids.append(FactGrid(mean.astype(np.float32)))
        divisor, weight = pooling(counts, self.averaging.pool)
        self.samples = self.samples + by_row.swapaxes(0, 1) / divisor[:, None]
        self.weights += weight


def indirect_effects(restored: Record, corrupted: Record) -> Array:
    """`restored − corrupted` of one fact, `(n_metrics, n_samples, n_layers, n_positions)`."""
    after = np.stack([restored[metric] for metric in METRICS]).astype(np.float64)
    before = np.stack([corrupted[metric] for metric in METRICS]).astype(np.float64)
    return after - before[:, :, None, None]


def total_effects(found: Survey) -> tuple[Array, Array]:
    """Clean and corrupted scores of the traced facts.

    Returns:
        Both `(n_facts, n_metrics, n_samples)`: for each sample, what it is compared with and what
        it is.
    """
    records = [found.corrupted[index] for index in found.traced]
    clean = np.array([[r[name] for name in CLEAN_SCORES.values()] for r in records], np.float64)
    corrupted = np.array([[r[metric] for metric in METRICS] for r in records], np.float64)
    return clean, corrupted
