"""Claims between processes, and temporary files of the dead and the living."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktrace import files
from ktrace.errors import KtraceError
from ktrace.files import new_file, remove_stale
from ktrace.store import CORRUPTED, Store, holders, lockfiles, owners
from ktrace.store import claims as claims_module
from ktrace.store.claims import Claims, one_at_a_time, work_through
from ktrace.store.owners import Owner, this_process
from ktrace.terms import ClaimKind
from tests.support.locks import ANSWERS, become, refusing
from tests.support.places import ROOT

# Locks are between processes: this one takes what it is told, and answers what it got.
_OTHER = """
import sys
from pathlib import Path
from tests.support.locks import become
become(sys.argv[2])
from ktrace.store.claims import Claims
from ktrace.terms import ClaimKind
claims = Claims(Path(sys.argv[1]), ClaimKind(sys.argv[3]))
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

    def __init__(self, folder: Path, system: str = "posix", kind: str = "auto") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _OTHER, str(folder), system, kind],
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


# What a process may claim by: its system (or what its file system answers), and its setting.
WAYS = {
    "locks": ("posix", "locks"),
    "files": ("posix", "files"),
    "Windows": ("windows", "auto"),
    "a system without locks": ("neither", "auto"),
    "ENOLCK": ("ENOLCK", "auto"),
}


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Other]:
    """A process with claims on the same store."""
    started = Other(tmp_path / "store")
    yield started
    started.process.kill()
    started.process.communicate()


@pytest.fixture(params=WAYS)
def pair(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Claims, Other]]:
    """Claims of this process and of another one, by each way."""
    system, kind = WAYS[request.param]
    started = Other(tmp_path / "store", system, kind)
    before = {name: sys.modules.get(name) for name in ("fcntl", "msvcrt")}
    for name, module in before.items():
        monkeypatch.setitem(sys.modules, name, module)  # so that it is put back
    become(system)
    yield Claims(tmp_path / "store", ClaimKind(kind)), started
    started.process.kill()
    started.process.communicate()


def test_a_claim_is_all_or_nothing_and_ends_with_its_process(
    tmp_path: Path, pair: tuple[Claims, Other]
) -> None:
    ours, other = pair
    assert other("take 3 5") == "True"
    assert not ours.take([1, 3])
    assert other("take 1") == "True", "the part of a claim that could be had was kept"
    assert ours.take([0, 2, 4, 6])
    assert other("take 6") == "False"
    ours.release([6])
    assert other("take 6") == "True"
    with ours.all_of_it() as is_alone:
        assert not is_alone
    other.process.kill()
    other.process.wait()
    assert ours.take([1, 3, 5, 6])
    ours.close()
    with ours.all_of_it() as is_alone:
        assert is_alone
    ours.close()
    assert list((tmp_path / "store").iterdir()) == []


def test_closing_leaves_the_others_claims(tmp_path: Path, pair: tuple[Claims, Other]) -> None:
    ours, other = pair
    assert ours.take([1])
    assert other("take 2") == "True"
    ours.close()
    assert not ours.take([2]), "a claim on a file that is gone binds nobody"
    assert other("close") == "done"
    assert ours.take([2])
    assert other("take 2") == "False"
    ours.close()
    assert other("take 2") == "True"
    assert other("close") == "done"
    assert list((tmp_path / "store").iterdir()) == []


def test_who_claims_all_of_it_is_alone(pair: tuple[Claims, Other]) -> None:
    ours, other = pair
    with ours.all_of_it() as is_alone:
        assert is_alone
        assert other("take 7") == "False"
    assert other("take 7") == "True"


def test_a_claim_says_whose_it_is(pair: tuple[Claims, Other], tmp_path: Path) -> None:
    ours, other = pair
    assert other("take 3 5") == "True"
    assert not ours.take([3])
    found = ours.holder([3])
    assert found is not None
    if sys.modules.get("msvcrt") is None:  # Windows tells no holder
        told, here = holders(tmp_path / "store", range(8)), this_process()
        assert set(told) == {3, 5}
        assert (found.pid, found.host) == (other.process.pid, here.host)
        assert found.name == f"process {found.pid}"
        assert found.sentence.startswith(f"process {found.pid} on {here.host}, since 2")
    assert not ours.take([3]), "asking took the claim away"


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

    monkeypatch.setattr(fcntl, "lockf", remove_first)
    assert ours.take([7])
    assert removed
    assert other("take 7") == "False"


@pytest.mark.parametrize("on", ["lock", "unlock"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_file_system_without_locks_loses_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, on: str
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", refusing(ANSWERS[answer], on))
    store = Store(tmp_path / "store", {name: CORRUPTED[name] for name in ("index", "known_id")})
    with store.writer({}) as writer:
        for index in range(3):
            assert writer.claim([index]) == {index}
            writer.add({"index": index, "known_id": index})
            writer.flush()
    assert [row["index"] for row in store.read()] == [0, 1, 2]
    left = {path.name for path in store.folder.iterdir()}
    assert {name for name in left if not name.startswith("part-")} <= {"store.json", ".claims"}


def test_locks_that_were_asked_for_are_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", refusing(ANSWERS["ENOLCK"], "lock"))
    with pytest.raises(KtraceError, match=r"claims=locks: the file system of .* keeps none"):
        Claims(tmp_path, ClaimKind.locks).take([1])


def test_nobody_is_kept_out_where_the_user_says_so(tmp_path: Path, other: Other) -> None:
    assert other("take 1") == "True"
    claims = Claims(tmp_path / "store", ClaimKind.none)
    assert claims.take([1])
    with claims.all_of_it() as is_alone:
        assert not is_alone, "nobody can tell"


def test_a_dead_users_file_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is the group's, the file of claims its maker's alone."""
    (tmp_path / ".claims").touch()
    genuine, made = os.open, []

    def may_not_write(path: object, flags: int, mode: int = 0o777) -> int:
        if str(path).endswith(".claims") and flags & os.O_RDWR and not made:
            made.append(path)
            raise PermissionError(13, "Permission denied", str(path))
        return genuine(path, flags, mode)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", may_not_write)
    assert Claims(tmp_path).take([1])
    assert made


def test_a_living_users_file_is_left_and_files_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Other
) -> None:
    assert other("take 1") == "True"
    folder, genuine = tmp_path / "store", os.open

    def may_not_write(path: object, flags: int, mode: int = 0o777) -> int:
        if str(path).endswith(".claims") and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", str(path))
        return genuine(path, flags, mode)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", may_not_write)
    ours = Claims(folder)
    assert ours.take([2])
    assert (folder / ".claimed").is_dir()
    assert other("take 3") == "True"
    ours.close()


def test_who_may_write_in_the_folder_may_claim_in_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o775)
    before = os.umask(0o077)
    try:
        claims = Claims(tmp_path)
        assert claims.take([1])
    finally:
        os.umask(before)
    assert (tmp_path / ".claims").stat().st_mode & 0o777 == 0o620
    claims.close()


def forged(folder: Path, index: int, owner: Owner, age: float) -> None:
    """A claim by files of another process, that was last touched so many seconds ago."""
    place = folder / ".claimed"
    place.mkdir(exist_ok=True)
    token = f"{index:016x}"
    for name, content in ((f"owner-{token}", owner.line()), (str(index), token.encode())):
        (place / name).write_bytes(content)
        then = (place / name).stat().st_mtime - age
        os.utime(place / name, (then, then))


def test_claims_of_another_machine_end_when_they_are_not_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Owner(os.getpid(), "node7", "2026-01-01T00:00:00+00:00", "ktrace", "another boot")
    forged(tmp_path, 1, elsewhere, age=lockfiles._EXPIRE_SECONDS + 60)
    forged(tmp_path, 2, elsewhere, age=lockfiles._EXPIRE_SECONDS - 60)
    # This machine's clock says nothing: files are dated by their file system's.
    monkeypatch.setattr(owners, "_machine", lambda: "here")
    monkeypatch.setattr("time.time", lambda: 0.0)
    ours = Claims(tmp_path, ClaimKind.files)
    assert ours.take([1])
    assert not ours.take([2])
    found = ours.holder([2])
    assert found is not None
    assert found.name == f"process {os.getpid()} on node7"
    ours.close()
    assert {path.name for path in (tmp_path / ".claimed").iterdir()} == {"2", f"owner-{2:016x}"}


def test_a_working_process_keeps_its_claims_young(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lockfiles, "_BEAT_SECONDS", 0.01)
    ours = Claims(tmp_path, ClaimKind.files)
    assert ours.take([1])
    [mine] = (tmp_path / ".claimed").glob("owner-*")
    before = old(mine).stat().st_mtime
    for _ in range(500):
        if mine.stat().st_mtime > before + 1800:
            break
        lockfiles.threading.Event().wait(0.01)
    else:
        raise AssertionError("nothing touched it")
    ours.close()


def test_what_a_stranger_left_among_the_claims_names_nobody(tmp_path: Path) -> None:
    place = tmp_path / ".claimed"
    place.mkdir()
    os.mkfifo(place / "3")
    (place / "4").write_bytes(b"../../secret")
    (place / "5").symlink_to("/etc/hostname")
    (tmp_path / ".claims").write_bytes(b'{"pid": "x"}\n[[[[\n\xff\n' + b"[" * 9999)
    assert {owner.name for owner in holders(tmp_path, range(9)).values()} <= {"another machine"}


def test_a_copy_of_a_process_lets_go_of_nothing(tmp_path: Path) -> None:
    """Workers are forked, and leave the writers of their parent."""
    ours = Claims(tmp_path, ClaimKind.files)
    assert ours.take([1])
    before = sorted((tmp_path / ".claimed").iterdir())
    if (pid := os.fork()) == 0:
        ours.close()
        os._exit(0 if Claims(tmp_path, ClaimKind.files).take([1]) else 7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert {*before} <= {*(tmp_path / ".claimed").iterdir()}
    ours.close()


def test_waiting_says_for_whom(
    tmp_path: Path,
    other: Other,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert other("take 0") == "True"
    monkeypatch.setattr(claims_module.time, "sleep", lambda _: other("release 0"))
    with caplog.at_level("INFO"), one_at_a_time(tmp_path / "store", "analyses the same run"):
        pass
    [line] = caplog.messages
    told = f"analyses the same run: process {other.process.pid} on {this_process().host}, since "
    assert told in line


def test_work_that_is_anothers_is_tried_again_after_letting_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(claims_module, "_POLL_SECONDS", 0.0)
    events: list[str] = []

    def attempt(unit: str) -> bool:
        events.append(unit)
        return unit != "theirs" or events.count("let go") == 2

    work_through(["theirs", "a", "b"], attempt, lambda: events.append("let go"), lambda _: None)
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


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_what_is_called_like_a_temporary_file_and_is_none_stays(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "precious"
    target.write_text("kept")
    old(target)
    place = tmp_path / "store" / ".x.h5.89abcdef.tmp"
    place.parent.mkdir()
    if kind == "link":
        place.symlink_to(target)
    elif kind == "folder":
        place.mkdir()
        old(place)
    else:
        os.mkfifo(place)
        old(place)
    assert remove_stale(tmp_path / "store") == []
    assert target.read_text() == "kept"
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_age_is_told_by_the_clock_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without locks, and beside a machine whose clock goes an hour ahead."""
    monkeypatch.setitem(sys.modules, "fcntl", refusing(ANSWERS["ENOLCK"], "lock"))
    now = files.os.stat(tmp_path).st_mtime
    monkeypatch.setattr("time.time", lambda: now + 3600)
    with new_file(tmp_path / "living.h5") as temporary:
        assert remove_stale(tmp_path) == []
        old(temporary)
        assert remove_stale(tmp_path) == [temporary]
        temporary.touch()


def test_a_rename_that_succeeded_and_says_otherwise_has_succeeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = Path.replace

    def twice(self: Path, target: Path) -> Path:
        genuine(self, target)
        return genuine(self, target)

    monkeypatch.setattr(Path, "replace", twice)
    with new_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "a.txt").read_text() == "whole"
    monkeypatch.setattr(Path, "replace", lambda self, target: genuine(self / "lost", target))
    with pytest.raises(KtraceError, match="cannot be written"), new_file(tmp_path / "a.txt"):
        pass
