"""SIGINT and SIGTERM as exceptions, so that a run which is told to end keeps what is finished."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ktrace.errors import Terminated

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

# Signals that came while they were held back.
_kept: list[int] = []

# What signals raised, until the context has ended; None outside of one.
_raised: list[type[KeyboardInterrupt]] | None = None


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Turn SIGTERM into `Terminated`, and SIGINT, unless it is ignored, into `KeyboardInterrupt`.

    Only a main thread can; in others, and within another such context, nothing changes.
    """
    global _raised
    if _raised is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    raised = _raised = list[type[KeyboardInterrupt]]()

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: they are being kept
        raised.append(Terminated)
        raise Terminated

    def interrupt(number: int, frame: FrameType | None) -> None:
        raised.append(KeyboardInterrupt)
        raise KeyboardInterrupt

    handlers = {signal.SIGTERM: terminate}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        handlers[signal.SIGINT] = interrupt
    before = {number: signal.getsignal(number) for number in handlers}
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
        _raised = None


@contextmanager
def held_back() -> Iterator[None]:
    """Keep signals until the context ends, so that nothing inside is left half done.

    A process that is forked inside keeps them until it is `as_worker`. Not by a mask: another
    thread, such as one of torch's, would take them.
    """
    _kept.clear()
    raising: dict[int, Callable[[int, FrameType | None], object]] = {}
    if threading.current_thread() is threading.main_thread():
        for each in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(each)
            if callable(before):
                raising[each] = before
                signal.signal(each, _keep)
    try:
        yield
    finally:
        for number, handler in raising.items():
            signal.signal(number, handler)
        for number in _kept:
            raising[number](number, None)


def _keep(number: int, frame: FrameType | None) -> None:
    _kept.append(number)


@contextmanager
def as_worker(parent: int) -> Iterator[None]:
    """In a process that was just forked: end when the parent says so by SIGTERM, or is gone.

    Ctrl-C reaches every process of a terminal; here it is the parent's business.

    Args:
        parent: its process id.

    Raises:
        Terminated: now or at any moment inside.
    """
    import ctypes  # of workers alone

    global _raised
    _raised = None  # what was raised in the parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _keep)  # also when all is done, and nothing left to end
    with ended_by_signals():
        # From now on the system tells of the parent's death; it may have died before.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if _kept or os.getppid() != parent:
            raise Terminated
        yield


def raise_if_signalled() -> None:
    """Raise once more what a signal raised.

    Python drops exceptions in finalizers and weak references' callbacks; a signal that comes while
    one runs would be lost, were it not asked for between groups of facts.
    """
    if _raised:
        raise Terminated if Terminated in _raised else KeyboardInterrupt
