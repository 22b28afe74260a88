"""Claims as the kernel keeps them: locks on single bytes of one file, gone with their process.

The byte's number is the fact's index. What the file holds is a line from each process that opened
it, which says who that is.
"""

import errno
import importlib
import os
import stat
import struct
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from ktrace.files import NO_FOLLOW, NO_LOCKS
from ktrace.store.owners import MOST_BYTES, NOBODY_KNOWN, Owner, parsed, this_process

NAME = ".claims"
_MOST_BYTES = 2**20  # of lines; more say nothing new
# `struct flock`: what the kernel is asked with, and answers in.
_LAYOUTS = {"linux": "hhqqi4x", "darwin": "qqihh"}
# Windows keeps others from reading what is locked, so its bytes lie beyond the lines.
_BEYOND = 2**30


class LocksMissingError(Exception):
    """The system or the file system keeps no locks, or not for this user."""


class _System(Protocol):
    """Locks of single bytes; of all of them where the index is None."""

    def lock(self, descriptor: int, index: int | None) -> bool:
        """Whether nobody else holds it."""

    def unlock(self, descriptor: int, index: int | None) -> None:
        """Let go of it."""

    def holder(self, descriptor: int, index: int | None) -> int | None:
        """The process that holds it; 0 for one elsewhere, None for none."""


class _Posix:
    def __init__(self, fcntl: Any) -> None:
        self._fcntl = fcntl

    def lock(self, descriptor: int, index: int | None) -> bool:
        kind = self._fcntl.LOCK_EX | self._fcntl.LOCK_NB
        try:
            self._fcntl.lockf(descriptor, kind, *_range(index))
        except (BlockingIOError, PermissionError):  # POSIX allows either
            return False
        return True

    def unlock(self, descriptor: int, index: int | None) -> None:
        self._fcntl.lockf(descriptor, self._fcntl.LOCK_UN, *_range(index))

    def holder(self, descriptor: int, index: int | None) -> int | None:
        layout = _LAYOUTS.get(sys.platform)
        if layout is None:
            return None
        fcntl, (length, start) = self._fcntl, _range(index) or (0, 0)
        if sys.platform == "linux":
            asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
            kind, _, _, _, pid = struct.unpack(
                layout, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked)
            )
        else:
            asked = struct.pack(layout, start, length, 0, fcntl.F_WRLCK, os.SEEK_SET)
            _, _, pid, kind, _ = struct.unpack(
                layout, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked)
            )
        return None if kind == fcntl.F_UNLCK else max(pid, 0)


class _Windows:
    def __init__(self, msvcrt: Any) -> None:
        self._msvcrt = msvcrt

    def lock(self, descriptor: int, index: int | None) -> bool:
        try:
            self._at(descriptor, self._msvcrt.LK_NBLCK, index)
        except PermissionError:
            return False
        except OSError as error:
            if error.errno == errno.EDEADLK:  # as its C library calls it
                return False
            raise
        return True

    def unlock(self, descriptor: int, index: int | None) -> None:
        self._at(descriptor, self._msvcrt.LK_UNLCK, index)

    def holder(self, descriptor: int, index: int | None) -> int | None:
        if not self.lock(descriptor, index):
            return 0
        self.unlock(descriptor, index)
        return None

    def _at(self, descriptor: int, how: int, index: int | None) -> None:
        os.lseek(descriptor, _BEYOND + (index or 0), os.SEEK_SET)
        self._msvcrt.locking(descriptor, how, _BEYOND - 1 if index is None else 1)


def _range(index: int | None) -> tuple[int, ...]:
    """Length and start, as `lockf` takes them; nothing for the whole file."""
    return () if index is None else (1, index)


def system_locks() -> _System | None:
    """Those of this system. Asked for when they are needed: no system has both modules."""
    kinds: tuple[tuple[str, Any], ...] = (("fcntl", _Posix), ("msvcrt", _Windows))
    for module, kind in kinds:
        with suppress(ImportError):
            found: _System = kind(importlib.import_module(module))
            return found
    return None


class KernelLocks:
    """Claims of one process on the facts of one store. POSIX locks: threads share them."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._system = system_locks()
        self._descriptor: int | None = None
        self.held: set[int] = set()

    def take(self, indices: Collection[int]) -> bool:
        """Claim all of some facts; False, and none of them, where another process holds one.

        Raises:
            LocksMissingError: nobody can tell.
            OSError: the folder cannot be written.
        """
        wanted = sorted(set(indices) - self.held)
        while True:
            descriptor, system = self._opened()
            if not self._lock(descriptor, system, wanted):
                return False
            if self._is_current(descriptor):
                return True
            # Another process removed the file between our opening and locking it: what we hold
            # there binds nobody. (With facts in hand this cannot be: it is removed unlocked only.)
            self.close()

    def holders(self, indices: Collection[int]) -> Mapping[int, Owner]:
        """Who holds some facts. By the open file: closing another would let go of all of ours."""
        if self._descriptor is None or self._system is None:
            return locked_by(self._path.parent, indices)
        return _told(self._descriptor, self._system, indices)

    def release(self, indices: Collection[int]) -> None:
        """Let go of facts; those that are not held do no harm."""
        if self._descriptor is None or self._system is None:
            return
        for index in sorted(self.held & set(indices)):
            # What cannot be let go of ends with the process: no reason to lose its results.
            with suppress(OSError):
                self._system.unlock(self._descriptor, index)
            self.held.discard(index)

    def close(self) -> None:
        """Let go of everything; the last process to do so removes the file."""
        if self._descriptor is None or self._system is None:
            return
        self.release(list(self.held))
        descriptor, self._descriptor = self._descriptor, None
        is_last = False
        try:
            # Of POSIX, all that is left of this process: a lock may have been taken twice.
            if isinstance(self._system, _Posix):
                self._system.unlock(descriptor, None)
            is_last = self._system.lock(descriptor, None) and self._is_current(descriptor)
            if is_last and os.name == "posix":  # Windows removes no open file
                self._path.unlink(missing_ok=True)
        except OSError as error:
            # No locks here: files are taken in its place, and ours alone is no longer needed.
            # What others opened stays; a small file more does no harm.
            if error.errno in NO_LOCKS and _has_one_line(descriptor):
                with suppress(OSError):
                    self._path.unlink()
        finally:
            os.close(descriptor)
        if is_last and os.name != "posix":
            with suppress(OSError):  # another process has opened it by now
                self._path.unlink()

    @contextmanager
    def all_of_it(self) -> Iterator[bool]:
        """Hold every fact of a store that nobody works on, and tell whether that is so."""
        descriptor, system = self._opened()
        try:
            try:
                is_alone = system.lock(descriptor, None) and self._is_current(descriptor)
            except OSError as error:
                if error.errno in NO_LOCKS:
                    raise LocksMissingError from error
                is_alone = False
            yield is_alone
        finally:
            self.close()

    def _opened(self) -> tuple[int, _System]:
        if self._system is None:
            raise LocksMissingError
        if self._descriptor is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = _open(self._path, self._system)
        return self._descriptor, self._system

    def _lock(self, descriptor: int, system: _System, wanted: Collection[int]) -> bool:
        taken: list[int] = []
        for index in wanted:
            try:
                is_free = system.lock(descriptor, index)
            except OSError as error:
                self.held.update(taken)
                self.release(taken)
                if error.errno in NO_LOCKS:
                    raise LocksMissingError from error
                raise
            if not is_free:
                self.held.update(taken)
                self.release(taken)
                return False
            taken.append(index)
        self.held.update(taken)
        return True

    def _is_current(self, descriptor: int) -> bool:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        opened = os.fstat(descriptor)
        return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)


def _open(path: Path, system: _System) -> int:
    """The file of claims, for writing: POSIX locks nothing else."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | NO_FOLLOW
    while True:
        try:
            descriptor = os.open(path, flags, 0o666)
            break
        except PermissionError as error:
            # Another user's, and written without leave for the group. A dead one's is replaced.
            try:
                if _any_holder(path, system) is not None:
                    raise LocksMissingError from error
                path.unlink(missing_ok=True)
            except OSError:
                raise error from None
    with suppress(OSError, AttributeError):  # not ours to change, or a system without modes
        # Who may write in the folder may claim in it, whatever the umask.
        found, folder = os.fstat(descriptor), path.parent.stat()
        os.fchmod(descriptor, stat.S_IMODE(found.st_mode) | (folder.st_mode & 0o022))
    with suppress(OSError):
        if os.fstat(descriptor).st_size < _MOST_BYTES:
            os.write(descriptor, this_process().line())
    return descriptor


def _any_holder(path: Path, system: _System) -> int | None:
    descriptor = os.open(path, os.O_RDONLY | NO_FOLLOW | getattr(os, "O_NONBLOCK", 0))
    try:
        return system.holder(descriptor, None)
    finally:
        os.close(descriptor)


def locked_by(folder: Path, indices: Collection[int]) -> Mapping[int, Owner]:
    """Who holds locks on some facts, as far as the kernel tells; nothing is written."""
    system = system_locks()
    flags = os.O_RDONLY | NO_FOLLOW | getattr(os, "O_NONBLOCK", 0)
    if system is None:
        return {}
    try:
        descriptor = os.open(folder / NAME, flags)
    except OSError:  # nobody works there, or it may not be read
        return {}
    try:
        return _told(descriptor, system, indices)
    finally:
        os.close(descriptor)


def _told(descriptor: int, system: _System, indices: Collection[int]) -> Mapping[int, Owner]:
    try:
        pids = {index: system.holder(descriptor, index) for index in indices}
        held = {index: pid for index, pid in pids.items() if pid is not None}
        owners = _owners(descriptor) if held else []
    except OSError:
        return {}
    return {index: _named(pid, owners) for index, pid in held.items()}


def _has_one_line(descriptor: int) -> bool:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 2 * MOST_BYTES).count(b"\n") <= 1


def _owners(descriptor: int) -> list[Owner]:
    """Who opened the file, the last one first; the dead among them."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    lines = os.read(descriptor, _MOST_BYTES + MOST_BYTES).splitlines()
    return [owner for line in reversed(lines) if (owner := parsed(line)) is not None]


def _named(pid: int, owners: Collection[Owner]) -> Owner:
    if pid:
        here = (owner for owner in owners if owner.pid == pid and owner.is_here)
        return next(here, this_process()._replace(pid=pid, since="", command=""))
    # The kernel gives no number for another machine: only one that is alone there can be named.
    elsewhere = {owner for owner in owners if not owner.is_here}
    hosts = {owner.host for owner in elsewhere}
    if len(elsewhere) == 1:
        return elsewhere.pop()
    return Owner(0, hosts.pop()) if len(hosts) == 1 else NOBODY_KNOWN
