"""Parts that came since the last look: none is missed, and an unchanged folder is not listed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ktrace.store import CORRUPTED, Store
from ktrace.store import listing as listing_module
from ktrace.store import writer as writer_module
from ktrace.store.listing import Listing

FIELDS = {name: CORRUPTED[name] for name in ("index", "known_id")}
FINE, COARSE = 1_700_000_000_123_456_789, 1_700_000_000_000_000_000
Wait = Callable[[float], None]


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Wait:
    """Let time pass, on this machine's clock."""
    now = 1000.0

    def pass_by(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(listing_module.time, "monotonic", lambda: now)
    return pass_by


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What is listed from now on."""
    found: list[Path] = []
    genuine = listing_module.parts_in

    def counted(folder: Path) -> list[Path]:
        found.append(folder)
        return genuine(folder)

    monkeypatch.setattr(listing_module, "parts_in", counted)
    return found


def put(folder: Path, number: int, stamp: int) -> str:
    """A part that comes while the file system's clock says `stamp`."""
    path = folder / f"part-{number:06d}-0123abcd.h5"
    path.touch()
    os.utime(folder, ns=(stamp, stamp))
    return path.name


def names(listing: Listing) -> list[str]:
    return [path.name for path in listing.new()]


def test_a_folder_that_stays_as_it_is_is_not_listed(
    tmp_path: Path, wait: Wait, listed: list[Path]
) -> None:
    listing, first = Listing(tmp_path), put(tmp_path, 1, FINE)
    assert names(listing) == [first]
    wait(1)
    assert names(listing) == []
    listed.clear()
    assert [names(listing) for _ in range(100)] == [[]] * 100
    assert listed == []
    second = put(tmp_path, 2, FINE + 10**6)
    assert names(listing) == [second]


@pytest.mark.parametrize(("stamp", "grain"), [(FINE, 0.004), (COARSE, 2.0)])
def test_a_part_that_comes_in_the_grain_of_the_last_look_is_not_missed(
    tmp_path: Path, wait: Wait, stamp: int, grain: float
) -> None:
    """The folder's time of change is then what it was at that look."""
    listing, first = Listing(tmp_path), put(tmp_path, 1, stamp)
    assert names(listing) == [first]
    wait(0.9 * grain)
    assert names(listing) == []
    second = put(tmp_path, 2, stamp)
    assert names(listing) == [second]
    wait(10)
    assert names(listing) == []


def test_a_folder_that_is_not_there_yet_and_one_whose_clock_goes_back(
    tmp_path: Path, wait: Wait
) -> None:
    folder = tmp_path / "store"
    listing = Listing(folder)
    for _ in range(3):
        assert names(listing) == []
        wait(10)
    folder.mkdir()
    first = put(folder, 1, FINE)
    assert names(listing) == [first]
    wait(10)
    assert names(listing) == []
    assert names(listing) == []
    second = put(folder, 2, FINE - 10**9)
    assert names(listing) == [second]


def test_own_parts_are_not_told_of_and_forgotten_ones_are_told_of_again(
    tmp_path: Path, wait: Wait
) -> None:
    listing, own, other = Listing(tmp_path), put(tmp_path, 1, FINE), put(tmp_path, 2, FINE)
    listing.add(tmp_path / own)
    assert names(listing) == [other]
    listing.forget(tmp_path / other)
    assert names(listing) == [other]


def test_a_claim_reads_what_is_new_and_lists_nothing_else(
    tmp_path: Path, wait: Wait, listed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store", FIELDS)
    with store.writer({}) as earlier:
        for index in range(3):
            earlier.add({"index": index, "known_id": index})
            earlier.flush()
    read: list[str] = []
    genuine = writer_module.read_part

    def counted(path: Path, *rest: Any) -> Any:
        read.append(path.name)
        return genuine(path, *rest)

    monkeypatch.setattr(writer_module, "read_part", counted)
    with store.writer({}) as writer:
        assert writer.claim([0, 1, 7]) == {7}
        assert len(read) == 3
        writer.add({"index": 7, "known_id": 7})
        writer.flush()
        wait(1)
        assert writer.claim([7, 8]) == {8}
        wait(1)
        assert writer.claim([9]) == {9}
        listed.clear()
        for index in range(10, 20):
            assert writer.claim([index]) == {index}
        assert len(read) == 3, "a part of one's own, or one that is known, was read"
        assert listed == []
        with store.writer({}) as other:
            other.add({"index": 30, "known_id": 30})
        assert writer.claim([30, 31]) == {31}
        assert len(read) == 4
