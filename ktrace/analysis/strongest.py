"""The strongest of some effects: of any, of a fact inside its subject, of a layer's heads.

Axes are those of per_fact.py.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ktrace.analysis.clusters import Array
from ktrace.terms import effects_fall


class SubjectPeak(NamedTuple):
    """A fact's strongest effect at a position of its subject."""

    layer: int
    position: int
    effect: float


def peak_of(values: npt.NDArray[np.floating], metric: str, key: str) -> int:
    """Flat index of a mediator's strongest effect, which is its lowest where effects fall.

    NaN, where it did not act, is never the strongest; of NaN alone the first is.
    """
    strength = -values if effects_fall(metric, key) else values
    return int(np.argmax(np.where(np.isnan(strength), -np.inf, strength)))


def strongest_heads(values: Array, effects: Array) -> Array:
    """Of the head with the largest effect in each layer and place, of either sign.

    Args:
        values: `(..., n_layers, n_heads, n_places)`.
        effects: that decide; likewise, with one entry on axes that they do not hang on. Heads that
            a layer has not are NaN, and never the strongest.

    Returns:
        `(..., n_layers, n_places)`.
    """
    strength = np.nan_to_num(np.abs(effects), nan=-1.0)
    chosen: Array = np.take_along_axis(values, strength.argmax(axis=-2, keepdims=True), axis=-2)
    found: Array = chosen[..., 0, :]
    return found


def subject_peak(
    effects: npt.NDArray[np.float32], span: tuple[int, int], metric: str, key: str
) -> SubjectPeak:
    """Of one fact. (At the prompt's last position, the last layers bring back everything.)

    Args:
        effects: `(n_layers, n_positions)`; NaN throughout gives the subject's first cell.
        span: first position of the subject, and one past its last.
        metric: which.
        key: of the mediator.
    """
    start, stop = span
    inside = effects[:, start:stop]
    layer, offset = np.unravel_index(peak_of(inside, metric, key), inside.shape)
    position = start + int(offset)
    return SubjectPeak(int(layer), position, float(effects[layer, position]))
