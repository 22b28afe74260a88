"""What adds facts to a store: it claims them, collects their records and writes these as parts."""

import time
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from ktrace.errors import DamagedPartError
from ktrace.store.claims import Claims
from ktrace.store.listing import Listing
from ktrace.store.owners import Owner
from ktrace.store.part import read_part, write_part
from ktrace.store.schema import Row, Schema
from ktrace.terms import ClaimKind

# A part is closed at whichever comes first; a killed run loses the part in hand and no more.
_PART_FACTS = 32
_PART_SECONDS = 60.0
_PART_BYTES = 256 * 2**20


class Target(Protocol):
    """A store, as far as it is written to (`ktrace.store.Store`)."""

    folder: Path
    schema: Schema
    claims: ClaimKind

    def bind(self, fingerprint: Mapping[str, object]) -> None:
        """Bind the folder to one fingerprint, before its first part."""

    def unbind_unused(self) -> None:
        """Leave nothing of a folder that got no part and is nobody's."""


class PartWriter:
    """Collects records, and closes a part when it is large or old enough.

    Leaving the context writes what is in hand, also after an exception: those facts are complete.
    Where other processes may write to the same store, `claim` facts before working on them.

    Attributes:
        stored: by index, the fields `keep` of the facts that `claim` found stored.
    """

    def __init__(
        self,
        store: Target,
        fingerprint: Mapping[str, object],
        provenance: Mapping[str, object],
        keep: Sequence[str],
    ) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._provenance = provenance
        self._claims = Claims(store.folder, store.claims)
        self._keep = ("index", *keep)
        self._parts = Listing(store.folder)
        self.stored: dict[int, Row] = {}
        self._records: list[Row] = []
        self._bytes = 0
        self._opened = self._began = time.monotonic()

    def __enter__(self) -> "PartWriter":
        self._store.bind(self._fingerprint)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.flush()
        finally:
            self._claims.close()
            self._store.unbind_unused()

    def claim(self, indices: Collection[int]) -> frozenset[int] | None:
        """Take facts to work on, until they are written or the context is left.

        Returns:
            Those of them that are not stored yet; None, where another process works on one.

        Raises:
            KtraceError: the folder cannot be written.
        """
        if not self._claims.take(indices):
            return None
        # Another process may have finished some since this one looked.
        self._look()
        self._claims.release([index for index in indices if index in self.stored])
        return frozenset(index for index in indices if index not in self.stored)

    def holder(self, indices: Collection[int]) -> Owner | None:
        """Who else works on one of some facts, as far as anybody can tell."""
        return self._claims.holder(indices)

    def unclaim(self, indices: Collection[int]) -> None:
        """Give back facts that were taken and not worked on."""
        self._claims.release(indices)

    def _look(self) -> None:
        """Note the facts of parts that are new since the last look."""
        for path in self._parts.new():
            try:
                records = read_part(path, self._store.schema, self._keep, self._fingerprint)
            except DamagedPartError:
                # Its facts are not stored: `Store.done` sets it aside, and who computes them again
                # may give the new part its name.
                self._parts.forget(path)
            else:
                self._note(records)

    def _note(self, records: Sequence[Row]) -> None:
        for record in records:
            self.stored[record["index"]] = {name: record[name] for name in self._keep}

    def add(self, record: Row) -> None:
        """Take one fact. In hand are never more bytes than of a part, or of a fact larger than one.

        Raises:
            KtraceError: the folder cannot be written.
        """
        n_bytes = sum(v.nbytes for v in record.values() if isinstance(v, np.ndarray))
        if self._records and self._bytes + n_bytes > _PART_BYTES:
            self.flush()
        if not self._records:
            self._opened = time.monotonic()
        self._records.append(record)
        self._bytes += n_bytes
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
        self._parts.add(
            write_part(store.folder, store.schema, self._fingerprint, records, provenance)
        )
        self._note(records)
        self._claims.release([record["index"] for record in records])
