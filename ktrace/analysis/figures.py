"""AIE heatmaps."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ktrace.store.files import new_file

_TITLES = {
    "hidden": "hidden states",
    "hidden_attn_severed": "hidden, attention severed",
    "hidden_mlp_severed": "hidden, MLP severed",
    "mlp": "MLP outputs",
    "attn": "attention outputs",
}
_COLOURS = {"mlp": "Greens", "attn": "Reds"}  # the published ones; Purples for hidden states


def draw_heatmaps(
    aie: pd.DataFrame,
    *,
    keys: Sequence[str],
    roles: Sequence[str],
    title: str,
    metric: str,
    stem: Path,
) -> list[Path]:
    """Draw one panel for each mediator, all on one scale, as PNG and PDF.

    Args:
        aie: from `average_indirect_effects`, one metric.
        keys: mediators, in the order of the panels.
        roles: rows.
        title: stands above the panels.
        metric: names the colour bar.
        stem: path without the suffix.

    Returns:
        The files written.
    """
    grids = [
        aie[aie["mediator"] == key]
        .pivot(index="role", columns="layer", values="aie")
        .reindex(roles)
        for key in keys
    ]
    low = min(0.0, *(float(grid.min().min()) for grid in grids))
    high = max(float(grid.max().max()) for grid in grids)
    n_layers = grids[0].shape[1]
    width = max(3.2, 0.14 * n_layers + 1.0)
    figure = Figure(
        figsize=(1.3 + width * len(keys), 1.5 + 0.34 * len(roles)), layout="constrained"
    )
    axes = figure.subplots(1, len(keys), squeeze=False)[0]
    for number, (axis, key, grid) in enumerate(zip(axes, keys, grids, strict=True)):
        _draw_panel(axis, key, grid, (low, high), metric, labelled=number == 0)
    figure.suptitle(title, fontsize=9)
    return [_save(figure, stem.with_name(f"{stem.name}.{suffix}")) for suffix in ("png", "pdf")]


def _draw_panel(
    axis: Axes,
    key: str,
    grid: pd.DataFrame,
    scale: tuple[float, float],
    metric: str,
    *,
    labelled: bool,
) -> None:
    name, _, window = key.partition("-w")
    sns.heatmap(
        grid,
        ax=axis,
        cmap=_COLOURS.get(name, "Purples"),
        vmin=scale[0],
        vmax=scale[1],
        xticklabels=max(1, grid.shape[1] // 12),
        yticklabels=[str(role) for role in grid.index] if labelled else False,
        cbar_kws={"label": f"AIE ({metric.replace('_', ' ')})", "fraction": 0.08},
    )
    axis.set_title(
        _TITLES.get(name, name) + (f", window of {window}" if window else ""), fontsize=9
    )
    axis.set_xlabel("layer", fontsize=8)
    axis.set_ylabel("")
    axis.tick_params(labelsize=8, rotation=0)
    colour_bar = axis.collections[0].colorbar
    if colour_bar is not None:
        colour_bar.ax.tick_params(labelsize=7)
        colour_bar.ax.yaxis.label.set_fontsize(8)


def _save(figure: Figure, path: Path) -> Path:
    kind = path.suffix[1:]
    with new_file(path) as temporary:
        # Without a date the same numbers give the same file.
        metadata = {"CreationDate": None} if kind == "pdf" else None
        figure.savefig(temporary, format=kind, dpi=200, metadata=metadata)
    return path
