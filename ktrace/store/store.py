"""A store: a folder of parts with one fingerprint, that many writers may add to without a lock."""

import json
import logging
import time
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

import numpy as np

from ktrace.errors import DamagedPartError, KtraceError
from ktrace.files import set_aside
from ktrace.store.claims import Claims
from ktrace.store.part import read_fingerprint, read_part, read_provenance, verify_part, write_part
from ktrace.store.schema import JsonObject, Row, Schema

log = logging.getLogger(__name__)

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

    def require(self, fingerprint: Mapping[str, object]) -> None:
        """Refuse parts of other settings; damaged parts have none.

        Raises:
            KtraceError: the folder holds parts of other settings.
        """
        for path in self.parts():
            try:
                found = read_fingerprint(path)
            except DamagedPartError:
                continue
            _require_same(self.folder, found, fingerprint)

    def done(
        self, fingerprint: Mapping[str, object], wanted: Container[int] | None = None
    ) -> frozenset[int]:
        """Indices of the facts that are stored, in parts that are whole.

        A damaged part is set aside, with a logged line: its facts are not among the stored ones, so
        they are computed again. Nothing else of the folder is touched.

        Args:
            fingerprint: what the parts' numbers must have been determined by.
            wanted: where given, only parts with one of these facts are read as a whole.

        Raises:
            KtraceError: the folder holds parts of other settings.
        """
        # All are compared before any is renamed: a folder of other settings is left as it is.
        self.require(fingerprint)
        stored: set[int] = set()
        for path in self.parts():
            try:
                indices = _indices(path, self.schema)
                if wanted is None or any(index in wanted for index in indices):
                    verify_part(path, self.schema)
            except DamagedPartError as error:
                aside = set_aside(path)
                log.warning(
                    "damaged: %s; set aside as %s, its facts are computed again", error, aside.name
                )
            else:
                stored.update(indices)
        return frozenset(stored)

    def fingerprint(self) -> JsonObject | None:
        """The fingerprint that all parts share; None for an empty store.

        Raises:
            KtraceError: parts differ, or one is damaged.
        """
        shared: JsonObject | None = None
        for path in self.parts():
            with _naming_damage():
                found = read_fingerprint(path)
            if shared is not None:
                _require_same(self.folder, found, shared)
            shared = found
        return shared

    def read(self, *names: str) -> Iterator[Row]:
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

    def find(self, known_id: int, *names: str) -> Row | None:
        """The named fields of one fact; None where it is not stored.

        They are read from the fact's own part alone: activations are large.

        Raises:
            KtraceError: a part is damaged.
        """
        for path in self.parts():
            with _naming_damage():
                numbers = [r["known_id"] for r in read_part(path, self.schema, ["known_id"])]
                if known_id in numbers:
                    return read_part(path, self.schema, names)[numbers.index(known_id)]
        return None

    def provenance(self) -> list[tuple[JsonObject, int]]:
        """Of each part: who computed it, where and when; and its number of facts.

        Raises:
            KtraceError: a part is damaged.
        """
        with _naming_damage():
            return [read_provenance(path) for path in self.parts()]

    def writer(
        self,
        fingerprint: Mapping[str, object],
        provenance: Mapping[str, object] | None = None,
        keep: Sequence[str] = (),
    ) -> "PartWriter":
        """A context that collects records and writes them as parts; see `write_part`.

        Args:
            fingerprint: what determines the records' numbers.
            provenance: who computes them, where and when.
            keep: fields of stored facts that the caller wants from `PartWriter.stored`.
        """
        return PartWriter(self, fingerprint, provenance or {}, keep)


class PartWriter:
    """Collects records, and closes a part when it is large or old enough.

    Leaving the context writes what is in hand, also after an exception: those facts are complete.
    Where other processes may write to the same store, `claim` facts before working on them.

    Attributes:
        stored: by index, the fields `keep` of the facts that `claim` found stored.
    """

    def __init__(
        self,
        store: Store,
        fingerprint: Mapping[str, object],
        provenance: Mapping[str, object],
        keep: Sequence[str],
    ) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._provenance = provenance
        self._claims = Claims(store.folder)
        self._keep = ("index", *keep)
        self._known: set[Path] = set()
        self.stored: dict[int, Row] = {}
        self._records: list[Row] = []
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
        try:
            self.flush()
        finally:
            self._claims.close()

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

    def unclaim(self, indices: Collection[int]) -> None:
        """Give back facts that were taken and not worked on."""
        self._claims.release(indices)

    def _look(self) -> None:
        """Note the facts of parts that are new since the last look."""
        for path in self._store.parts():
            if path not in self._known:
                self._known.add(path)
                try:
                    records = read_part(path, self._store.schema, self._keep)
                except DamagedPartError:
                    continue  # its facts are not stored; `Store.done` sets it aside
                self.stored.update({record["index"]: record for record in records})

    def add(self, record: Row) -> None:
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
        self._claims.release([record["index"] for record in records])


def claim_all(
    writers: Mapping[str, PartWriter], indices: Collection[int]
) -> dict[str, frozenset[int]] | None:
    """`PartWriter.claim` on several stores: the lacking facts of each, or None and no claim."""
    lacking: dict[str, frozenset[int]] = {}
    for key, writer in writers.items():
        found = writer.claim(indices)
        if found is None:
            for claimed, facts in lacking.items():
                writers[claimed].unclaim(facts)
            return None
        lacking[key] = found
    return lacking


@contextmanager
def _naming_damage() -> Iterator[None]:
    try:
        yield
    except DamagedPartError as error:
        raise KtraceError(
            f"damaged: {error}; the command that made it, without stage=analyze, sets it aside and "
            "computes its facts again"
        ) from error


def _indices(path: Path, schema: Schema) -> list[int]:
    return [record["index"] for record in read_part(path, schema, ["index"])]


def _require_same(
    folder: Path, found: Mapping[str, object], expected: Mapping[str, object]
) -> None:
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
