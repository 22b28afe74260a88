"""How a heatmap shows its values, in words: what draws it is in heatmaps.py.

Without matplotlib, which takes a second to load: see processes.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ktrace.analysis.palettes import PALETTES
from ktrace.errors import KtraceError


class Limits(NamedTuple):
    """The lowest and the highest value that a colour bar shows; zero lies between them."""

    low: float
    high: float


class Prompt(NamedTuple):
    """The rows of one fact's heatmap.

    Attributes:
        tokens: of the prompt, `(n_positions,)`.
        subject: first position of the subject, and one past its last.
    """

    tokens: Sequence[str]
    subject: tuple[int, int]


@dataclass(frozen=True)
class Look:
    """How a heatmap shows its values.

    Attributes:
        metric: of the values.
        palette: one of `ktrace.analysis.palettes.PALETTES`.
        limits: of the colours; None for those of the values and zero.
        quantity: what the values of one fact are.
    """

    metric: str
    palette: str = "shared"
    limits: Limits | None = None
    quantity: str = "IE"


def probability_text(value: float) -> str:
    """Three digits after the point, or the first two that say something: 0.997, 0.0049, 4.9e-05."""
    return f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:.3f}"


def chosen_look(
    metric: str, palette: str, limits: tuple[float, float] | None, quantity: str = "IE"
) -> Look:
    """A look from what a person gives.

    Raises:
        KtraceError: an unknown palette, or limits without 0 between them.
    """
    if palette not in PALETTES:
        raise KtraceError(f"palette={palette!r} is unknown: choose from {', '.join(PALETTES)}")
    if limits is None:
        return Look(metric, palette, quantity=quantity)
    low, high = limits
    if not low <= 0 <= high or low == high:
        raise KtraceError(f"limits={limits} must have 0 between them, which is the light colour")
    return Look(metric, palette, Limits(low, high), quantity)
