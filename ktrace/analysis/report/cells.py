"""Every cell of every fact, small enough for one page: reduced, rounded, deflated.

A cell is a (mediator, layer, position) of a fact. Of its noise samples the page keeps the mean and
the interval, as whole numbers of a decimal unit: what the page shows is what `effects.parquet`
gives, rounded once. `cells.js` is the other half of `_encode`.

Axes: n_metrics, in the order of `METRICS`; n_mediators, in the order of the page;
n_samples, n_layers and n_positions, of a fact.
"""

import base64
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from ktrace.analysis.clusters import Array
from ktrace.analysis.intervals import t_quantile
from ktrace.analysis.strongest import SubjectPeak, strongest_heads, subject_peak
from ktrace.store import CleanRecord, CorruptedRecord, RestoredRecord
from ktrace.terms import METRICS, has_heads

# Facts in one chunk: the page inflates a chunk when one of its facts is first looked at.
CHUNK_FACTS = 32

# Digits after the point, the finest first. Probabilities lie in [0, 1] and the other metrics mostly
# in ±20, so those need one digit less to say as much.
DECIMALS = {name: (4, 3, 2) if name == "probability" else (3, 2, 1) for name in METRICS}
# Chunks that are encoded to learn how large all of them will be.
_SAMPLED_CHUNKS = 4

# Characters around a chunk on the page, at most.
_CHUNK_FRAME = 100

# Stands where there is no number: a mediator that was not restored, or a score beyond all bounds.
MISSING = -(2**31)

_N_PLANES = 4  # effect, carry, half-width of the effect, half-width of the restored score

# Of one fact, `(n_metrics, n_mediators, 4, n_layers, n_positions)`: mean indirect effect, mean
# restored score, and the half-widths of their intervals. NaN where a mediator was not restored.
Cells = npt.NDArray[np.float32]
# Of one fact, a score's mean over noise samples, by metric.
Means = Mapping[str, float]


class ShownMetric(TypedDict):
    """A metric on the page: digits after the point, and facts from the first on with cells."""

    name: str
    decimals: int
    n_facts: int


@dataclass(frozen=True)
class PackedCells:
    """What fits on the page.

    Attributes:
        decimals: digits after the point, for each metric that is on the page.
        chunks: by metric, base64 of `CHUNK_FACTS` facts each; fewer than the facts need where not
            all of them fit.
    """

    decimals: dict[str, int]
    chunks: dict[str, list[str]]

    @property
    def size(self) -> int:
        """Characters on the page."""
        return sum(len(chunk) for chunks in self.chunks.values() for chunk in chunks)

    def n_facts(self, metric: str) -> int:
        """How many facts can have cells of a metric, counted from the first."""
        return len(self.chunks.get(metric, ())) * CHUNK_FACTS

    def shown(self, n_traced: int) -> list[ShownMetric]:
        """The metrics on the page, of so many facts."""
        return [
            {
                "name": name,
                "decimals": self.decimals[name],
                "n_facts": min(self.n_facts(name), n_traced),
            }
            for name in METRICS
            if name in self.decimals
        ]


def shown_in_full(n_traced: int) -> list[ShownMetric]:
    """Every metric with every digit: no page is longer than with these."""
    return [{"name": m, "decimals": DECIMALS[m][0], "n_facts": n_traced} for m in METRICS]


def reduced_cells(record: RestoredRecord, corrupted: CorruptedRecord, key: str) -> Array:
    """Of one mediator, `(n_metrics, 4, n_layers, n_places)`; of each layer's strongest head."""
    base = corrupted.base(key)
    # (n_samples, n_metrics, n_layers, n_positions)
    restored = np.stack([record.by_unit(metric) for metric in METRICS], axis=1).astype(np.float64)
    before = np.stack([base[metric] for metric in METRICS], axis=1).astype(np.float64)
    effect = restored - before[..., None, None]
    means = (effect.mean(axis=0), restored.mean(axis=0))
    planes = np.stack([*means, half_width(effect), half_width(restored)], axis=1)
    if not has_heads(key):
        return planes
    _, n_layers, n_heads, n_places = record.shape
    by_head = planes.reshape(*planes.shape[:2], n_layers, n_heads, n_places)
    return strongest_heads(by_head, by_head[:, :1])


def cells_at_tokens(
    record: RestoredRecord, clean: CleanRecord, corrupted: CorruptedRecord, key: str
) -> Cells:
    """Of one mediator at every token, `(n_metrics, 4, n_layers, n_positions)`.

    Args:
        record: without groups of sources (`RestoredRecord.at_positions`).
        clean: the same fact's clean run.
        corrupted: likewise.
        key: the mediator's; NaN where it did not act.
    """
    reduced = reduced_cells(record, corrupted, key)
    cells = np.full((*reduced.shape[:3], len(clean.tokens)), np.nan, dtype=np.float32)
    cells[..., record.places] = reduced
    return cells


def subject_peaks(cells: Cells, span: tuple[int, int], key: str) -> tuple[SubjectPeak, ...]:
    """The strongest effect inside the subject, of each metric, from `cells_at_tokens`."""
    return tuple(
        subject_peak(effects, span, metric, key)
        for metric, effects in zip(METRICS, cells[:, 0], strict=True)
    )


def half_width(samples: Array) -> Array:
    """Half of the interval of a mean over noise samples (Student's t).

    Args:
        samples: `(n_samples, ...)`.

    Returns:
        `(...)`; 0 for a single sample, which says nothing about others.
    """
    n_samples = len(samples)
    if n_samples < 2:
        return np.zeros(samples.shape[1:])
    spread: Array = samples.std(axis=0, ddof=1)
    width: Array = t_quantile(n_samples - 1) * spread / np.sqrt(n_samples)
    return width


def units(values: Array | Iterable[float], decimals: int) -> npt.NDArray[np.int64]:
    """Whole numbers of 10^-decimals, `MISSING` where a value is no number or beyond all bounds."""
    scaled = np.rint(np.asarray(values, dtype=np.float64) * 10.0**decimals)
    with np.errstate(invalid="ignore"):
        usable = np.abs(scaled) < 2**30
    return np.where(usable, scaled, MISSING).astype(np.int64)


def pack_cells(
    cells: Sequence[Cells], corrupted: Sequence[Means], metric: str, budget: int
) -> PackedCells:
    """Encode as finely as the page's size allows.

    Decimals are given up first, then metrics other than `metric`, and last the facts at the end.

    Args:
        cells: by fact; each is asked for twice at most, and those that have no room once at most.
        corrupted: by fact and metric, the mean corrupted score.
        metric: what the run shows.
        budget: characters at most.
    """
    decimals = _affordable(cells, corrupted, metric, budget)
    chunks: dict[str, list[str]] = {name: [] for name in decimals}
    left = budget
    # All metrics of a fact before the next facts: what does not fit is cut off at the end.
    for start in range(0, len(cells), CHUNK_FACTS):
        facts = range(start, min(start + CHUNK_FACTS, len(cells)))
        own = [cells[fact] for fact in facts], [corrupted[fact] for fact in facts]
        blocks = {name: _chunk(*own, name, decimals[name]) for name in decimals}
        left -= sum(len(block) + _CHUNK_FRAME for block in blocks.values())
        if left < 0:
            break
        for name, block in blocks.items():
            chunks[name].append(block)
    return PackedCells(decimals, chunks)


def _affordable(
    cells: Sequence[Cells], corrupted: Sequence[Means], metric: str, budget: int
) -> dict[str, int]:
    """Decimals of each metric that the page can have, by what some of the facts take."""
    step = max(1, len(cells) // (_SAMPLED_CHUNKS * CHUNK_FACTS))
    sampled = range(0, len(cells), step)
    own = [cells[fact] for fact in sampled], [corrupted[fact] for fact in sampled]
    share = len(sampled) / len(cells)
    frames = _CHUNK_FRAME * -(-len(cells) // CHUNK_FACTS)

    @cache
    def size(name: str, decimals: int) -> float:
        return len(_chunk(*own, name, decimals)) / share + frames

    chosen = {name: DECIMALS[name][0] for name in METRICS}
    # Chunks deflate a little worse than the sample does in one piece.
    while sum(size(*item) for item in chosen.items()) > 0.97 * budget:
        coarser = [name for name in chosen if chosen[name] > DECIMALS[name][-1]]
        if coarser:
            # One digit of every metric goes before the second of any, and `metric` comes last.
            name = max(
                coarser,
                key=lambda name: (
                    chosen[name] - DECIMALS[name][-1],
                    name != metric,
                    size(name, chosen[name]),
                ),
            )
            chosen[name] -= 1
        elif len(chosen) > 1:
            del chosen[next(name for name in reversed(chosen) if name != metric)]
        else:
            break
    return chosen


def _chunk(cells: Sequence[Cells], corrupted: Sequence[Means], metric: str, decimals: int) -> str:
    row = METRICS.index(metric)
    scores = [fact[metric] for fact in corrupted]
    return _encode([fact[row] for fact in cells], scores, decimals)


def _encode(cells: Sequence[Cells], corrupted: Sequence[float], decimals: int) -> str:
    """One metric of some facts, as base64.

    Deflated: for each of the four planes, the lowest bytes of all numbers, then the next bytes, up
    to the fourth (most upper bytes are zero, and deflate to nothing). A plane runs over facts,
    mediators, layers, positions. Signs are folded in: 0, −1, 1, −2 are written as 0, 1, 2, 3.
    """
    planes: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(_N_PLANES)]
    for fact, p_corrupted in zip(cells, corrupted, strict=True):
        effect, restored, *widths = (units(fact[:, plane], decimals) for plane in range(_N_PLANES))
        effect = np.where(restored == MISSING, MISSING, effect)
        # Both means are rounded on their own; together with the carry, each is found exactly.
        carry = restored - effect - units([p_corrupted], decimals)
        numbers = (effect, np.where(effect == MISSING, 0, carry), *widths)
        for plane, values in zip(planes, numbers, strict=True):
            plane.append(values.ravel())
    packed = b"".join(_bytes(np.concatenate(plane)) for plane in planes)
    # Without zlib's frame: the page inflates with `deflate-raw`.
    deflater = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    return base64.b64encode(deflater.compress(packed) + deflater.flush()).decode("ascii")


def _bytes(values: npt.NDArray[np.int64]) -> bytes:
    whole = values.astype(np.int32)
    folded = ((whole << 1) ^ (whole >> 31)).view(np.uint8).reshape(-1, 4)
    return np.ascontiguousarray(folded.T).tobytes()
