"""Stores: folders of immutable HDF5 parts. Knows nothing of models, engines or statistics."""

from ktrace.store.claims import one_at_a_time, work_through
from ktrace.store.layout import RunFolders
from ktrace.store.schema import (
    BASELINE_SCORES,
    CLEAN,
    CLEAN_SCORES,
    CORRUPTED,
    RESTORED,
    Field,
    Record,
)
from ktrace.store.store import PartWriter, Store, batch_of, claim_all

__all__ = [
    "BASELINE_SCORES",
    "CLEAN",
    "CLEAN_SCORES",
    "CORRUPTED",
    "RESTORED",
    "Field",
    "PartWriter",
    "Record",
    "RunFolders",
    "Store",
    "batch_of",
    "claim_all",
    "one_at_a_time",
    "work_through",
]
