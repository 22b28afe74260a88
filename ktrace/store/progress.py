"""How far a store is, seen from outside: what is stored, who works on what, how fast parts come.

Nothing is written, locked or waited for, so that it may be asked while workers run.
"""

import fcntl
import os
import struct
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ktrace.errors import DamagedPartError
from ktrace.store.claims import NAME
from ktrace.store.part import read_part, read_provenance
from ktrace.store.store import Store

# Parts that the rate is taken from: the latest, as far as they follow each other.
_MOST_PARTS = 200
_LONGEST_PAUSE = 120.0  # seconds
# `struct flock`: what the kernel is asked with, and answers in.
_LAYOUTS = {"linux": "hhqqi4x", "darwin": "qqihh"}
_ANYONE = 0


class Progress(NamedTuple):
    """Of one store.

    Attributes:
        done: indices of the facts that it holds.
        facts_per_second: of all who write to it together, while the latest parts were computed;
            None for an empty store.
        damaged: parts that cannot be read.
    """

    done: frozenset[int]
    facts_per_second: float | None
    damaged: int


class _Spell(NamedTuple):
    """In which a part was computed: seconds since 1970 by its file system's clock."""

    start: float
    end: float
    n_facts: int


def progress_of(store: Store) -> Progress:
    """How far a store is.

    Raises:
        KtraceError: a part may not be read, or is of another schema version.
    """
    done: set[int] = set()
    spells, damaged = [], 0
    for path in store.parts():
        try:
            indices = [row["index"] for row in read_part(path, store.schema, ["index"])]
            about, _ = read_provenance(path)
            end = path.stat().st_mtime
        except (DamagedPartError, FileNotFoundError):
            damaged += path.exists()
            continue
        done.update(indices)
        seconds = about.get("wall_seconds", 0.0)
        spells.append(_Spell(end - seconds, end, len(indices)))
    return Progress(frozenset(done), _rate(spells), damaged)


def _rate(spells: Iterable[_Spell]) -> float | None:
    """Facts a second, over the latest parts up to a pause in which none was computed."""
    latest = sorted(spells, key=lambda spell: spell.end, reverse=True)[:_MOST_PARTS]
    if not latest:
        return None
    start, n_facts = latest[0].start, 0
    for spell in latest:
        if spell.end < start - _LONGEST_PAUSE:
            break
        start, n_facts = min(start, spell.start), n_facts + spell.n_facts
    return n_facts / max(latest[0].end - start, 1e-3)


def holders(folder: Path, indices: Iterable[int]) -> Mapping[int, int]:
    """Who works on some facts of a store, as far as the kernel tells.

    Args:
        folder: of the store.
        indices: of the facts.

    Returns:
        By index, the number of the process that claims it; 0 where that runs on another machine.
        Nothing where file system or kernel tell no holders.
    """
    layout = _LAYOUTS.get(sys.platform)
    try:
        descriptor = os.open(folder / NAME, os.O_RDONLY)
    except OSError:  # nobody works there, or it may not be read
        return {}
    try:
        found = {index: _holder(descriptor, index, layout) for index in indices if layout}
    except OSError:
        return {}
    finally:
        os.close(descriptor)
    return {index: pid for index, pid in found.items() if pid is not None}


def _holder(descriptor: int, index: int, layout: str) -> int | None:
    """Of the lock on one byte; None where there is none."""
    if layout == _LAYOUTS["linux"]:
        asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, index, 1, 0)
        kind, _, _, _, pid = struct.unpack(layout, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    else:
        asked = struct.pack(layout, index, 1, 0, fcntl.F_WRLCK, os.SEEK_SET)
        _, _, pid, kind, _ = struct.unpack(layout, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else max(pid, _ANYONE)
