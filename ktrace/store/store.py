"""A store: a folder of parts with one fingerprint, that many writers may add to without a lock."""

import logging
from collections import deque
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from ktrace.errors import DamagedPartError, GonePartError, KtraceError
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
from ktrace.store.content import require_settings
from ktrace.store.listing import parts_in
from ktrace.store.part import (
    binding_of,
    read_fingerprint,
    read_layer,
    read_part,
    read_provenance,
    verify_part,
)
from ktrace.store.schema import Array, JsonObject, LayerRow, Row, Schema
from ktrace.store.writer import PartWriter
from ktrace.terms import ClaimKind

log = logging.getLogger(__name__)

Found = TypeVar("Found")


class Store:
    """The parts of one folder, all of one fingerprint.

    Args:
        folder: where they lie.
        schema: what each holds.
        names: what the folders around it are called (`model`, `dataset`, `noise`, `mediator`): they
            must be the names of its content.
        read_by_runs: whether runs read what it holds, so that they look for damage first.
        claims: how processes that write to it keep out of each other's way.
    """

    def __init__(
        self,
        folder: Path,
        schema: Schema,
        names: Mapping[str, str] | None = None,
        *,
        read_by_runs: bool = True,
        claims: ClaimKind = ClaimKind.auto,
    ) -> None:
        self.folder = folder
        self.schema = schema
        self.names = names or {}
        self.read_by_runs = read_by_runs
        self.claims = claims

    def parts(self) -> list[Path]:
        """Completed parts, in the order of their first facts."""
        return parts_in(self.folder)

    def bind(self, fingerprint: Mapping[str, object]) -> None:
        """Bind the folder to one fingerprint, before its first part.

        A folder that was bound, got no part and is nobody's any more is bound anew.

        Raises:
            KtraceError: it is bound to another one, or cannot be written.
        """
        self.require(fingerprint)
        wanted = Binding(dict(fingerprint), self.names)
        with Claims(self.folder, self.claims).all_of_it() as is_alone:
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
        with Claims(self.folder, self.claims).all_of_it() as is_alone:
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
        for found in self._each(self._binding_unless_damaged):
            if found is not None:
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
        found = read_binding(self.folder)
        if found is None:
            found = self._told_by(paths[0])
        else:
            try:
                require_settings(found.fingerprint, self.names)
            except ValueError as error:
                raise KtraceError(f"damaged: {self.folder / FILE}: {error}") from error
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

        def whole(path: Path) -> list[int]:
            try:
                indices = _column(path, self.schema, "index")
                self._settings_of(path)
                relied_on = wanted is None or any(index in wanted for index in indices)
                if self.read_by_runs and relied_on:
                    verify_part(path, self.schema)
            except GonePartError:
                raise
            except DamagedPartError as error:
                aside = set_aside(path)
                log.warning(
                    "damaged: %s; set aside as %s, its facts are computed again", error, aside.name
                )
                return []
            return indices

        return frozenset(index for indices in self._each(whole) for index in indices)

    def fingerprint(self) -> JsonObject | None:
        """The fingerprint that all parts share; None for an empty store.

        Raises:
            KtraceError: parts differ, or one is damaged.
        """
        shared = self.bound()
        for found in self._each(read_fingerprint):
            if shared is not None:
                require_same(self.folder, found, shared)
        return shared

    def read(self, *names: str, only: Collection[int] | None = None) -> Iterator[Row]:
        """Facts with the named fields, one part in memory at a time, each fact once.

        Args:
            names: of the fields.
            only: indices of facts; of parts without any of them nothing else is read. None for
                every fact.

        Raises:
            KtraceError: a part is damaged.
        """
        seen: set[int] = set()
        bound = self.bound()
        asked = dict.fromkeys(("index", *names))

        def rows_of(path: Path) -> list[Row]:
            if only is not None and not any(i in only for i in _column(path, self.schema, "index")):
                return []
            return read_part(path, self.schema, asked, bound)

        for records in self._each(rows_of):
            for record in records:
                if record["index"] not in seen and (only is None or record["index"] in only):
                    seen.add(record["index"])
                    yield record

    def read_layer(self, name: str, rows: Mapping[int, LayerRow]) -> Iterator[tuple[int, Array]]:
        """One layer of a field of states, one part's in memory at a time, each fact once.

        Args:
            name: of the field.
            rows: by the index of the fact, what is wanted of it.

        Yields:
            The index, and the field without that axis (`ktrace.store.part.read_layer`).

        Raises:
            KtraceError: a part is damaged.
        """
        seen: set[int] = set()
        bound = self.bound()

        def layers_of(path: Path) -> list[tuple[int, Array | None]]:
            indices = _column(path, self.schema, "index")
            wanted = [None if index in seen else rows.get(index) for index in indices]
            if all(row is None for row in wanted):
                return []
            layers = read_layer(path, self.schema, name, wanted, bound)
            return list(zip(indices, layers, strict=True))

        for found in self._each(layers_of):
            for index, layer in found:
                if layer is not None:
                    seen.add(index)
                    yield index, layer

    def provenance(self) -> list[tuple[JsonObject, int]]:
        """Of each part: who computed it, where and when; and its number of facts.

        Raises:
            KtraceError: a part is damaged.
        """
        return list(self._each(read_provenance))

    def writer(
        self,
        fingerprint: Mapping[str, object],
        provenance: Mapping[str, object] | None = None,
        keep: Sequence[str] = (),
    ) -> PartWriter:
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
            return self._settings_of(path)

    def _settings_of(self, path: Path) -> Binding:
        """What a part says of its folder, where it says all that names it."""
        found = binding_of(path)
        try:
            require_settings(found.fingerprint, self.names)
        except ValueError as error:
            raise DamagedPartError(f"{path}: {error}") from error
        return found

    def _binding_unless_damaged(self, path: Path) -> Binding | None:
        try:
            return self._settings_of(path)
        except GonePartError:
            raise
        except DamagedPartError:
            return None

    def _each(self, work: Callable[[Path], Found]) -> Iterator[Found]:
        """What comes of every part, while another process may merge some (`compact`)."""
        seen: set[Path] = set()
        left = deque(self.parts())
        while left:
            path = left.popleft()
            seen.add(path)
            try:
                with self._naming_damage():
                    found = work(path)
            except GonePartError:
                left = deque(path for path in self.parts() if path not in seen)
            else:
                yield found

    @contextmanager
    def _naming_damage(self) -> Iterator[None]:
        try:
            yield
        except GonePartError:
            raise
        except DamagedPartError as error:
            remedy = "the command that made it, without stage=analyze, sets it aside and computes"
            if not self.read_by_runs:
                remedy = "remove that file, and the command that made it computes"
            raise KtraceError(f"damaged: {error}; {remedy} its facts again") from error


def _column(path: Path, schema: Schema, name: str) -> list[int]:
    return [record[name] for record in read_part(path, schema, [name])]
