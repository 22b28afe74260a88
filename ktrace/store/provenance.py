"""Who computed the parts of a run: read from the parts themselves, which travel."""

from collections.abc import Iterable
from typing import Any

from ktrace.store.layout import RunFolders
from ktrace.store.store import Store

UNRECORDED = "unrecorded"  # parts that do not name their run


def provenance_of(folders: RunFolders, mediator_keys: Iterable[str]) -> dict[str, Any]:
    """Which runs computed what.

    Args:
        folders: of the run.
        mediator_keys: whose restorations are asked about.

    Returns:
        `runs`, by the run's name: versions, config, model, device and so on; and `stores`, by the
        store's path below the dataset or noise and then the run's name: `parts`, `facts`,
        `wall_seconds` and when the last part was `written`.

    Raises:
        KtraceError: a damaged part.
    """
    stores: dict[str, Store] = {"clean": folders.clean, "corrupted": folders.corrupted}
    stores |= {f"restored/{key}": folders.restored(key) for key in mediator_keys}
    runs: dict[str, dict[str, Any]] = {}
    return {
        "stores": {name: _by_run(store, runs) for name, store in stores.items()},
        "runs": runs,
    }


def _by_run(store: Store, runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What each run gave to a store; what the parts say about the runs is added to `runs`."""
    found: dict[str, Any] = {}
    for about, n_facts in store.provenance():
        run = about.pop("run", UNRECORDED)
        tally = found.setdefault(run, {"parts": 0, "facts": 0, "wall_seconds": 0.0})
        tally["parts"] += 1
        tally["facts"] += n_facts
        tally["wall_seconds"] = round(tally["wall_seconds"] + about.pop("wall_seconds", 0.0), 3)
        written = about.pop("written", "")
        tally["written"] = max(written, tally.get("written", ""))
        # A run knows its engine and noise only after its clean runs.
        runs.setdefault(run, {}).update(about)
    return found
