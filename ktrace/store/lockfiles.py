"""Claims where nothing keeps locks: a file for each fact, which its process keeps young.

`.claimed/` in a store's folder holds one file `owner-<token>` for each process, with who it is, and
one named by its index for each fact, with the owner's token. The owner's file is touched while the
process lives. Whose process is gone from this machine, or was not touched for some minutes by the
clock of the file system itself, holds nothing. Two processes may take over from a dead one at the
same moment, and then both do a fact: claims only save work.
"""

import os
import re
import secrets
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ktrace.files import NO_FOLLOW
from ktrace.store.owners import MOST_BYTES, NOBODY_KNOWN, Owner, parsed, this_process

FOLDER = ".claimed"
_ALL = "all"
_OWNER = "owner-"
_TOKEN = re.compile(r"[0-9a-f]{16}")
_BEAT_SECONDS = 20.0
_EXPIRE_SECONDS = 180.0  # several beats: a file server may be slow, a processor busy


class LockFiles:
    """Claims of one process on the facts of one store."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._pid = 0
        self._token = ""
        self._ended = threading.Event()
        self.held: set[int] = set()

    @property
    def _own(self) -> Path:
        return self._folder / f"{_OWNER}{self._token}"

    def take(self, indices: Collection[int]) -> bool:
        """Claim all of some facts; False, and none of them, where another process holds one.

        Raises:
            OSError: the folder cannot be written.
        """
        self._begin()
        taken: list[int] = []
        for index in sorted(set(indices) - self.held):
            if not self._create(str(index)):
                self._remove(taken)
                return False
            taken.append(index)
        # After ours are there: who claims all of it looks for ours after that is there.
        if self._holder(_ALL) is not None:
            self._remove(taken)
            return False
        self.held.update(taken)
        return True

    def holders(self, indices: Collection[int]) -> Mapping[int, Owner]:
        """Who holds some facts."""
        return filed_by(self._folder.parent, indices)

    def release(self, indices: Collection[int]) -> None:
        """Let go of facts; those that are not held do no harm."""
        if self._pid != os.getpid():  # a copy, by a fork: what it names is the parent's
            return
        self._remove(self.held & set(indices))
        self.held -= set(indices)

    def close(self) -> None:
        """Let go of everything; the last process to do so removes the folder."""
        if self._pid != os.getpid():
            return
        self.release(set(self.held))
        self._ended.set()
        self._pid = 0
        with suppress(OSError):
            self._own.unlink()
        with suppress(OSError):  # others have files there
            self._folder.rmdir()

    @contextmanager
    def all_of_it(self) -> Iterator[bool]:
        """Hold every fact of a store that nobody works on, and tell whether that is so."""
        self._begin()
        try:
            is_alone = self._create(_ALL)
            try:
                yield is_alone and not any(self._holder(name) for name in self._claimed())
            finally:
                if is_alone:
                    with suppress(OSError):
                        (self._folder / _ALL).unlink()
        finally:
            self.close()

    def _begin(self) -> None:
        """Say who claims, and go on saying so."""
        if self._pid == os.getpid():
            return
        # After a fork too: tokens and held facts are the parent's then.
        self._pid, self._token, self.held = os.getpid(), secrets.token_hex(8), set()
        self._ended = threading.Event()
        self._folder.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # who may write in the store may claim in it
            self._folder.chmod(self._folder.parent.stat().st_mode & 0o7777)
        _write_new(self._own, this_process().line())
        beat = threading.Thread(target=_beat, args=(self._own, self._ended), daemon=True)
        beat.start()

    def _claimed(self) -> list[str]:
        return [entry.name for entry in self._folder.iterdir() if entry.name.isdigit()]

    def _create(self, name: str) -> bool:
        """Whether a name is ours now."""
        path = self._folder / name
        for _ in range(2):
            try:
                _write_new(path, self._token.encode())
            except FileExistsError:
                if self._holder(name) is not None or not self._cleared(path):
                    return False
            except FileNotFoundError:  # the last process before us removed the folder
                self._pid = 0
                self._begin()
            else:
                return True
        return False

    def _holder(self, name: str) -> Owner | None:
        """The living process, other than this, that holds a name."""
        token, age_of = _read(self._folder / name)
        if age_of is None or token == self._token.encode():
            return None
        line, beat = b"", None
        if _TOKEN.fullmatch(token.decode("ascii", "replace")):
            line, beat = _read(self._folder / f"{_OWNER}{token.decode('ascii')}")
        owner = parsed(line)
        if owner is not None and owner.is_gone():
            return None
        # One that is being written has no token yet, and is as old as itself.
        if self._now() - (age_of if beat is None else beat) > _EXPIRE_SECONDS:
            return None
        return owner or NOBODY_KNOWN

    def _now(self) -> float:
        """By the clock that dates the files, which may go otherwise than this machine's."""
        os.utime(self._own)
        return self._own.stat().st_mtime

    def _cleared(self, path: Path) -> bool:
        """Take the file of a dead process out of the way."""
        before, _ = _read(path)
        aside = path.with_name(f"dead-{secrets.token_hex(8)}")
        try:
            path.rename(aside)
        except OSError:  # another process was first
            return not path.exists()
        found, _ = _read(aside)
        if found != before and not path.exists():  # it has just become a living one's
            with suppress(OSError):
                aside.rename(path)
            return False
        with suppress(OSError):
            aside.unlink()
        with suppress(OSError):
            text = before.decode("ascii", "replace")
            if _TOKEN.fullmatch(text) and not self._is_named(before):
                (self._folder / f"{_OWNER}{text}").unlink()
        return True

    def _is_named(self, token: bytes) -> bool:
        return any(_read(self._folder / name)[0] == token for name in self._claimed())

    def _remove(self, indices: Collection[int]) -> None:
        for index in indices:
            path = self._folder / str(index)
            # Taken over, where this process slept too long: no longer ours.
            if _read(path)[0] == self._token.encode():
                with suppress(OSError):
                    path.unlink()


def filed_by(folder: Path, indices: Collection[int]) -> Mapping[int, Owner]:
    """Who claims some facts by files; nothing is written, so those that expired are told of too."""
    place = folder / FOLDER
    found: dict[int, Owner] = {}
    for index in indices if place.is_dir() else ():
        token, age = _read(place / str(index))
        if age is None:
            continue
        text = token.decode("ascii", "replace")
        line = _read(place / f"{_OWNER}{text}")[0] if _TOKEN.fullmatch(text) else b""
        owner = parsed(line) or NOBODY_KNOWN
        if not owner.is_gone():
            found[index] = owner
    return found


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(_BEAT_SECONDS):
        with suppress(OSError):
            os.utime(path)


def _write_new(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o666)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


def _read(path: Path) -> tuple[bytes, float | None]:
    """What a small file says, and when it was touched; None for the time where there is none."""
    # Opened: a network file system asks its server then, and for a name may answer from memory.
    flags = os.O_RDONLY | NO_FOLLOW | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError:
        return b"", None
    try:
        return os.read(descriptor, MOST_BYTES + 1), os.fstat(descriptor).st_mtime
    except OSError:
        return b"", None
    finally:
        os.close(descriptor)
