"""What all figures share: sizes, colours, names, and how they are saved."""

import re
import warnings
from collections.abc import Collection, Sequence
from math import ceil
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ktrace.files import new_file

# Inches: figures go into a paper unscaled, so that letters of these points stay legible.
COLUMN_WIDTH, PAGE_WIDTH = 3.4, 6.9
TEXT, SMALL = 8, 7
_LETTERS_PER_INCH = 16.5  # of SMALL
_PANELS_ABREAST = 3

# Wong's palette for colour-blind readers; lines also differ in style.
PALETTE: list[tuple[float, float, float]] = sns.color_palette("colorblind")
Dashes = tuple[int, tuple[int, ...]]  # an offset; then lengths that are drawn and left out
LINE_STYLES: list[str | Dashes] = [
    *("-", (0, (4, 1)), (0, (1, 1))),
    *("-.", (0, (6, 2)), (0, (3, 1, 1, 1, 1, 1))),
]
# Lightness alone tells the value, so that the scale survives grey print. Light is no effect.
_RISING, _FALLING, _DIVERGING = "mako_r", "mako", "PuOr_r"
_BOTH_SIGNS = 0.1  # the weaker sign counts from this share of the stronger on


class Scale(NamedTuple):
    """The colour of each value."""

    colours: Colormap
    norm: Normalize


def panels(count: int, height: float, *, title: str) -> tuple[Figure, list[Axes]]:
    """A figure with some panels on the same y axis, three abreast at most.

    Args:
        count: of panels; a single one takes a column's width, several a page's.
        height: of a panel, in inches.
        title: above them all.

    Returns:
        The figure and the panels' axes.
    """
    abreast = min(count, _PANELS_ABREAST)
    n_rows = ceil(count / abreast)
    width = COLUMN_WIDTH if count == 1 else PAGE_WIDTH
    lines = [
        part
        for line in title.split("\n")
        for part in wrap(line, int(width * _LETTERS_PER_INCH), break_on_hyphens=False)
    ]
    figure = Figure(
        figsize=(width, height * n_rows + 0.16 * len(lines) + 0.1), layout="constrained"
    )
    grid = figure.subplots(n_rows, abreast, squeeze=False, sharey=True).ravel()
    for empty in grid[count:]:
        empty.remove()
    figure.suptitle("\n".join(lines), fontsize=SMALL, parse_math=False)
    return figure, list(grid[:count])


def is_leftmost(axis: Axes) -> bool:
    """Whether a panel stands first in its row, where what all share is written."""
    place = axis.get_subplotspec()
    return place is not None and place.is_first_col()


def value_scale(low: float, high: float) -> Scale:
    """Colours from zero to the strongest effect; nothing is clipped.

    Where effects of both signs count, colours go to both sides of zero.
    """
    low, high = min(0.0, low), max(0.0, high)
    if low == high:
        high = 1.0
    if min(-low, high) > _BOTH_SIGNS * max(-low, high):
        return difference_scale(max(-low, high))
    colours = sns.color_palette(_FALLING if -low > high else _RISING, as_cmap=True)
    return Scale(colours, Normalize(low, high))


def difference_scale(largest: float) -> Scale:
    """Colours to both sides of zero."""
    norm = Normalize(-(largest or 1.0), largest or 1.0)
    return Scale(sns.color_palette(_DIVERGING, as_cmap=True), norm)


def colour_bar(figure: Figure, axes: Sequence[Axes], scale: Scale, label: str) -> None:
    """One bar for all panels: they are on one scale."""
    bar = figure.colorbar(
        ScalarMappable(norm=scale.norm, cmap=scale.colours), ax=list(axes), fraction=0.05, pad=0.02
    )
    bar.set_label(label, fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)


def label_layers(axis: Axes, n_layers: int, *, centred: bool = False) -> None:
    """Whole layers on the x axis; `centred` where cells are drawn from l to l + 1."""
    step = max(1, ceil(n_layers / 7))
    layers = range(0, n_layers, step)
    axis.set_xticks([layer + 0.5 * centred for layer in layers], [str(layer) for layer in layers])
    axis.set_xlabel("layer", fontsize=SMALL)
    axis.tick_params(labelsize=SMALL, rotation=0, length=2)


def plain_axis(axis: Axes, title: str) -> None:
    """A panel of curves or bars."""
    axis.set_title(title, fontsize=TEXT)
    axis.axhline(0, color="0.6", linewidth=0.6, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=SMALL, length=2)


def whole_numbers(axis: Axes) -> None:
    """Counts on the y axis."""
    axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def legend_below(figure: Figure, axis: Axes, n_columns: int) -> None:
    """One legend for all panels, under them."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=n_columns,
        fontsize=SMALL,
        frameon=False,
        handlelength=2.2,
        columnspacing=1.2,
    )


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write PNG and PDF; returns their paths. The same numbers give the same files."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "pdf")]
    for path in paths:
        kind = path.suffix[1:]
        metadata = {"CreationDate": None} if kind == "pdf" else None
        with new_file(path) as temporary, warnings.catch_warnings():
            # A token in a script that the font lacks is shown as a box.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(temporary, format=kind, dpi=300, metadata=metadata)
    return paths


def remove_older(folder: Path, names: re.Pattern[str], drawn: Collection[Path]) -> None:
    """Remove figures of what is no longer drawn: they would contradict the tables.

    Args:
        folder: where the figures lie. Other files in it are the user's.
        names: of figures, without their suffix.
        drawn: figures that stay.
    """
    for kind in ("png", "pdf"):
        for path in folder.glob(f"*.{kind}"):
            if path not in drawn and names.fullmatch(path.stem):
                path.unlink(missing_ok=True)  # another process may do the same
