"""Heatmaps: roles or tokens down, layers across.

Axes: n_layers, of a model; n_positions, of a prompt.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ktrace.analysis.figures.look import Limits, Look, Prompt
from ktrace.analysis.figures.style import (
    COLUMN_WIDTH,
    SMALL,
    Scale,
    colour_bar,
    effect_scale,
    is_leftmost,
    label_layers,
    limits_of,
    panel_title,
    panels,
    value_label,
)
from ktrace.analysis.palettes import panel_place, ramp_of
from ktrace.analysis.tokens import shortened, visible
from ktrace.errors import KtraceError
from ktrace.terms import lower_helps, mediator_title

_ROW_HEIGHT = 0.15  # inches: a line of text
_TOP_AND_BOTTOM = 0.55
# As the published figure calls its rows (Meng et al. 2022, figure 2).
_ROME_ROLES = {
    "first subject": "First subject token",
    "middle subject": "Middle subject tokens",
    "last subject": "Last subject token",
    "first subsequent": "First subsequent token",
    "further": "Further tokens",
    "last": "Last token",
}


def aie_heatmaps(
    aie: pd.DataFrame, *, keys: Sequence[str], roles: Sequence[str], title: str, look: Look
) -> Figure:
    """One panel for each mediator, all on one scale.

    Args:
        aie: from `average_indirect_effects`, one metric.
        keys: mediators, in the order of the panels; `rome` has MLP before attention.
        roles: rows.
        title: stands above the panels.
        look: colours.
    """
    keys = sorted(keys, key=lambda key: panel_place(look.palette, key))
    grids = [_grid(aie[aie["mediator"] == key], roles) for key in keys]
    limits = _limits(grids)
    height = _TOP_AND_BOTTOM + _ROW_HEIGHT * len(roles)
    figure, axes = panels(len(keys), height, title=title, share_y=False)
    for axis, key, grid in zip(axes, keys, grids, strict=True):
        _panel(axis, grid, scale_of(look, key, limits))
        _name_rows(axis, mediator_title(key), grid, look)
        label_layers(axis, grid.shape[1], centred=True)
    if look.palette == "rome":  # each panel has colours of its own
        for axis, key in zip(axes, keys, strict=True):
            colour_bar(figure, [axis], scale_of(look, key, limits), _label(look, "AIE"))
    else:
        colour_bar(figure, axes, scale_of(look, keys[0], limits), _label(look, "AIE"))
    return figure


def named_heatmaps(
    grids: Mapping[str, pd.DataFrame],
    *,
    key: str,
    title: str,
    look: Look,
    by_depth: bool = False,
    abreast: int = 3,
) -> Figure:
    """Heatmaps of one mediator on one scale: of several models, noises, relations or roles.

    Args:
        grids: by the panel's title; roles down, or what the index is called, columns by layer. Each
            is drawn as wide as any other, whatever its number of layers.
        key: the mediator.
        title: stands above the panels.
        look: colours.
        by_depth: whether relative depth stands below, for models of which layer l of one is not
            layer l of the other.
        abreast: panels in a row, at most.
    """
    scale = scale_of(look, key, _limits(list(grids.values())))
    n_rows = max(len(grid) for grid in grids.values())
    height = _TOP_AND_BOTTOM + _ROW_HEIGHT * n_rows
    figure, axes = panels(len(grids), height, title=title, share_y=False, abreast=abreast)
    for number, (axis, (name, grid)) in enumerate(zip(axes, grids.items(), strict=True)):
        _panel(axis, grid, scale)
        _name_rows(axis, name, grid, look)
        if grid.index.name != "role" and is_leftmost(axis):
            axis.set_ylabel(str(grid.index.name), fontsize=SMALL)
        if by_depth:
            _label_depth(axis, grid.shape[1])
        elif number + abreast >= len(axes):  # those above are of the same layers
            label_layers(axis, grid.shape[1], centred=True)
    colour_bar(figure, axes, scale, _label(look, "AIE"))
    return figure


def difference_heatmap(
    differences: Mapping[str, pd.DataFrame],
    *,
    roles: Sequence[str],
    key: str,
    title: str,
    look: Look,
    by_depth: bool = True,
) -> Figure:
    """Differences of two runs, with a mark on the cells that differ.

    Args:
        differences: by the panel's title, with columns `role, depth, difference, beyond,
            beyond_all`: an open dot marks the cells whose own interval excludes 0, a filled one
            those that are apart when all cells are looked at together.
        roles: rows.
        key: the mediator.
        title: stands above the panels.
        look: colours.
        by_depth: as in `named_heatmaps`.
    """
    tables = {name: frame.set_index(["role", "depth"]) for name, frame in differences.items()}

    def in_cells(name: str, column: str) -> pd.DataFrame:
        grid: pd.DataFrame = tables[name][column].unstack("depth").reindex(list(roles))
        return grid

    grids = {name: in_cells(name, "difference") for name in tables}
    reach = max(float(np.nanmax(np.abs(grid.to_numpy()))) for grid in grids.values()) or 1.0
    scale = scale_of(look, key, Limits(-reach, reach))
    height = _TOP_AND_BOTTOM + _ROW_HEIGHT * len(roles)
    figure, axes = panels(len(grids), height, title=title, share_y=False)
    for axis, (name, grid) in zip(axes, grids.items(), strict=True):
        _panel(axis, grid, scale)
        _mark(axis, in_cells(name, "beyond"), "white")
        _mark(axis, in_cells(name, "beyond_all"), "black")
        _name_rows(axis, name, grid, look)
        if by_depth:
            _label_depth(axis, grid.shape[1])
        else:
            label_layers(axis, grid.shape[1], centred=True)
    colour_bar(figure, axes, scale, _label(look, "difference of AIE"))
    return figure


def method_map(profiles: pd.DataFrame, *, title: str) -> Figure:
    """Methods down, layers across: where each is strongest, and where its peak may lie.

    Args:
        profiles: from `ktrace.analysis.methods.method_profiles`.
        title: stands above.
    """
    order = list(profiles["method"].unique())
    grid, named = (
        profiles.pivot(index="method", columns="layer", values=name).reindex(order)
        for name in ("share", "named")
    )
    look = Look("share", "shared", Limits(min(0.0, float(np.nanmin(grid))), 1.0))
    scale = scale_of(look, "hidden", look.limits or Limits(0.0, 1.0))
    height = _TOP_AND_BOTTOM + 0.75 * _ROW_HEIGHT * len(grid)
    figure, axes = panels(1, height, title=title, wide=True)
    _panel(axes[0], grid, scale)
    _name_rows(axes[0], "", grid, look)
    for row, column in np.argwhere(named.to_numpy(dtype=bool, na_value=False)):
        axes[0].plot(
            *(column + 0.5, row + 0.5, "o"), color="black", markeredgecolor="white", markersize=4.5
        )
    label_layers(axes[0], grid.shape[1], centred=True)
    colour_bar(figure, axes, scale, "share of the row's strongest AIE")
    return figure


def fact_heatmap(
    effects: npt.NDArray[np.floating],
    prompt: Prompt,
    *,
    key: str,
    title: str,
    look: Look,
    axis: Axes | None = None,
) -> Figure:
    """Indirect effects of one fact: tokens down, layers across, the subject marked.

    Args:
        effects: `(n_layers, n_positions)`.
        prompt: the rows.
        key: the mediator.
        title: stands above the panel.
        look: colours.
        axis: where to draw; None makes a figure.

    Raises:
        KtraceError: `axis` is something else, such as an array of axes.
    """
    given = axis
    if not isinstance(axis, Axes | None):
        raise KtraceError(f"ax={type(axis).__name__} is no axes of matplotlib: give one, as axs[0]")
    if axis is None:
        height = _TOP_AND_BOTTOM + _ROW_HEIGHT * len(prompt.tokens)
        figure, [axis] = panels(1, height, title=title)
    else:
        figure = axis.figure.canvas.figure  # of a subfigure the whole one, in any matplotlib
        panel_title(axis, title)
    scale = scale_of(look, key, limits_of(float(np.nanmin(effects)), float(np.nanmax(effects))))
    _panel(axis, pd.DataFrame(effects.T), scale)
    start, stop = prompt.subject
    names = [
        shortened(visible(token)) + ("*" if start <= position < stop else "")
        for position, token in enumerate(prompt.tokens)
    ]
    axis.set_yticks(np.arange(len(names)) + 0.5, names, rotation=0)
    for position, text in enumerate(axis.get_yticklabels()):
        text.set_parse_math(False)
        text.set_fontweight("bold" if start <= position < stop else "normal")
    axis.axhline(start, color="black", linewidth=0.6, linestyle="--")
    axis.axhline(stop, color="black", linewidth=0.6, linestyle="--")
    label_layers(axis, len(effects), centred=True)
    axis.tick_params(axis="y", labelsize=SMALL)
    colour_bar(figure, [axis], scale, _label(look, look.quantity))
    if given is None:
        figure.set_figwidth(COLUMN_WIDTH)
    return figure


def scale_of(look: Look, key: str, limits: Limits) -> Scale:
    """The colours of one mediator."""
    ramp = ramp_of(look.palette, key)
    return effect_scale(look.limits or limits, ramp, lower_helps=lower_helps(look.metric))


def _label(look: Look, quantity: str) -> str:
    """Of a colour bar: `AIE (probability)`."""
    if look.palette == "rome" and look.metric == "probability":
        return quantity
    return value_label(quantity, look.metric)


def _row(look: Look, role: str) -> str:
    """What a row is called."""
    return _ROME_ROLES.get(role, role) if look.palette == "rome" else role


def _grid(cells: pd.DataFrame, roles: Sequence[str]) -> pd.DataFrame:
    grid: pd.DataFrame = cells.pivot(index="role", columns="layer", values="aie").reindex(roles)
    return grid


def _limits(grids: Sequence[pd.DataFrame]) -> Limits:
    return limits_of(
        min(float(np.nanmin(grid.to_numpy())) for grid in grids),
        max(float(np.nanmax(grid.to_numpy())) for grid in grids),
    )


def _panel(axis: Axes, grid: pd.DataFrame, scale: Scale) -> None:
    bare = {"cbar": False, "xticklabels": False, "yticklabels": False}
    sns.heatmap(grid.to_numpy(dtype=float), ax=axis, cmap=scale.colours, norm=scale.norm, **bare)
    # Cells without facts are told from cells of no effect.
    axis.set_facecolor("0.85")
    # White is no effect: an outline says where the panel ends.
    for spine in axis.spines.values():
        spine.set(visible=True, color="0.6", linewidth=0.5)


def _mark(axis: Axes, marked: pd.DataFrame, colour: str) -> None:
    rows, columns = np.nonzero((marked == True).to_numpy())  # noqa: E712  # NaN is no mark
    place = (columns + 0.5, rows + 0.5)
    axis.scatter(*place, s=9, color=colour, edgecolors="black", linewidths=0.5)


def _label_depth(axis: Axes, n_layers: int) -> None:
    # The first layer's middle is depth 0, the last one's is depth 1.
    places = 0.5 + np.array([0, 0.5, 1]) * (n_layers - 1)
    axis.set_xticks(places, ["0", "0.5", "1"])
    axis.set_xlabel("relative depth", fontsize=SMALL)


def _name_rows(axis: Axes, name: str, grid: pd.DataFrame, look: Look) -> None:
    panel_title(axis, name)
    axis.tick_params(labelsize=SMALL, rotation=0, length=2)
    axis.set_ylabel("")
    # Said once a row. Ticks take most of the time that a figure takes.
    rows = [str(role) for role in grid.index] if is_leftmost(axis) else []
    axis.set_yticks(np.arange(len(rows)) + 0.5, [_row(look, role) for role in rows], rotation=0)
