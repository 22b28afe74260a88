"""Where an effect is strongest: of an average, of each fact, and of a fact inside its subject.

Axes are those of per_fact.py.
"""

from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
import pandas as pd

from ktrace.analysis.intervals import Array
from ktrace.analysis.per_fact import MediatorEffects
from ktrace.analysis.rows import rows
from ktrace.terms import METRICS


class AveragePeak(TypedDict):
    """The layer of a role's strongest AIE, as `summary.json` has it."""

    layer: int
    aie: float


class SubjectPeak(NamedTuple):
    """A fact's strongest effect at a position of its subject."""

    layer: int
    position: int
    effect: float


def peak_of(values: npt.NDArray[np.floating], metric: str) -> int:
    """Flat index of the strongest effect; restoring makes a divergence fall, all else rise."""
    return int(np.argmin(values) if metric == "kl" else np.argmax(values))


def average_peaks(aie: pd.DataFrame, metric: str) -> dict[str, AveragePeak]:
    """The layer of the strongest AIE for each role.

    Args:
        aie: from `average_indirect_effects`, one mediator and metric.
        metric: which.
    """
    found: dict[str, AveragePeak] = {}
    for role, cells in aie.groupby("role", observed=True):
        best = cells.iloc[peak_of(cells["aie"].to_numpy(), metric)]
        found[str(role)] = {"layer": int(best["layer"]), "aie": float(best["aie"])}
    return found


def peak_layers(effects: MediatorEffects, role: str, scheme: str, metric: str) -> Array:
    """The layer of each fact's strongest effect in one row, `(n_facts with the row,)`."""
    row = rows(scheme).index(role)
    have = effects.counts[:, row] > 0
    curves = effects.totals[have][:, METRICS.index(metric), row]
    return np.array([peak_of(curve, metric) for curve in curves], dtype=np.float64)


def subject_peak(
    effects: npt.NDArray[np.float32], span: tuple[int, int], metric: str
) -> SubjectPeak:
    """Of one fact. (At the prompt's last position, the last layers bring back everything.)

    Args:
        effects: `(n_layers, n_positions)`; NaN throughout gives the subject's first cell.
        span: first position of the subject, and one past its last.
        metric: which.
    """
    start, stop = span
    inside = effects[:, start:stop]
    layer, offset = np.unravel_index(peak_of(inside, metric), inside.shape)
    position = start + int(offset)
    return SubjectPeak(int(layer), position, float(effects[layer, position]))
