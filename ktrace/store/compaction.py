"""Small parts of a store, merged into larger ones: nothing that is read of it changes.

A merged part is written first, and what it was made of is removed afterwards. Killed in between, a
store holds some facts twice, with the same values; readers take each once, and the next compaction
removes what is left over. Parts that share a fact with another part, and differ in it, are never
touched: which of them readers take hangs on their names.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ktrace.errors import DamagedPartError
from ktrace.store.claims import Claims
from ktrace.store.part import read_part, read_provenance, verify_part, write_part
from ktrace.store.schema import JsonObject, Row
from ktrace.store.store import Store

log = logging.getLogger(__name__)

# Readers have one part in memory at a time.
_MOST_BYTES = 64 * 2**20
# What differs between the parts of one run.
_OF_PART = ("written", "wall_seconds")


class Compacted(NamedTuple):
    """Parts of a store, before and after."""

    before: int
    after: int


class _Part(NamedTuple):
    path: Path
    indices: frozenset[int]
    about: JsonObject
    size: int

    @property
    def run(self) -> JsonObject:
        """Who computed it, and where."""
        return {name: value for name, value in self.about.items() if name not in _OF_PART}


def compact(store: Store) -> Compacted | None:
    """Merge the small parts of a store, those of each run among themselves.

    Returns:
        None, and nothing is done, where another process works on it, or where nobody can tell,
        without claims.

    Raises:
        KtraceError: the folder cannot be written, or lies under another name.
    """
    before = len(store.parts())
    if before < 2:
        return Compacted(before, before)
    with Claims(store.folder, store.claims).all_of_it() as is_alone:
        if not is_alone:
            return None
        parts = _without_copies(store, list(_known(store)))
        times = Counter(index for part in parts for index in part.indices)
        alone = [part for part in parts if all(times[index] == 1 for index in part.indices)]
        for group in _groups(alone):
            _merge(store, group)
    return Compacted(before, len(store.parts()))


def _known(store: Store) -> Iterator[_Part]:
    """Parts that are whole, as far as their heads tell."""
    bound = store.bound()
    for path in store.parts():
        try:
            rows = read_part(path, store.schema, ["index"], bound)
            about, _ = read_provenance(path)
        except DamagedPartError as error:
            log.warning("damaged: %s; left as it is", error)
        else:
            indices = frozenset(row["index"] for row in rows)
            yield _Part(path, indices, about, path.stat().st_size)


def _without_copies(store: Store, parts: Sequence[_Part]) -> list[_Part]:
    """Remove parts whose facts another part holds as well, with the same values."""
    holders: dict[int, list[_Part]] = defaultdict(list)
    for part in parts:
        for index in part.indices:
            holders[index].append(part)
    removed: set[Path] = set()
    for part in sorted(parts, key=lambda part: len(part.indices)):
        for other in holders[next(iter(part.indices))]:
            if (
                other.path not in (part.path, *removed)
                and part.indices <= other.indices
                and _rows(store, part) == _rows(store, other, part.indices)
            ):
                removed.add(part.path)
                part.path.unlink(missing_ok=True)
                break
    return [part for part in parts if part.path not in removed]


def _rows(
    store: Store, part: _Part, only: frozenset[int] | None = None
) -> dict[int, list[tuple[object, ...]]]:
    """Every value of some facts, comparable to the bit."""
    rows = read_part(part.path, store.schema, store.schema)
    return {
        row["index"]: [_plain(row[name]) for name in store.schema]
        for row in rows
        if only is None or row["index"] in only
    }


def _plain(value: object) -> tuple[object, ...]:
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    return (repr(value),)


def _groups(parts: Sequence[_Part]) -> Iterator[list[_Part]]:
    """Parts to merge: of one run, together no larger than a part may be."""
    by_run: dict[str, list[_Part]] = defaultdict(list)
    for part in parts:
        by_run[repr(sorted(part.run.items()))].append(part)
    for of_run in by_run.values():
        group: list[_Part] = []
        for part in of_run:
            if group and sum(one.size for one in group) + part.size > _MOST_BYTES:
                yield group
                group = []
            group.append(part)
        yield group


def _merge(store: Store, group: Sequence[_Part]) -> None:
    if len(group) < 2:
        return
    rows: list[Row] = []
    try:
        for part in group:
            rows += read_part(part.path, store.schema, store.schema)
    except DamagedPartError as error:
        log.warning("damaged: %s; it and its neighbours are left as they are", error)
        return
    told = [part.about for part in group]
    about = group[0].run | {
        "written": max(one.get("written", "") for one in told),
        "wall_seconds": round(sum(one.get("wall_seconds", 0.0) for one in told), 3),
    }
    rows.sort(key=lambda row: row["index"])
    merged = write_part(store.folder, store.schema, store.bound() or {}, rows, about)
    verify_part(merged, store.schema)
    for part in group:
        part.path.unlink(missing_ok=True)
