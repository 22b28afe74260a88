"""How far a store is, asked from outside."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktrace.store import CORRUPTED, Store, holders, progress_of
from ktrace.store.claims import Claims
from tests.support.claimants import claimed_elsewhere

FIELDS = {name: CORRUPTED[name] for name in ("index", "known_id")}


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that claims facts 3 and 5."""
    with claimed_elsewhere(tmp_path, [3, 5]) as started:
        yield started


def test_the_kernel_says_who_works_on_what(tmp_path: Path, other: "subprocess.Popen[str]") -> None:
    found = holders(tmp_path, range(10))
    assert {index: owner.pid for index, owner in found.items()} == {3: other.pid, 5: other.pid}
    assert not Claims(tmp_path).take([3]), "asking took the claim away"
    other.communicate()
    assert holders(tmp_path, range(10)) == {}


def test_nobody_is_named_where_nobody_can_be(
    tmp_path: Path, other: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert holders(tmp_path, [3]) == {}
    assert holders(tmp_path / "no store", [3]) == {}
    assert not (tmp_path / "no store").exists()


def put(store: Store, indices: list[int], end: float, seconds: float) -> None:
    """A part that was computed in the `seconds` before `end`."""
    before = set(store.parts())
    with store.writer({}, {}) as writer:
        for index in indices:
            writer.add({"index": index, "known_id": index})
        writer._began -= seconds
    [path] = set(store.parts()) - before
    os.utime(path, (end, end))


def test_the_rate_is_that_of_all_writers_since_the_last_pause(tmp_path: Path) -> None:
    store = Store(tmp_path / "corrupted", FIELDS)
    assert progress_of(store) == (frozenset(), None, 0)
    now = 1_700_000_000.0
    put(store, [*range(100, 130)], now - 5000, 10)  # yesterday, and fast
    put(store, [0, 1], now - 10, 10)
    put(store, [2, 3], now - 10, 10)  # another writer beside it
    put(store, [4, 5], now, 10)
    found = progress_of(store)
    assert found.done == {*range(6), *range(100, 130)}
    assert found.facts_per_second == pytest.approx(6 / 20, rel=0.01)
    store.parts()[0].write_bytes(b"")
    assert progress_of(store).damaged == 1
