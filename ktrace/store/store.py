"""A store: a folder of parts with one fingerprint, that many writers may add to without a lock."""

import logging
import time
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

import numpy as np

from ktrace.errors import DamagedPartError, KtraceError
from ktrace.files import set_aside
from ktrace.store.binding import (
    FILE,
    Binding,
    create_binding,
    read_binding,
    require_own_names,
    require_same,
)
from ktrace.store.claims import Claims
from ktrace.store.part import (
    binding_of,
    read_fingerprint,
    read_part,
    read_provenance,
    verify_part,
    write_part,
)
from ktrace.store.schema import JsonObject, Row, Schema

log = logging.getLogger(__name__)

# A part is closed at whichever comes first; a killed run loses the part in hand and no more.
_PART_FACTS = 32
_PART_SECONDS = 60.0
_PART_BYTES = 256 * 2**20


class Store:
    """The parts of one folder, all of one fingerprint.

    Args:
        folder: where they lie.
        schema: what each holds.
        names: what the folders around it are called (`model`, `dataset`, `noise`, `mediator`): they
            must be the names of its content.
        read_by_runs: whether runs read what it holds, so that they look for damage first.
    """

    def __init__(
        self,
        folder: Path,
        schema: Schema,
        names: Mapping[str, str] | None = None,
        *,
        read_by_runs: bool = True,
    ) -> None:
        self.folder = folder
        self.schema = schema
        self.names = names or {}
        self.read_by_runs = read_by_runs

    def parts(self) -> list[Path]:
        """Completed parts, in the order of their first facts."""
        return sorted(self.folder.glob("part-*.h5"))

    def bind(self, fingerprint: Mapping[str, object]) -> None:
        """Bind the folder to one fingerprint, before its first part.

        A folder that was bound, got no part and is nobody's any more is bound anew.

        Raises:
            KtraceError: it is bound to another one, or cannot be written.
        """
        self.require(fingerprint)
        wanted = Binding(dict(fingerprint), self.names)
        with Claims(self.folder).all_of_it() as is_alone:
            bound = read_binding(self.folder)
            if bound is not None and is_alone and not self.parts():
                (self.folder / FILE).unlink(missing_ok=True)
            if not create_binding(self.folder, wanted):
                found = read_binding(self.folder)
                if found is not None:
                    require_same(self.folder, found.fingerprint, wanted.fingerprint)

    def unbind_unused(self) -> None:
        """Leave nothing of a folder that got no part and is nobody's."""
        if self.parts() or not self.folder.is_dir():
            return
        with Claims(self.folder).all_of_it() as is_alone:
            if is_alone and not self.parts():
                (self.folder / FILE).unlink(missing_ok=True)
        with suppress(OSError):  # it holds something else
            self.folder.rmdir()

    def require(self, fingerprint: Mapping[str, object]) -> None:
        """Refuse parts of other settings; damaged parts have none.

        Raises:
            KtraceError: the folder holds parts of other settings, or lies under another name.
        """
        paths = self.parts()
        if not paths:
            return
        bound = read_binding(self.folder)
        if bound is not None:
            require_same(self.folder, bound.fingerprint, fingerprint)
        for path in paths:
            try:
                found = binding_of(path)
            except DamagedPartError:
                continue
            require_same(self.folder, found.fingerprint, fingerprint)
            bound = bound or found
        if bound is not None:
            require_own_names(self.folder, self.names, bound)

    def bound(self) -> JsonObject | None:
        """The fingerprint that every part must have; None for an empty store.

        Raises:
            KtraceError: the folder lies under another name, or does not say.
        """
        paths = self.parts()
        if not paths:
            return None
        found = read_binding(self.folder) or self._told_by(paths[0])
        require_own_names(self.folder, self.names, found)
        return found.fingerprint

    def done(
        self, fingerprint: Mapping[str, object], wanted: Container[int] | None = None
    ) -> frozenset[int]:
        """Indices of the facts that are stored, in parts that are whole.

        A damaged part is set aside, with a logged line: its facts are not among the stored ones, so
        they are computed again. Nothing else of the folder is touched. A store that runs do not
        read is looked at no closer than its parts' end markers and indices.

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
                indices = _column(path, self.schema, "index")
                relied_on = wanted is None or any(index in wanted for index in indices)
                if self.read_by_runs and relied_on:
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
        shared = self.bound()
        for path in self.parts():
            with self._naming_damage():
                found = read_fingerprint(path)
            if shared is not None:
                require_same(self.folder, found, shared)
        return shared

    def read(self, *names: str, known_id: int | None = None) -> Iterator[Row]:
        """Facts with the named fields, one part in memory at a time, each fact once.

        Args:
            names: of the fields.
            known_id: of the only fact that is wanted; no field of parts without it is read.

        Raises:
            KtraceError: a part is damaged.
        """
        seen: set[int] = set()
        asked = names if known_id is None else ("known_id", *names)
        bound = self.bound()
        for path in self.parts():
            with self._naming_damage():
                if known_id is not None and known_id not in _column(path, self.schema, "known_id"):
                    continue
                records = read_part(path, self.schema, dict.fromkeys(("index", *asked)), bound)
            for record in records:
                if known_id is not None and known_id != record["known_id"]:
                    continue
                if record["index"] not in seen:
                    seen.add(record["index"])
                    yield record

    def provenance(self) -> list[tuple[JsonObject, int]]:
        """Of each part: who computed it, where and when; and its number of facts.

        Raises:
            KtraceError: a part is damaged.
        """
        with self._naming_damage():
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

    def _told_by(self, path: Path) -> Binding:
        """What a part says of its folder, where older versions left no `store.json`."""
        with self._naming_damage():
            return binding_of(path)

    @contextmanager
    def _naming_damage(self) -> Iterator[None]:
        try:
            yield
        except DamagedPartError as error:
            remedy = "the command that made it, without stage=analyze, sets it aside and computes"
            if not self.read_by_runs:
                remedy = "remove that file, and the command that made it computes"
            raise KtraceError(f"damaged: {error}; {remedy} its facts again") from error


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

    def unclaim(self, indices: Collection[int]) -> None:
        """Give back facts that were taken and not worked on."""
        self._claims.release(indices)

    def _look(self) -> None:
        """Note the facts of parts that are new since the last look."""
        for path in self._store.parts():
            if path not in self._known:
                self._known.add(path)
                try:
                    records = read_part(path, self._store.schema, self._keep, self._fingerprint)
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


def _column(path: Path, schema: Schema, name: str) -> list[int]:
    return [record[name] for record in read_part(path, schema, [name])]
