"""Lines and histograms over layers."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ktrace.analysis.figures.style import (
    LINE_STYLES,
    PALETTE,
    SMALL,
    Dashes,
    is_leftmost,
    label_layers,
    legend_below,
    panels,
    plain_axis,
    shown_by_jupyter,
    value_label,
    whole_numbers,
)
from ktrace.errors import KtraceError
from ktrace.terms import METRICS, ROLES, mediator_title, panel_order

_HEIGHT = 1.75
# Of this many layers on, a panel of its own takes a page's width.
_MANY_LAYERS = 20
# What the published findings are about, as a role or as sources: the strongest line.
_KEY_LINES = ("last subject", "subject")
_KEY_COLOUR = (0.14, 0.04, 0.28)


class _Pen(NamedTuple):
    """How a line is drawn."""

    colour: tuple[float, float, float]
    style: str | Dashes
    width: float
    band: float  # opacity


def role_lines(
    aie: pd.DataFrame,
    *,
    keys: Sequence[str],
    roles: Sequence[str],
    title: str,
    metric: str,
    quantity: str = "",
) -> Figure:
    """AIE over layers, a line with its interval for each role, a panel for each mediator.

    Args:
        aie: one metric, with columns `mediator, role, layer, aie, ci_low, ci_high`.
        keys: mediators, in the order of the panels.
        roles: lines.
        title: stands above the panels.
        metric: names the y axis.
        quantity: names it in place of the AIE in that metric.
    """
    n_layers = int(aie["layer"].max()) + 1
    wide = n_layers >= _MANY_LAYERS
    figure, axes = panels(len(keys), _HEIGHT + 0.3 * wide, title=title, wide=wide)
    pens = _pens(roles)
    for axis, key in zip(axes, keys, strict=True):
        plain_axis(axis, mediator_title(key))
        cells = aie[aie["mediator"] == key]
        for number, (role, pen) in enumerate(pens.items()):
            line = cells[cells["role"] == role]
            _curve(axis, line, "aie", pen, label=role, place=_place(number, len(pens)))
        label_layers(axis, n_layers)
        if is_leftmost(axis):
            axis.set_ylabel(quantity or value_label("AIE", metric), fontsize=SMALL)
    narrow = len(keys) == 1 and not wide
    legend_below(figure, axes[0], 3 - (len(roles) == 4) if narrow else len(roles))
    return figure


def plot_lines(averages: pd.DataFrame, metric: str = METRICS[0], *, title: str = "") -> Figure:
    """Averages over layers as lines with their intervals: a panel a mediator, a line a role.

    >>> averages = ktrace.average("outputs/tiny/facts/gaussian-x3-n10-seed1", metric="logit")
    >>> ktrace.plot_lines(averages, metric="logit").savefig("lines.png")

    Args:
        averages: what `ktrace.average` gives by `mediator, role, layer`.
        metric: that of the averages; it names the y axis.
        title: stands above the panels.

    Returns:
        A matplotlib figure, which Jupyter shows and `.savefig(path)` writes.

    Raises:
        KtraceError: a column is missing, there is no row, or several for one point of a line.
    """
    needed = ("mediator", "role", "layer", "aie", "ci_low", "ci_high")
    columns = averages.columns if isinstance(averages, pd.DataFrame) else ()
    lacking = [name for name in needed if name not in columns]
    if lacking or averages.empty:
        what = f"lacks {', '.join(lacking)}" if lacking else "has no row"
        raise KtraceError(
            f"averages {what}: give what ktrace.average returns by mediator, role, layer"
        )
    _require_one_row_a_point(averages)
    keys = sorted(averages["mediator"].unique(), key=panel_order)
    found = list(averages["role"].unique())
    roles = sorted(found, key=lambda role: ROLES.index(role) if role in ROLES else len(ROLES))
    ordered = averages.sort_values("layer")
    return shown_by_jupyter(role_lines(ordered, keys=keys, roles=roles, title=title, metric=metric))


def _require_one_row_a_point(averages: pd.DataFrame) -> None:
    """Refuse what would be one line through several: averages by a further column."""
    point = ["mediator", "role", "layer"]
    again = averages[averages.duplicated(point, keep=False)]
    if again.empty:
        return
    where = again.iloc[0][point]
    several = again[(again[point] == where).all(axis=1)]
    estimates = ("aie", "ci_low", "ci_high", "n_facts", "n_clusters", "ci_over", "ci_note")
    further = [
        name
        for name in averages.columns
        if name not in (*point, *estimates) and several[name].nunique(dropna=False) > 1
    ]
    apart = (
        f"which differ in {', '.join(further)}: take one, as "
        f"averages[averages[{further[0]!r}] == {several[further[0]].iloc[0]!r}]"
        if further
        else "and no column tells them apart: a line takes one"
    )
    raise KtraceError(
        f"averages has {len(several)} rows for {where['mediator']}, {where['role']}, layer "
        f"{where['layer']}, {apart}"
    )


def severed_lines(
    aie: pd.DataFrame,
    differences: pd.DataFrame,
    *,
    keys: Sequence[str],
    role: str,
    title: str,
    metric: str,
) -> Figure:
    """Hidden states whole and severed at one role, and beside them what severing takes away.

    The intervals of two averages may overlap where the difference of each fact's two effects is
    never 0, so that difference has a panel and an interval of its own.

    Args:
        aie: one metric, with columns `mediator, role, layer, aie, ci_low, ci_high`.
        differences: of the same metric, with columns `left, right, role, layer, difference, ci_low,
            ci_high, beyond, beyond_all`: whole minus severed. Marks are as in
            `ktrace.analysis.figures.heatmaps.difference_heatmap`.
        keys: mediators, one colour each, in the same order as the lines.
        role: which cells, usually `last subject`.
        title: stands above the panels.
        metric: names the y axes.
    """
    figure, axes = panels(2, _HEIGHT + 0.3, title=title, share_y=False)
    n_layers = int(aie["layer"].max()) + 1
    whole = _Pen(_KEY_COLOUR, "-", 1.8, 0.2)
    severed = [
        _Pen(PALETTE[number], style, 1.3, 0.2)
        for number, style in zip((1, 2, 0), LINE_STYLES[1:], strict=False)
    ]
    pens = dict(zip(keys, [whole, *severed], strict=False))
    plain_axis(axes[0], f"at the {role} token")
    plain_axis(axes[1], "whole minus severed, fact by fact")
    for number, (key, pen) in enumerate(pens.items()):
        place = _place(number, len(keys))
        cells = aie[(aie["mediator"] == key) & (aie["role"] == role)]
        _curve(axes[0], cells, "aie", pen, label=mediator_title(key), place=place)
        apart = differences[(differences["right"] == key) & (differences["role"] == role)]
        if len(apart):
            _curve(axes[1], apart, "difference", pen, label="", place=place)
            _mark(axes[1], apart, pen, place)
    for axis in axes:
        label_layers(axis, n_layers)
    axes[0].set_ylabel(value_label("AIE", metric), fontsize=SMALL)
    axes[1].set_ylabel(value_label("difference", metric), fontsize=SMALL)
    legend_below(figure, axes[0], len(keys))
    return figure


def peak_histogram(
    peaks: Mapping[str, Mapping[str, npt.NDArray[np.float64]]], *, n_layers: int, title: str
) -> Figure:
    """At which layer the effect of each fact is strongest: an average hides how they differ.

    Args:
        peaks: by mediator and role, the peak layer of each fact.
        n_layers: of the model.
        title: stands above the panels.
    """
    figure, axes = panels(len(peaks), _HEIGHT, title=title)
    edges = np.arange(n_layers + 1) - 0.5
    colours = (_KEY_COLOUR, PALETTE[1])
    for axis, (key, by_role) in zip(axes, peaks.items(), strict=True):
        plain_axis(axis, mediator_title(key))
        for number, (role, layers) in enumerate(by_role.items()):
            axis.hist(
                layers,
                bins=list(edges),
                color=colours[number],
                alpha=0.6 if number == 0 else 1.0,
                histtype="stepfilled" if number == 0 else "step",
                linewidth=1.3,
                label=role,
            )
        label_layers(axis, n_layers)
        whole_numbers(axis)
        if is_leftmost(axis):
            axis.set_ylabel("facts", fontsize=SMALL)
    legend_below(figure, axes[0], 2)
    return figure


def _pens(roles: Sequence[str]) -> dict[str, _Pen]:
    """The key role in a dark, broad line; the others thinner, each with a colour and dashes."""
    pens = {}
    others = cycle(zip((PALETTE[i] for i in (1, 2, 3, 7, 0)), LINE_STYLES[1:], strict=True))
    for role in roles:
        if role in _KEY_LINES:
            pens[role] = _Pen(_KEY_COLOUR, "-", 2.0, 0.25)
        else:
            colour, style = next(others)
            pens[role] = _Pen(colour, style, 1.0, 0.12)
    return pens


def _place(number: int, count: int) -> float:
    """How far a marker stands from its layer, where several would stand on each other."""
    return (number - (count - 1) / 2) * 0.8 / count


def _curve(
    axis: Axes, line: pd.DataFrame, column: str, pen: _Pen, *, label: str, place: float
) -> None:
    """A line with its band; of a single layer, a marker with a bar."""
    layers = line["layer"].to_numpy(dtype=float)
    values, low, high = (line[c].to_numpy(dtype=float) for c in (column, "ci_low", "ci_high"))
    strongest = pen.width >= 1.8
    order = 4 if strongest else 3
    if len(layers) == 1:
        x = layers + place
        axis.vlines(x, low, high, color=pen.colour, linewidth=pen.width, zorder=order)
        axis.plot(
            *(x, values),
            color=pen.colour,
            marker="o",
            markersize=5 if strongest else 3.5,
            linestyle="none",
            label=label,
            zorder=order,
        )
        axis.set_xlim(-0.7, 0.7)
        return
    axis.fill_between(layers, low, high, color=pen.colour, alpha=pen.band, lw=0)
    axis.plot(
        *(layers, values),
        color=pen.colour,
        linestyle=pen.style,
        linewidth=pen.width,
        label=label,
        zorder=order,
    )


def _mark(axis: Axes, apart: pd.DataFrame, pen: _Pen, place: float) -> None:
    for column, colour, size in (("beyond", "white", 12), ("beyond_all", pen.colour, 12)):
        marked = apart[apart[column].fillna(False).astype(bool)]
        layers = marked["layer"].to_numpy(dtype=float) + place * (len(apart) == 1)
        axis.scatter(
            *(layers, marked["difference"].to_numpy(dtype=float)),
            s=size,
            color=[colour],
            edgecolors=[pen.colour],
            linewidths=0.8,
            zorder=5,
        )
