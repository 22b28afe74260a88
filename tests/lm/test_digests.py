"""Digests that are remembered: of a file that is the same, and of no other."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ktrace.errors import KtraceError
from ktrace.lm import digests
from ktrace.lm.digests import CACHE, file_digest

CONTENT = bytes(range(256)) * 2**13  # 2 MiB
OTHER = CONTENT[::-1]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Files whose content was read."""
    found: list[Path] = []
    original = digests._hashed

    def counted(path: Path, told: Callable[[int], None] | None) -> str:
        found.append(path)
        return original(path, told)

    monkeypatch.setattr(digests, "_hashed", counted)
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return found


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Old enough for whoever looks at it."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    later(monkeypatch)
    return path


def later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = digests.time.time_ns
    monkeypatch.setattr(digests.time, "time_ns", lambda: now() + 10 * digests._CLOCK_STEP_NS)


def right(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def record(tmp_path: Path) -> Path:
    [path] = (tmp_path / "cache" / "digests").iterdir()
    return path


def test_a_file_is_read_once(hashed: list[Path], weights: Path) -> None:
    assert [file_digest(weights) for _ in range(3)] == [right(CONTENT)] * 3
    assert hashed == [weights]


def in_place(path: Path) -> None:
    """Of the same size, with the time that it had."""
    times = path.stat()
    with path.open("r+b") as stream:
        stream.write(OTHER)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def by_another_file(path: Path) -> None:
    times = path.stat()
    other = path.with_name("other")
    other.write_bytes(OTHER)
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [in_place, by_another_file, lambda p: p.write_bytes(OTHER)])
def test_a_file_that_changed_is_read_again(
    change: Callable[[Path], object], hashed: list[Path], weights: Path
) -> None:
    assert file_digest(weights) == right(CONTENT)
    change(weights)
    assert file_digest(weights) == right(OTHER)
    assert len(hashed) == 2


def test_a_file_that_changed_within_a_step_of_the_clock_is_read_again(
    hashed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tells it from what it was, but that it was young when it was read."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    assert file_digest(path) == right(CONTENT)
    status = path.stat()
    path.write_bytes(OTHER)
    original = digests._looks
    monkeypatch.setattr(digests, "_looks", lambda path, _: original(path, status))
    assert file_digest(path) == right(OTHER)
    # Read when it was old, it is read no more.
    later(monkeypatch)
    assert file_digest(path) == right(OTHER)
    n_read = len(hashed)
    assert file_digest(path) == right(OTHER)
    assert len(hashed) == n_read == 3


def test_what_changes_while_it_is_read_is_not_remembered(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_hashed", lambda path, told: str(path.write_bytes(OTHER)))
    file_digest(weights)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:20],
        lambda text: text.replace(right(CONTENT), right(OTHER)),
        lambda _: "",
        lambda _: "[]",
        lambda _: "null",
        lambda _: "{}",
        lambda _: "[" * 100_000,
    ],
)
def test_a_damaged_record_is_none(
    damage: Callable[[str], str], hashed: list[Path], weights: Path, tmp_path: Path
) -> None:
    file_digest(weights)
    path = record(tmp_path)
    path.write_text(damage(path.read_text()))
    assert file_digest(weights) == right(CONTENT)
    assert file_digest(weights) == right(CONTENT)
    assert len(hashed) == 2


def test_a_record_of_another_file_is_none(
    hashed: list[Path], weights: Path, tmp_path: Path
) -> None:
    file_digest(weights)
    said = record(tmp_path).read_text()
    other = tmp_path / "other.safetensors"
    other.write_bytes(OTHER)
    file_digest(other)
    for path in (tmp_path / "cache" / "digests").iterdir():
        path.write_text(said)
    assert file_digest(other) == right(OTHER)


def test_small_files_leave_no_record(hashed: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"{}")
    assert [file_digest(path), file_digest(path)] == [right(b"{}")] * 2
    assert not (tmp_path / "cache").exists()


def test_without_a_cache_files_are_read(
    hashed: list[Path], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*rest: object) -> None:
        raise KtraceError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(digests, "write_text", full)
        assert file_digest(weights) == right(CONTENT)
    monkeypatch.setenv(CACHE, "")
    assert file_digest(weights) == right(CONTENT)
    monkeypatch.delenv(CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert file_digest(weights) == right(CONTENT)
    assert len(hashed) == 3
    assert [*(tmp_path / "home" / "ktrace" / "digests").iterdir()]
    assert file_digest(weights) == right(CONTENT)
    assert len(hashed) == 3
