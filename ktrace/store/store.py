"""A store: a folder of parts with one fingerprint, that many writers may add to without a lock."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ktrace.errors import KtraceError
from ktrace.store.part import (
    DamagedPartError,
    read_fingerprint,
    read_part,
    read_provenance,
    write_part,
)
from ktrace.store.schema import Record, Schema

# A part is closed at whichever comes first; a killed run loses the part in hand and no more.
_PART_FACTS = 32
_PART_SECONDS = 60.0
_PART_BYTES = 256 * 2**20


class Store:
    """The parts of one folder."""

    def __init__(self, folder: Path, schema: Schema) -> None:
        self.folder = folder
        self.schema = schema

    def parts(self) -> list[Path]:
        """Completed parts, in the order of their first facts."""
        return sorted(self.folder.glob("part-*.h5"))

    def done(self, fingerprint: Mapping[str, Any]) -> frozenset[int]:
        """Indices of the facts that are stored.

        Raises:
            KtraceError: the folder holds parts of other settings, or a damaged one.
        """
        for path in self.parts():
            with _naming_damage():
                found = read_fingerprint(path)
            _require_same(self.folder, found, fingerprint)
        return frozenset(record["index"] for record in self.read("index"))

    def fingerprint(self) -> dict[str, Any] | None:
        """The fingerprint that all parts share; None for an empty store.

        Raises:
            KtraceError: parts differ, or one is damaged.
        """
        shared: dict[str, Any] | None = None
        for path in self.parts():
            with _naming_damage():
                found = read_fingerprint(path)
            if shared is not None:
                _require_same(self.folder, found, shared)
            shared = found
        return shared

    def read(self, *names: str) -> Iterator[dict[str, Any]]:
        """Facts with the named fields, one part in memory at a time, each fact once.

        Raises:
            KtraceError: a part is damaged.
        """
        seen: set[int] = set()
        for path in self.parts():
            with _naming_damage():
                records = read_part(path, self.schema, dict.fromkeys(("index", *names)))
            for record in records:
                if record["index"] not in seen:
                    seen.add(record["index"])
                    yield record

    def provenance(self) -> list[tuple[dict[str, Any], int]]:
        """Of each part: who computed it, where and when; and its number of facts.

        Raises:
            KtraceError: a part is damaged.
        """
        with _naming_damage():
            return [read_provenance(path) for path in self.parts()]

    def writer(
        self, fingerprint: Mapping[str, Any], provenance: Mapping[str, Any] | None = None
    ) -> "PartWriter":
        """A context that collects records and writes them as parts; see `write_part`."""
        return PartWriter(self, fingerprint, provenance or {})


class PartWriter:
    """Collects records, and closes a part when it is large or old enough.

    Leaving the context writes what is in hand, also after an exception: those facts are complete.
    """

    def __init__(
        self, store: Store, fingerprint: Mapping[str, Any], provenance: Mapping[str, Any]
    ) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._provenance = provenance
        self._records: list[Record] = []
        self._bytes = 0
        self._opened = self._began = time.monotonic()

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.flush()

    def add(self, record: Record) -> None:
        """Take one fact."""
        if not self._records:
            self._opened = time.monotonic()
        self._records.append(record)
        self._bytes += sum(v.nbytes for v in record.values() if isinstance(v, np.ndarray))
        age = time.monotonic() - self._opened
        if len(self._records) >= _PART_FACTS or self._bytes >= _PART_BYTES or age >= _PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is in hand as one part."""
        records, self._records, self._bytes = self._records, [], 0
        if not records:
            return
        began, self._began = self._began, time.monotonic()
        own = {
            "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "wall_seconds": round(self._began - began, 3),
        }
        store, provenance = self._store, {**self._provenance, **own}
        write_part(store.folder, store.schema, self._fingerprint, records, provenance)


@contextmanager
def _naming_damage() -> Iterator[None]:
    try:
        yield
    except DamagedPartError as error:
        raise KtraceError(f"{error}; delete this file and run again") from error


def _require_same(folder: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    differing = [
        f"{key}: stored {json.dumps(found.get(key))}, now {json.dumps(expected.get(key))}"
        for key in sorted({*found, *expected})
        if found.get(key) != expected.get(key)
    ]
    if differing:
        raise KtraceError(
            f"{folder} holds results of other settings ({'; '.join(differing)}). Choose another "
            "output_dir, model.name or dataset.name, or remove that folder"
        )
