"""The indirect effect of one fact: tokens down, layers across, as in the published figures."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import seaborn as sns
from matplotlib.figure import Figure


def draw_fact(
    effects: npt.NDArray[np.float64],
    *,
    tokens: Sequence[str],
    subject: tuple[int, int],
    title: str,
    label: str,
) -> Figure:
    """Draw one fact; the labels of the subject's tokens end with `*`.

    Args:
        effects: the mean over samples, `(n_layers, n_positions)`.
        tokens: of the prompt, `(n_positions,)`.
        subject: first position of the subject, and one past its last.
        title: stands above the figure.
        label: of the colour bar.
    """
    n_layers, n_positions = effects.shape
    start, stop = subject
    labels = [
        _plain(token + ("*" if start <= position < stop else ""))
        for position, token in enumerate(tokens)
    ]
    size = (2.6 + max(2.6, 0.14 * n_layers), 1.5 + 0.22 * n_positions)
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    sns.heatmap(
        effects.T,
        ax=axis,
        cmap="Purples",
        vmin=min(0.0, float(effects.min())),
        xticklabels=max(1, n_layers // 12),
        yticklabels=labels,
        cbar_kws={"label": label},
    )
    axis.set_xlabel("layer", fontsize=8)
    axis.tick_params(labelsize=8, rotation=0)
    figure.suptitle(_plain(title), fontsize=9)
    return figure


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib would set what stands between two as a formula
