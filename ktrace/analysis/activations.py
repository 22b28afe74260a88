"""Clean activations back out of a store, for probing.

Axes: n_positions, of a prompt; d_model, features of a state.
"""

from pathlib import Path

import numpy as np

from ktrace.errors import KtraceError
from ktrace.store import RunFolders
from ktrace.store.schema import Array
from ktrace.terms import SITES


def load_activations(run_folder: str | Path, known_id: int, site: str, layer: int) -> Array:
    """States of one candidate's clean run.

    Args:
        run_folder: `outputs/<model>/<dataset>/<noise>`.
        known_id: the fact.
        site: `hidden` (the block's output), `attn` or `mlp`.
        layer: counted from 0.

    Returns:
        `(n_positions, d_model)` in the model's dtype; bfloat16 comes as float32.

    Raises:
        KtraceError: no such store, fact, site or layer.
    """
    if site not in SITES:
        raise KtraceError(f"site={site!r} is unknown: choose from {', '.join(SITES)}")
    record = RunFolders(Path(run_folder).resolve()).clean.find(known_id, site)
    if record is None:
        raise KtraceError(f"known_id={known_id} is not in the clean store of {run_folder}")
    states: Array = record[site]
    if not states.size:
        raise KtraceError(
            f"no {site!r} states of known_id={known_id} were kept: it is no candidate, or the "
            "model has no such site"
        )
    if not 0 <= layer < len(states):
        raise KtraceError(f"layer={layer} is out of range: 0 to {len(states) - 1}")
    return _widened(states[layer])


def _widened(states: Array) -> Array:
    if states.dtype != np.uint16:
        return states
    # bfloat16 is the upper half of float32.
    return (states.astype(np.uint32) << 16).view(np.float32)
