"""Stores: folders of immutable HDF5 parts. Knows nothing of models, engines or statistics."""

from ktrace.store.claims import holders, one_at_a_time, work_through
from ktrace.store.compaction import Compacted, compact
from ktrace.store.layout import RunFolders, is_complete
from ktrace.store.owners import Owner
from ktrace.store.progress import progress_of
from ktrace.store.records import CleanRecord, CorruptedRecord, RestoredRecord, StatesRecord
from ktrace.store.schema import (
    ACTIVATIONS,
    BASELINE_SCORES,
    CLEAN,
    CLEAN_SCORES,
    CORRUPTED,
    RESTORED,
    Field,
    Row,
)
from ktrace.store.store import Store
from ktrace.store.verify import Fault, Finding, faults_of, leftovers_in, mended, stores_below
from ktrace.store.writer import PartWriter

__all__ = [
    "ACTIVATIONS",
    "BASELINE_SCORES",
    "CLEAN",
    "CLEAN_SCORES",
    "CORRUPTED",
    "RESTORED",
    "CleanRecord",
    "Compacted",
    "CorruptedRecord",
    "Fault",
    "Field",
    "Finding",
    "Owner",
    "PartWriter",
    "RestoredRecord",
    "Row",
    "RunFolders",
    "StatesRecord",
    "Store",
    "compact",
    "faults_of",
    "holders",
    "is_complete",
    "leftovers_in",
    "mended",
    "one_at_a_time",
    "progress_of",
    "stores_below",
    "work_through",
]
