"""The frame of one fact that no store holds, in the columns of `load_effects`."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from ktrace.analysis.effects import COLUMNS
from ktrace.analysis.rows import rows
from ktrace.terms import METRICS

Scores = Mapping[str, npt.NDArray[np.float64]]


def case_frame(
    *,
    model: str,
    mediator: str,
    tokens: Sequence[str],
    roles: Sequence[str | None],
    clean: Scores,
    corrupted: Scores,
    restored: Scores,
) -> pd.DataFrame:
    """A row for each metric, sample, layer and position; `known_id` is 0.

    Args:
        model: its name.
        mediator: its key, such as `mlp-w10`.
        tokens: of the prompt, `(n_positions,)`.
        roles: in the scheme `rome`, None before the subject, `(n_positions,)`.
        clean: `(n_samples,)` for each metric.
        corrupted: likewise.
        restored: `(n_samples, n_layers, n_positions)` for each metric.
    """
    frames = []
    for metric in METRICS:
        sample, layer, position = np.indices(restored[metric].shape, dtype=np.int16).reshape(3, -1)
        frames.append(
            pd.DataFrame(
                {
                    "metric": metric,
                    "sample": sample,
                    "layer": layer,
                    "position": position,
                    "clean": clean[metric].astype(np.float32)[sample],
                    "corrupted": corrupted[metric].astype(np.float32)[sample],
                    "restored": restored[metric].astype(np.float32).ravel(),
                }
            )
        )
    frame: pd.DataFrame = pd.concat(frames, ignore_index=True).assign(
        known_id=np.int64(0), model=model, mediator=mediator
    )
    at = frame["position"].to_numpy()
    frame["token"] = pd.Categorical(np.asarray(tokens, dtype=object)[at])
    frame["role"] = pd.Categorical(np.asarray(roles, dtype=object)[at], categories=rows("rome"))
    for name, categories in (("model", [model]), ("mediator", [mediator]), ("metric", METRICS)):
        frame[name] = pd.Categorical(frame[name], categories=categories)
    ordered: pd.DataFrame = frame[list(COLUMNS)]
    return ordered
