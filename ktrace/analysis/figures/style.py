"""What all figures share: sizes, colours, names, and how they are saved."""

import io
import warnings
from collections.abc import Sequence
from functools import lru_cache
from math import ceil
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ktrace.analysis.figures.files import KINDS, Saved
from ktrace.analysis.figures.fonts import use_installed_fonts
from ktrace.analysis.figures.look import Limits
from ktrace.analysis.palettes import Ramp
from ktrace.files import new_file
from ktrace.terms import lower_helps, metric_label

# Inches: figures go into a paper unscaled, so that letters of these points stay legible.
COLUMN_WIDTH, PAGE_WIDTH = 3.4, 6.9
TEXT, SMALL = 8, 7
_LETTERS_PER_INCH = 16.5  # of SMALL
_LETTERS_UPWARDS = 22  # beside a panel
_PANELS_ABREAST = 3

# Wong's palette for colour-blind readers; lines also differ in style.
PALETTE: list[tuple[float, float, float]] = sns.color_palette("colorblind")
Dashes = tuple[int, tuple[int, ...]]  # an offset; then lengths that are drawn and left out
LINE_STYLES: list[str | Dashes] = [
    *("-", (0, (4, 1)), (0, (1, 1))),
    *("-.", (0, (6, 2)), (0, (3, 1, 1, 1, 1, 1))),
]
_PIXELS_PER_INCH = 300
_COLOURS = 511  # steps of a scale
_STEPS = (1, 2, 5, 10, 20, 50)  # between layers that are named
_MOST_LAYERS_NAMED = 9


class Scale(NamedTuple):
    """The colour of each value."""

    colours: Colormap
    norm: Normalize


def panels(
    count: int,
    height: float,
    *,
    title: str,
    wide: bool = False,
    share_y: bool = True,
    abreast: int = _PANELS_ABREAST,
) -> tuple[Figure, list[Axes]]:
    """A figure with some panels.

    Args:
        count: of panels; a single one takes a column's width, several a page's.
        height: of a panel, in inches.
        title: above them all.
        wide: whether a single panel takes a page's width, too.
        share_y: whether all panels have the same y axis, which is labelled once a row.
        abreast: panels in a row, at most.

    Returns:
        The figure and the panels' axes.
    """
    abreast = min(count, abreast)
    n_rows = ceil(count / abreast)
    width = COLUMN_WIDTH if count == 1 and not wide else PAGE_WIDTH
    lines = [
        part
        for line in title.split("\n")
        for part in wrap(line, int(width * _LETTERS_PER_INCH), break_on_hyphens=False)
    ]
    figure = Figure(
        figsize=(width, height * n_rows + 0.16 * len(lines) + 0.1), layout="constrained"
    )
    grid = figure.subplots(n_rows, abreast, squeeze=False, sharey=share_y).ravel()
    for empty in grid[count:]:
        empty.remove()
    figure.suptitle("\n".join(lines), fontsize=SMALL, parse_math=False)
    return figure, list(grid[:count])


def is_leftmost(axis: Axes) -> bool:
    """Whether a panel stands first in its row, where what all share is written."""
    place = axis.get_subplotspec()
    return place is not None and place.is_first_col()


def limits_of(low: float, high: float) -> Limits:
    """Limits around values and zero; nothing is clipped."""
    low, high = min(0.0, low), max(0.0, high)
    return Limits(low, high if low < high else 1.0)


@lru_cache(maxsize=32)
def effect_scale(limits: Limits, ramp: Ramp, *, lower_helps: bool = False) -> Scale:
    """Colours to both sides of zero, which is light: the same size has the same strength.

    Args:
        limits: of the values.
        ramp: the colours.
        lower_helps: whether effects below zero are those that help.
    """
    below, above = (ramp.helps, ramp.hurts) if lower_helps else (ramp.hurts, ramp.helps)
    reach = max(-limits.low, limits.high)
    sides = [*reversed(below[1:]), *above]
    whole = LinearSegmentedColormap.from_list("effects", sides, N=2 * _COLOURS)
    low, high = (0.5 + 0.5 * bound / reach for bound in limits)
    colours = LinearSegmentedColormap.from_list(
        "effects", whole(np.linspace(low, high, _COLOURS)), N=_COLOURS
    )
    return Scale(colours, Normalize(*limits))


def colour_bar(figure: Figure, axes: Sequence[Axes], scale: Scale, label: str) -> None:
    """One bar for all panels that are on one scale."""
    alone = len(axes) == 1
    bar = figure.colorbar(
        ScalarMappable(norm=scale.norm, cmap=scale.colours),
        ax=list(axes),
        fraction=0.08 if alone else 0.05,
        pad=0.03 if alone else 0.02,
        aspect=20 if figure.get_figheight() < figure.get_figwidth() else 40,
    )
    bar.set_label(label, fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)


def value_label(quantity: str, metric: str) -> str:
    """What an axis or a colour bar shows, in lines that fit beside a panel: `AIE (logit)`."""
    sign = "; negative helps" if lower_helps(metric) else ""
    return "\n".join(wrap(f"{quantity} ({metric_label(metric)}{sign})", _LETTERS_UPWARDS))


def label_layers(axis: Axes, n_layers: int, *, centred: bool = False) -> None:
    """Whole layers on the x axis; `centred` where cells are drawn from l to l + 1."""
    step = next(one for one in (*_STEPS, n_layers) if n_layers / one <= _MOST_LAYERS_NAMED)
    layers = range(0, n_layers, step)
    axis.set_xticks([layer + 0.5 * centred for layer in layers], [str(layer) for layer in layers])
    axis.set_xlabel("layer", fontsize=SMALL)
    axis.tick_params(labelsize=SMALL, rotation=0, length=2)


def panel_title(axis: Axes, title: str) -> None:
    """What a panel shows; nothing above it could be in the way, which takes long to find out."""
    axis.set_title(title, fontsize=TEXT, parse_math=False, y=1.0)


def plain_axis(axis: Axes, title: str) -> None:
    """A panel of curves or bars."""
    panel_title(axis, title)
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


def shown_by_jupyter(figure: Figure) -> Figure:
    """The same figure for Jupyter, where one that pyplot does not know would show as its name."""

    def png() -> bytes:
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=120)
        return stream.getvalue()

    setattr(figure, "_repr_png_", png)  # noqa: B010
    return figure


def save(figure: Figure, stem: Path) -> Saved:
    """Write PNG, PDF and SVG. The same numbers give the same files."""
    lacking = use_installed_fonts(figure)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in _WRITERS]
    # Without a salt, the names inside an SVG are random. Journals refuse fonts of Type 3: 42 is
    # TrueType.
    settings = mpl.rc_context({"svg.hashsalt": "ktrace", "pdf.fonttype": 42})
    with warnings.catch_warnings(), settings:
        # One note says it of all figures.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # Laid out once, and drawn once for each kind: `savefig` would do both twice, each time.
        layout = figure.get_layout_engine()
        if layout is not None:
            layout.execute(figure)
        figure.set_layout_engine("none")
        figure.set_dpi(_PIXELS_PER_INCH)
        for path, write in zip(paths, _WRITERS.values(), strict=True):
            with new_file(path) as temporary:
                write(figure, temporary)
    return Saved(paths, lacking)


def _write_png(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure).print_png(path)  # type: ignore[no-untyped-call]


def _write_pdf(figure: Figure, path: Path) -> None:
    FigureCanvasPdf(figure).print_pdf(path, metadata={"CreationDate": None})  # type: ignore[no-untyped-call]


def _write_svg(figure: Figure, path: Path) -> None:
    FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})  # type: ignore[no-untyped-call]


_WRITERS = dict(zip(KINDS, (_write_png, _write_pdf, _write_svg), strict=True))
