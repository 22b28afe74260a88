"""Stores: folders of immutable HDF5 parts. Knows nothing of models, engines or statistics."""

from ktrace.store.layout import RunFolders
from ktrace.store.schema import CLEAN, CORRUPTED, METRICS, RESTORED, Field, Record
from ktrace.store.store import PartWriter, Store

__all__ = [
    "CLEAN",
    "CORRUPTED",
    "METRICS",
    "RESTORED",
    "Field",
    "PartWriter",
    "Record",
    "RunFolders",
    "Store",
]
