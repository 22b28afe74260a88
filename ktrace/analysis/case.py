"""The frame of one fact that no store holds: what `ktrace.trace` gave of a prompt.

Axes are those of effects.py; n_places, positions that a mediator acted at.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ktrace.analysis.effects import COLUMNS
from ktrace.analysis.rows import rows
from ktrace.store.records import Scores
from ktrace.terms import METRICS, has_heads


def case_frame(
    *,
    model: str,
    mediator: str,
    prompt: str,
    subject: str,
    tokens: Sequence[str],
    roles: Sequence[str | None],
    positions: Sequence[int],
    clean: Scores,
    corrupted: Scores,
    restored: Scores,
) -> pd.DataFrame:
    """The frame of one fact that no store holds, with the columns of `load_effects`.

    Args:
        model: its name.
        mediator: its key, such as `mlp-w10`.
        prompt: its text.
        subject: the part of it that was corrupted; empty where a pair has none.
        tokens: of the prompt, `(n_positions,)`.
        roles: in the scheme `rome`, None before the subject, `(n_positions,)`.
        positions: that the last axis of `restored` is of, `(n_places,)`.
        clean: `(n_samples,)` for each metric.
        corrupted: likewise.
        restored: `(n_samples, n_layers, n_places)` for each metric, with heads `(n_samples,
            n_layers, n_heads, n_places)`.

    Returns:
        A row for each metric, sample, layer, position and head; `known_id` is 0, `relation_id`
        missing; no `head` where the mediator has none.
    """
    frames = []
    for metric in METRICS:
        axes = np.indices(restored[metric].shape, dtype=np.int16)
        sample, layer, place = (axes[axis].ravel() for axis in (0, 1, -1))
        frames.append(
            pd.DataFrame(
                {
                    "metric": metric,
                    "sample": sample,
                    "layer": layer,
                    "position": np.asarray(positions, dtype=np.int16)[place],
                    "head": axes[2].ravel(),
                    "clean": clean[metric].astype(np.float32)[sample],
                    "corrupted": corrupted[metric].astype(np.float32)[sample],
                    "restored": restored[metric].astype(np.float32).ravel(),
                }
            )
        )
    frame: pd.DataFrame = pd.concat(frames, ignore_index=True).assign(known_id=np.int64(0))
    at = frame["position"].to_numpy()
    # As in the stores' frame: those of the whole prompt, wherever the mediator acted.
    texts = list(dict.fromkeys(tokens))
    frame["token"] = pd.Categorical(np.asarray(tokens, dtype=object)[at], categories=texts)
    frame["role"] = pd.Categorical(np.asarray(roles, dtype=object)[at], categories=rows("rome"))
    same = {"model": model, "mediator": mediator, "subject": subject, "prompt": prompt}
    nothing = pd.Index([], dtype=object)
    for name, value in (same | {"relation_id": ""}).items():
        known = None if value else nothing
        frame[name] = pd.Categorical([value or None] * len(frame), categories=known)
    frame["metric"] = pd.Categorical(frame["metric"], categories=METRICS)
    frame["head"] = frame["head"].astype("Int16")
    ordered: pd.DataFrame = frame[[n for n in COLUMNS if n != "head" or has_heads(mediator)]]
    return ordered
