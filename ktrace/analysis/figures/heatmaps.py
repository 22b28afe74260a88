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

from ktrace.analysis.figures.style import (
    COLUMN_WIDTH,
    SMALL,
    TEXT,
    Scale,
    colour_bar,
    difference_scale,
    is_leftmost,
    label_layers,
    panels,
    value_scale,
)
from ktrace.terms import mediator_title, metric_title

_ROW_HEIGHT = 0.15  # inches: a line of text
_TOP_AND_BOTTOM = 0.55


def aie_heatmaps(
    aie: pd.DataFrame, *, keys: Sequence[str], roles: Sequence[str], title: str, metric: str
) -> Figure:
    """One panel for each mediator, all on one scale.

    Args:
        aie: from `average_indirect_effects`, one metric.
        keys: mediators, in the order of the panels.
        roles: rows.
        title: stands above the panels.
        metric: names the colour bar.
    """
    grids = {mediator_title(key): _grid(aie[aie["mediator"] == key], roles) for key in keys}
    return value_panels(grids, title=title, label=f"AIE ({metric_title(metric)})")


def value_panels(grids: Mapping[str, pd.DataFrame], *, title: str, label: str) -> Figure:
    """Heatmaps on one scale.

    Args:
        grids: by the panel's title; roles down, columns by layer.
        title: stands above the panels.
        label: of the colour bar.
    """
    scale = value_scale(
        min(float(np.nanmin(grid.to_numpy())) for grid in grids.values()),
        max(float(np.nanmax(grid.to_numpy())) for grid in grids.values()),
    )
    n_rows = len(next(iter(grids.values())))
    figure, axes = panels(len(grids), _TOP_AND_BOTTOM + _ROW_HEIGHT * n_rows, title=title)
    for axis, (name, grid) in zip(axes, grids.items(), strict=True):
        _panel(axis, grid.to_numpy(), scale)
        _finish(axis, name, grid)
    colour_bar(figure, axes, scale, label)
    return figure


def depth_panels(grids: Mapping[str, pd.DataFrame], *, title: str, label: str) -> Figure:
    """Heatmaps of several models on one scale, against relative depth.

    Args:
        grids: by the panel's title; roles down, columns by layer. Each is drawn as wide as any
            other, whatever its number of layers.
        title: stands above the panels.
        label: of the colour bar.
    """
    figure = value_panels(grids, title=title, label=label)
    for axis, grid in zip(figure.axes, grids.values(), strict=False):
        n_layers = grid.shape[1]
        # The first layer's middle is depth 0, the last one's is depth 1.
        places = 0.5 + np.array([0, 0.5, 1]) * (n_layers - 1)
        axis.set_xticks(places, ["0", "0.5", "1"])
        axis.set_xlabel("relative depth", fontsize=SMALL)
    return figure


def difference_heatmap(
    differences: Mapping[str, pd.DataFrame], *, roles: Sequence[str], title: str, metric: str
) -> Figure:
    """Differences of two runs; a dot marks the cells whose interval excludes 0.

    Args:
        differences: by the panel's title, with columns `role, depth, difference, ci_low, ci_high`.
        roles: rows.
        title: stands above the panels.
        metric: names the colour bar.
    """
    largest = max(float(frame["difference"].abs().max()) for frame in differences.values())
    scale = difference_scale(largest)
    figure, axes = panels(len(differences), _TOP_AND_BOTTOM + _ROW_HEIGHT * len(roles), title=title)
    for axis, (name, frame) in zip(axes, differences.items(), strict=True):
        apart = frame.assign(apart=(frame["ci_low"] > 0) | (frame["ci_high"] < 0))
        grid = apart.pivot(index="role", columns="depth", values="difference").reindex(roles)
        marked = apart.pivot(index="role", columns="depth", values="apart").reindex(roles)
        _panel(axis, grid.to_numpy(), scale)
        rows, columns = np.nonzero((marked == True).to_numpy())  # noqa: E712  # NaN is no mark
        place = (columns + 0.5, rows + 0.5)
        axis.scatter(*place, s=6, color="black", edgecolors="white", linewidths=0.4)
        _finish(axis, name, grid)
        places = 0.5 + np.array([0, 0.5, 1]) * (grid.shape[1] - 1)
        axis.set_xticks(places, ["0", "0.5", "1"])
        axis.set_xlabel("relative depth", fontsize=SMALL)
    colour_bar(figure, axes, scale, f"difference of AIE ({metric_title(metric)})")
    return figure


def fact_heatmap(
    effects: npt.NDArray[np.floating],
    *,
    tokens: Sequence[str],
    subject: tuple[int, int],
    title: str,
    label: str,
) -> Figure:
    """Indirect effects of one fact: tokens down, layers across, the subject marked.

    Args:
        effects: `(n_layers, n_positions)`.
        tokens: of the prompt, `(n_positions,)`.
        subject: first position of the subject, and one past its last.
        title: stands above the panel.
        label: of the colour bar.
    """
    scale = value_scale(float(effects.min()), float(effects.max()))
    figure, [axis] = panels(1, _TOP_AND_BOTTOM + _ROW_HEIGHT * len(tokens), title=title)
    _panel(axis, effects.T, scale)
    start, stop = subject
    names = [
        visible(token) + ("*" if start <= position < stop else "")
        for position, token in enumerate(tokens)
    ]
    axis.set_yticks(np.arange(len(names)) + 0.5, names, rotation=0)
    for position, text in enumerate(axis.get_yticklabels()):
        text.set_parse_math(False)
        text.set_fontweight("bold" if start <= position < stop else "normal")
    axis.axhline(start, color="black", linewidth=0.6, linestyle="--")
    axis.axhline(stop, color="black", linewidth=0.6, linestyle="--")
    label_layers(axis, len(effects), centred=True)
    colour_bar(figure, [axis], scale, label)
    figure.set_figwidth(COLUMN_WIDTH)
    return figure


def visible(token: str) -> str:
    """A token as a label: blanks at its ends and control characters are shown."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in token)
    stripped = shown.strip(" ")
    return shown.replace(" ", "␣") if not stripped or shown.endswith(" ") else stripped


def _grid(cells: pd.DataFrame, roles: Sequence[str]) -> pd.DataFrame:
    grid: pd.DataFrame = cells.pivot(index="role", columns="layer", values="aie").reindex(roles)
    return grid


def _panel(axis: Axes, values: npt.NDArray[np.floating], scale: Scale) -> None:
    bare = {"cbar": False, "xticklabels": False, "yticklabels": False}
    sns.heatmap(values, ax=axis, cmap=scale.colours, norm=scale.norm, **bare)
    # Cells without facts are told from cells of no effect.
    axis.set_facecolor("0.85")


def _finish(axis: Axes, name: str, grid: pd.DataFrame) -> None:
    axis.set_title(name, fontsize=TEXT)
    label_layers(axis, grid.shape[1], centred=True)
    axis.set_ylabel("")
    axis.set_yticks(np.arange(len(grid)) + 0.5, [str(role) for role in grid.index], rotation=0)
    if not is_leftmost(axis):
        axis.tick_params(labelleft=False)
