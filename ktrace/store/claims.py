"""Which process works on which facts, so that several on one store do no work twice.

A claim is a lock on one byte of a file: the byte's number is the fact's index. The kernel lets go
of it when the process ends, however it ends, so a killed run leaves no claim behind. Claims only
save work. Numbers do not hang on them: where a file system keeps no locks, a fact may be computed
twice, and readers take it once.
"""

import fcntl
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ktrace.errors import KtraceError
from ktrace.files import NO_LOCKS

log = logging.getLogger(__name__)

Unit = TypeVar("Unit")

NAME = ".claims"
_POLL_SECONDS = 0.2


class Claims:
    """The claims of one process on the facts of one store. POSIX locks: threads share them."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._descriptor: int | None = None
        self._held: set[int] = set()

    def take(self, indices: Collection[int]) -> bool:
        """Claim all of some facts; False, and none of them, where another process holds one.

        Raises:
            KtraceError: the folder cannot be written.
        """
        wanted = sorted(set(indices) - self._held)
        while True:
            descriptor = self._opened()
            if not self._lock(descriptor, wanted):
                return False
            if self._is_current(descriptor):
                return True
            # Another process removed the file between our opening and locking it: what we hold
            # there binds nobody. (With facts in hand this cannot be: it is removed unlocked only.)
            self.close()

    def release(self, indices: Collection[int]) -> None:
        """Let go of facts; those that are not held do no harm."""
        if self._descriptor is None:
            return
        for index in sorted(self._held & set(indices)):
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, index)
            self._held.discard(index)

    def close(self) -> None:
        """Let go of everything; the last process to do so removes the file."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        self._held.clear()
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_UN)
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # all of it: nobody holds any
            if self._is_current(descriptor):
                self._path.unlink(missing_ok=True)
        except OSError:
            pass  # others work on, or no locks here; an empty file more does no harm
        finally:
            os.close(descriptor)

    @contextmanager
    def all_of_it(self) -> Iterator[bool]:
        """Hold every fact of a store that nobody works on, and tell whether that is so.

        Where the file system keeps no locks nobody can tell, and it is False.
        """
        descriptor = self._opened()
        try:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_alone = self._is_current(descriptor)
            except OSError:
                is_alone = False
            yield is_alone
        finally:
            self.close()

    def _opened(self) -> int:
        if self._descriptor is None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise KtraceError(
                    f"output_dir: {self._path} cannot be written: {error.strerror}"
                ) from error
        return self._descriptor

    def _lock(self, descriptor: int, wanted: Iterable[int]) -> bool:
        taken: list[int] = []
        for index in wanted:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, index)
            except (BlockingIOError, PermissionError):  # POSIX allows either
                self._held.update(taken)
                self.release(taken)
                return False
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise KtraceError(
                        f"output_dir: {self._path} cannot be locked: {error.strerror}"
                    ) from error
            taken.append(index)
        self._held.update(taken)
        return True

    def _is_current(self, descriptor: int) -> bool:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        opened = os.fstat(descriptor)
        return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)


@contextmanager
def one_at_a_time(folder: Path, work: str) -> Iterator[None]:
    """Keep other processes out of a piece of work on a folder; waits until they are done with it.

    Args:
        folder: must exist. Where its file system keeps no locks, nobody is kept out.
        work: for the line that is logged on waiting, such as "analyses this run".

    Raises:
        KtraceError: the folder cannot be written.
    """
    claims = Claims(folder)
    is_told = False
    try:
        while not claims.take([0]):
            if not is_told:
                log.info("waiting for another process, which %s", work)
                is_told = True
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        claims.close()


def work_through(
    units: Iterable[Unit], attempt: Callable[[Unit], bool], let_go: Callable[[], None]
) -> None:
    """Do every unit of work, beside other processes that may be at the same ones.

    Args:
        units: tried in this order; one that is another's for now is tried again later.
        attempt: does a unit and returns True, or returns False where another process is at it.
        let_go: called before waiting: keeps what is in hand and gives up its claims, so that two
            processes never wait for each other.
    """
    left = list(units)
    is_told = False
    while left:
        waiting = [unit for unit in left if not attempt(unit)]
        if len(waiting) == len(left):
            let_go()
            if not is_told:
                log.info("waiting for another process, which works on the last of these facts")
                is_told = True
            time.sleep(_POLL_SECONDS)
        left = waiting
