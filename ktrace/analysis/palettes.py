"""Colours of effects, the same on the page and in the figures: light is zero, each sign has a hue.

What helps has one hue and what hurts another, whatever the sign of the metric: restoring a state
that helps makes a divergence fall and everything else rise.
"""

from typing import NamedTuple

PALETTES = ("shared", "rome")


class Ramp(NamedTuple):
    """Colours as `#rrggbb`, from no effect to the strongest; both begin with the same colour.

    Attributes:
        helps: of effects that bring the answer back.
        hurts: of effects that take it away.
    """

    helps: tuple[str, ...]
    hurts: tuple[str, ...]


_ORANGES = ("#ffffff", "#fde3bd", "#f7ba6b", "#e08214", "#b35806", "#7f3b08")
_BLUES = ("#ffffff", "#d6e6f4", "#9ecae1", "#4f9bcb", "#2161a6", "#08306b")
# Lightness falls evenly, so that grey print tells the size, and purple is told from orange with
# every kind of colour vision.
_SHARED = Ramp(("#ffffff", "#d3d3ec", "#a29ad0", "#745bb0", "#4c2884", "#2d0b59"), _ORANGES)

# The hues of Meng et al. 2022, figure 2 (ColorBrewer's Purples, Greens and Reds), from white on.
# There the lightest colour is the lowest value, here it is zero.
_PURPLES = Ramp(("#ffffff", "#dadaeb", "#b0aed2", "#8380bb", "#61409b", "#3f007d"), _ORANGES)
_GREENS = Ramp(("#ffffff", "#c7e9c0", "#8ed08b", "#3fa85b", "#0e7735", "#00441b"), _ORANGES)
_REDS = Ramp(("#ffffff", "#fcc6b0", "#fb8a6a", "#ee3f2e", "#b31217", "#67000d"), _BLUES)
# By words of a mediator's key; the last that is found counts, so that a severed variant has the
# hue of what is severed, as in the published figure.
_ROME = {"hidden": _PURPLES, "mlp": _GREENS, "attn": _REDS}


def ramp_of(palette: str, key: str) -> Ramp:
    """The colours of one mediator.

    Args:
        palette: one of `PALETTES`.
        key: the mediator's, such as `mlp-w10`.
    """
    if palette == "shared":
        return _SHARED
    found = [ramp for word, ramp in _ROME.items() if word in key]
    return found[-1] if found else _SHARED


def panel_place(palette: str, key: str) -> int:
    """Sorts mediators into the order of a palette's panels; equal ones keep the order they have.

    The published figures have MLP before attention; otherwise panels stand as everywhere.
    """
    if palette == "shared":
        return 0
    words = [number for number, word in enumerate(_ROME) if word in key]
    return words[-1] if words else len(_ROME)
