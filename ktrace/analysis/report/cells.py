"""Every cell of every fact, small enough for one page: reduced, rounded, deflated.

A cell is a (mediator, layer, position) of a fact. Of its noise samples the page keeps the mean and
the interval, as whole numbers of a decimal unit: what the page shows is what `effects.parquet`
gives, rounded once. `cells.js` is the other half of `_encode`.
"""

import base64
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ktrace.store import RunFolders
from ktrace.terms import METRICS

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

_LEVEL = 0.95
_N_PLANES = 4  # effect, carry, half-width of the effect, half-width of the restored score

Array = npt.NDArray[Any]


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


def read_cells(
    folders: RunFolders, keys: Sequence[str], corrupted: Mapping[int, Mapping[str, Any]]
) -> dict[int, Array]:
    """Reduce the noise samples of every cell, one part in memory at a time.

    Args:
        folders: of the run.
        keys: mediators, such as `mlp-w10`.
        corrupted: by index, the corrupted scores `(sample,)` of the facts to read.

    Returns:
        By index `(metric, mediator, 4, layer, position)`, float32: mean indirect effect, mean
        restored score, and the half-widths of their intervals (see `half_width`). NaN where a
        mediator was not restored.
    """
    cells: dict[int, Array] = {}
    for column, key in enumerate(keys):
        for record in folders.restored(key).read(*METRICS):
            index = record["index"]
            if index not in corrupted:
                continue
            for row, metric in enumerate(METRICS):
                restored = record[metric].astype(np.float64)
                effect = restored - corrupted[index][metric].astype(np.float64)[:, None, None]
                if index not in cells:
                    shape = (len(METRICS), len(keys), 4, *restored.shape[1:])
                    cells[index] = np.full(shape, np.nan, dtype=np.float32)
                cells[index][row, column] = (
                    effect.mean(axis=0),
                    restored.mean(axis=0),
                    half_width(effect),
                    half_width(restored),
                )
    return cells


def half_width(samples: Array) -> Array:
    """Half of the 95% interval of a mean over noise samples (Student's t).

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


@cache
def t_quantile(degrees: int) -> float:
    """Two-sided 95% quantile of Student's t.

    With t = sqrt(degrees) tan(angle) the density is that of cos(angle)^(degrees - 1), which is
    smooth on a bounded interval, so a sum over a grid integrates it.
    """
    angles = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(angles) ** (degrees - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = np.interp(_LEVEL, below / below[-1], angles)
    return float(np.sqrt(degrees) * np.tan(angle))


def units(values: Array | Iterable[float], decimals: int) -> npt.NDArray[np.int64]:
    """Whole numbers of 10^-decimals, `MISSING` where a value is no number or beyond all bounds."""
    scaled = np.rint(np.asarray(values, dtype=np.float64) * 10.0**decimals)
    with np.errstate(invalid="ignore"):
        usable = np.abs(scaled) < 2**30
    return np.where(usable, scaled, MISSING).astype(np.int64)


def pack_cells(
    cells: Sequence[Array], corrupted: Sequence[Mapping[str, float]], metric: str, budget: int
) -> PackedCells:
    """Encode as finely as the page's size allows.

    Decimals are given up first, then metrics other than `metric`, and last the facts at the end.

    Args:
        cells: from `read_cells`, by fact.
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
        blocks = {name: _chunk(cells, corrupted, facts, name, decimals[name]) for name in decimals}
        left -= sum(len(block) + _CHUNK_FRAME for block in blocks.values())
        if left < 0:
            break
        for name, block in blocks.items():
            chunks[name].append(block)
    return PackedCells(decimals, chunks)


def _affordable(
    cells: Sequence[Array], corrupted: Sequence[Mapping[str, float]], metric: str, budget: int
) -> dict[str, int]:
    """Decimals of each metric that the page can have, by what some of the facts take."""
    step = max(1, len(cells) // (_SAMPLED_CHUNKS * CHUNK_FACTS))
    sampled = range(0, len(cells), step)
    share = len(sampled) / len(cells)
    frames = _CHUNK_FRAME * -(-len(cells) // CHUNK_FACTS)

    @cache
    def size(name: str, decimals: int) -> float:
        return len(_chunk(cells, corrupted, sampled, name, decimals)) / share + frames

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


def _chunk(
    cells: Sequence[Array],
    corrupted: Sequence[Mapping[str, float]],
    facts: Sequence[int],
    metric: str,
    decimals: int,
) -> str:
    row = METRICS.index(metric)
    scores = [corrupted[fact][metric] for fact in facts]
    return _encode([cells[fact][row] for fact in facts], scores, decimals)


def _encode(cells: Sequence[Array], corrupted: Sequence[float], decimals: int) -> str:
    """One metric of some facts, as base64.

    Deflated: for each of the four planes, the lowest bytes of all numbers, then the next bytes, up
    to the fourth (most upper bytes are zero, and deflate to nothing). A plane runs over facts,
    mediators, layers, positions. Signs are folded in: 0, −1, 1, −2 are written as 0, 1, 2, 3.
    """
    planes: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(_N_PLANES)]
    for fact, p_corrupted in zip(cells, corrupted, strict=True):
        effect, restored, *widths = (units(fact[:, plane], decimals) for plane in range(4))
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
