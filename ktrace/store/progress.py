"""How far a store is, seen from outside: what is stored, and how fast parts come.

Nothing is written, locked or waited for, so that it may be asked while workers run.
"""

from collections.abc import Iterable
from typing import NamedTuple

from ktrace.errors import DamagedPartError
from ktrace.store.part import read_part, read_provenance
from ktrace.store.store import Store

# Parts that the rate is taken from: the latest, as far as they follow each other.
_MOST_PARTS = 200
_LONGEST_PAUSE = 120.0  # seconds


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
