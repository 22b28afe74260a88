"""Lines, bars and histograms over layers."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from ktrace.analysis.figures.style import (
    COLUMN_WIDTH,
    LINE_STYLES,
    PALETTE,
    SMALL,
    is_leftmost,
    label_layers,
    legend_below,
    panels,
    plain_axis,
    whole_numbers,
)
from ktrace.terms import mediator_title, metric_title

_HEIGHT = 1.75


def role_lines(
    aie: pd.DataFrame, *, keys: Sequence[str], roles: Sequence[str], title: str, metric: str
) -> Figure:
    """AIE over layers, a line with its interval for each role, a panel for each mediator.

    Args:
        aie: from `average_indirect_effects`, one metric.
        keys: mediators, in the order of the panels.
        roles: lines.
        title: stands above the panels.
        metric: names the y axis.
    """
    figure, axes = panels(len(keys), _HEIGHT, title=title)
    for axis, key in zip(axes, keys, strict=True):
        plain_axis(axis, mediator_title(key))
        cells = aie[aie["mediator"] == key]
        for number, role in enumerate(roles):
            line = cells[cells["role"] == role]
            colour = PALETTE[number]
            axis.fill_between(
                line["layer"], line["ci_low"], line["ci_high"], color=colour, alpha=0.2, lw=0
            )
            axis.plot(
                *(line["layer"], line["aie"]),
                color=colour,
                linestyle=LINE_STYLES[number],
                linewidth=1.2,
                label=role,
            )
        label_layers(axis, int(cells["layer"].max()) + 1)
        if is_leftmost(axis):
            axis.set_ylabel(f"AIE ({metric_title(metric)})", fontsize=SMALL)
    legend_below(figure, axes[0], 3 if len(keys) == 1 else len(roles))
    return figure


def severed_bars(
    aie: pd.DataFrame, *, keys: Sequence[str], role: str, title: str, metric: str
) -> Figure:
    """AIE at one role by layer: whole hidden states beside those with later parts severed.

    Args:
        aie: from `average_indirect_effects`, one metric.
        keys: mediators, one colour each.
        role: which cells, usually `last subject`.
        title: stands above the panel.
        metric: names the y axis.
    """
    figure, [axis] = panels(1, _HEIGHT + 0.3, title=title)
    plain_axis(axis, f"at the {role} token")
    width = 0.84 / len(keys)
    n_layers = 0
    for number, key in enumerate(keys):
        bars = aie[(aie["mediator"] == key) & (aie["role"] == role)]
        n_layers = max(n_layers, int(bars["layer"].max()) + 1)
        places = bars["layer"] + (number - (len(keys) - 1) / 2) * width
        axis.bar(places, bars["aie"], width, color=PALETTE[number], lw=0, label=mediator_title(key))
        axis.vlines(places, bars["ci_low"], bars["ci_high"], color="0.25", linewidth=0.6)
    label_layers(axis, n_layers)
    axis.set_ylabel(f"AIE ({metric_title(metric)})", fontsize=SMALL)
    legend_below(figure, axis, 2)
    figure.set_figwidth(COLUMN_WIDTH)
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
    for axis, (key, by_role) in zip(axes, peaks.items(), strict=True):
        plain_axis(axis, mediator_title(key))
        for number, (role, layers) in enumerate(by_role.items()):
            axis.hist(
                layers,
                bins=list(edges),
                color=PALETTE[number],
                alpha=0.75 if number == 0 else 1.0,
                histtype="stepfilled" if number == 0 else "step",
                linewidth=1.1,
                label=role,
            )
        label_layers(axis, n_layers)
        whole_numbers(axis)
        if is_leftmost(axis):
            axis.set_ylabel("facts", fontsize=SMALL)
    legend_below(figure, axes[0], 2)
    return figure
