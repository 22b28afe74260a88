"""Claims between processes, and temporary files of the dead and the living."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktrace import files
from ktrace.files import new_file, remove_stale
from ktrace.store import claims as claims_module
from ktrace.store.claims import Claims, work_through
from tests.support.places import ROOT

# Locks are between processes: this one takes what it is told, and answers what it got.
_OTHER = """
import sys
from pathlib import Path
from ktrace.store.claims import Claims
claims = Claims(Path(sys.argv[1]))
for line in sys.stdin:
    order, *facts = line.split()
    if order == "close":
        claims.close()
    elif order == "release":
        claims.release([int(fact) for fact in facts])
    else:
        print(claims.take([int(fact) for fact in facts]), flush=True)
        continue
    print("done", flush=True)
"""


class Other:
    """Claims in another process."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _OTHER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def __call__(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Other]:
    """A process with claims on the same store."""
    started = Other(tmp_path / "store")
    yield started
    started.process.kill()
    started.process.communicate()


def test_a_claim_is_all_or_nothing_and_ends_with_its_process(tmp_path: Path, other: Other) -> None:
    folder = tmp_path / "store"
    ours = Claims(folder)
    assert other("take 3 5") == "True"
    assert not ours.take([1, 3])
    assert other("take 1") == "True", "the part of a claim that could be had was kept"
    assert ours.take([0, 2, 4, 6])
    assert other("take 6") == "False"
    ours.release([6])
    assert other("take 6") == "True"
    other.process.kill()
    other.process.wait()
    assert ours.take([1, 3, 5, 6])
    ours.close()
    assert list(folder.iterdir()) == []


def test_closing_leaves_the_file_to_who_still_holds_facts(tmp_path: Path, other: Other) -> None:
    folder = tmp_path / "store"
    ours = Claims(folder)
    assert ours.take([1])
    assert other("take 2") == "True"
    ours.close()
    assert [path.name for path in folder.iterdir()] == [".claims"]
    assert not ours.take([2]), "a claim on a file that is gone binds nobody"
    assert other("close") == "done"
    assert ours.take([2])
    assert other("take 2") == "False"
    ours.close()
    assert other("take 2") == "True"


def test_a_claim_on_a_removed_file_is_taken_anew(
    tmp_path: Path, other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last holder may remove the file while the next one has just opened it."""
    folder = tmp_path / "store"
    ours = Claims(folder)
    genuine = fcntl.lockf
    removed = []

    def remove_first(descriptor: int, *rest: int) -> None:
        if not removed:
            removed.append((folder / ".claims").unlink())
        genuine(descriptor, *rest)

    monkeypatch.setattr(claims_module.fcntl, "lockf", remove_first)
    assert ours.take([7])
    assert removed
    assert other("take 7") == "False"


def test_without_locks_everybody_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(claims_module.fcntl, "lockf", refuse)
    one, two = Claims(tmp_path), Claims(tmp_path)
    assert one.take([1])
    assert two.take([1])
    one.close()


def test_work_that_is_anothers_is_tried_again_after_letting_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(claims_module, "_POLL_SECONDS", 0.0)
    events: list[str] = []

    def attempt(unit: str) -> bool:
        events.append(unit)
        return unit != "theirs" or events.count("let go") == 2

    work_through(["theirs", "a", "b"], attempt, lambda: events.append("let go"))
    assert events == ["theirs", "a", "b", *["theirs", "let go"] * 2, "theirs"]


def old(path: Path) -> Path:
    """Make a file look an hour old."""
    an_hour_ago = path.stat().st_mtime - 3600
    os.utime(path, (an_hour_ago, an_hour_ago))
    return path


def test_temporary_files_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    dead = tmp_path / "clean" / ".part-000001-0123abcd.h5.89abcdef.tmp"
    young = dead.with_name(".part-000002-0123abcd.h5.89abcdef.tmp")
    foreign = dead.with_name(".notes.tmp")
    dead.parent.mkdir()
    for path in (dead, young, foreign):
        path.write_bytes(b"half")
    old(dead)
    old(foreign)
    with new_file(tmp_path / "clean" / "living.h5") as temporary:
        old(temporary)
        assert remove_stale(tmp_path) == [dead]
        assert temporary.exists()
        temporary.write_bytes(b"whole")
    left = {path.name for path in dead.parent.iterdir()}
    assert left == {young.name, foreign.name, "living.h5"}


def test_a_link_among_temporary_files_is_not_followed(tmp_path: Path) -> None:
    target = old_file = tmp_path / "precious"
    target.write_text("kept")
    old(old_file)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".x.h5.89abcdef.tmp").symlink_to(target)
    with pytest.raises(files.KtraceError, match="cannot be removed"):
        remove_stale(tmp_path / "store")
    assert target.read_text() == "kept"
