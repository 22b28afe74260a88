"""Which process works on which facts, so that several on one store do no work twice.

The kernel's locks say so where there are any (`locks.py`): it lets go of them when the process
ends, however it ends. Where a file system keeps none, files say so (`lockfiles.py`). Claims only
save work. Numbers do not hang on them: without any, a fact may be computed twice, and readers take
it once.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ktrace.errors import KtraceError
from ktrace.store.lockfiles import LockFiles, filed_by
from ktrace.store.locks import KernelLocks, LocksMissingError, locked_by
from ktrace.store.owners import Owner
from ktrace.terms import ClaimKind

log = logging.getLogger(__name__)

Unit = TypeVar("Unit")

_POLL_SECONDS = 0.2


class Claims:
    """The claims of one process on the facts of one store.

    Args:
        folder: of the store.
        kind: how they are made; `auto` takes files where there are no locks.
    """

    def __init__(self, folder: Path, kind: ClaimKind = ClaimKind.auto) -> None:
        self._folder = folder
        self._kind = kind
        self._by: KernelLocks | LockFiles = (
            LockFiles(folder) if kind is ClaimKind.files else KernelLocks(folder)
        )

    def take(self, indices: Collection[int]) -> bool:
        """Claim all of some facts; False, and none of them, where another process holds one.

        Raises:
            KtraceError: the folder cannot be written, or keeps no locks that were asked for.
        """
        if self._kind is ClaimKind.none:
            return True
        with self._complaining():
            try:
                return self._by.take(indices)
            except LocksMissingError:
                held = self._fall_back()
            return self._by.take({*held, *indices})

    def holder(self, indices: Collection[int]) -> Owner | None:
        """Who works on one of some facts; None where that has just ended, or nobody can tell."""
        return next(iter(self._by.holders(indices).values()), None)

    def release(self, indices: Collection[int]) -> None:
        """Let go of facts; those that are not held do no harm."""
        self._by.release(indices)

    def close(self) -> None:
        """Let go of everything; the last process to do so leaves no file of claims."""
        self._by.close()

    @contextmanager
    def all_of_it(self) -> Iterator[bool]:
        """Hold every fact of a store that nobody works on, and tell whether that is so.

        Without claims nobody can tell, and it is False.

        Raises:
            KtraceError: the folder cannot be written, or keeps no locks that were asked for.
        """
        if self._kind is ClaimKind.none:
            yield False
            return
        with self._complaining():
            held = self._by.all_of_it()
            try:
                is_alone = held.__enter__()
            except LocksMissingError:
                self._fall_back()
                held = self._by.all_of_it()
                is_alone = held.__enter__()
        try:
            yield is_alone
        finally:
            held.__exit__(None, None, None)

    def _fall_back(self) -> set[int]:
        """Claim by files from here on; gives what was held until now."""
        if self._kind is ClaimKind.locks:
            raise KtraceError(
                f"claims=locks: the file system of {self._folder} keeps none: claims=files takes "
                "files, claims=none nothing"
            )
        log.info("%s: no locks are kept here; files in their place", self._folder)
        held = set(self._by.held)
        self._by.close()
        self._by = LockFiles(self._folder)
        return held

    @contextmanager
    def _complaining(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KtraceError(
                f"output_dir: {self._folder} cannot be written: {error.strerror}"
            ) from error


def holders(folder: Path, indices: Iterable[int]) -> Mapping[int, Owner]:
    """Who works on some facts of a store, by index, as far as kernel and files tell.

    Nothing is written, and nothing where nobody can tell.
    """
    asked = list(indices)
    return {**filed_by(folder, asked), **locked_by(folder, asked)}


@contextmanager
def one_at_a_time(folder: Path, work: str, kind: ClaimKind = ClaimKind.auto) -> Iterator[None]:
    """Keep other processes out of a piece of work on a folder; waits until they are done with it.

    Args:
        folder: must exist.
        work: for the line that is logged on waiting, such as "analyses this run".
        kind: how it is claimed; of `none`, nobody is kept out.

    Raises:
        KtraceError: the folder cannot be written.
    """
    claims = Claims(folder, kind)
    is_told = False
    try:
        while not claims.take([0]):
            if not is_told:
                _tell(work, claims.holder([0]))
                is_told = True
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        claims.close()


def work_through(
    units: Iterable[Unit],
    attempt: Callable[[Unit], bool],
    let_go: Callable[[], None],
    holder: Callable[[Unit], Owner | None],
) -> None:
    """Do every unit of work, beside other processes that may be at the same ones.

    Args:
        units: tried in this order; one that is another's for now is tried again later.
        attempt: does a unit and returns True, or returns False where another process is at it.
        let_go: called before waiting: keeps what is in hand and gives up its claims, so that two
            processes never wait for each other.
        holder: says who is at a unit, for the line that is logged on waiting.
    """
    left = list(units)
    is_told = False
    while left:
        waiting = [unit for unit in left if not attempt(unit)]
        if len(waiting) == len(left):
            let_go()
            if not is_told:
                _tell("works on the last of these facts", holder(waiting[0]))
                is_told = True
            time.sleep(_POLL_SECONDS)
        left = waiting


def _tell(work: str, owner: Owner | None) -> None:
    who = f": {owner.sentence}" if owner is not None else ""
    log.info("waiting for another process, which %s%s", work, who)
