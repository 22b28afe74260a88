"""SIGINT and SIGTERM as exceptions, so that a run which is told to end keeps what is finished."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ktrace.errors import Terminated

_HELD_BACK = frozenset({signal.SIGINT, signal.SIGTERM})
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

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
def as_worker(parent: int) -> Iterator[None]:
    """In a process that was just forked: end when the parent says so by SIGTERM, or is gone.

    Ctrl-C reaches every process of a terminal; here it is the parent's business. Both signals are
    held back around the fork (`held_back`), and come again inside.

    Args:
        parent: its process id.
    """
    import ctypes  # of workers alone

    global _raised
    _raised = None  # what was raised in the parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What is in force again at the end, when there is nothing left to end. Not SIG_IGN: that would
    # forget a signal that waits.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    with ended_by_signals():
        # The system tells of the parent's death from now on; it may have died before.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)
        if os.getppid() != parent:
            raise Terminated
        yield


@contextmanager
def held_back() -> Iterator[None]:
    """Hold signals back: a process that is forked inside has handlers of its own before they come.

    The parent gets them when the context ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def raise_if_signalled() -> None:
    """Raise once more what a signal raised.

    Python drops exceptions in finalizers and weak references' callbacks; a signal that comes while
    one runs would be lost, were it not asked for between groups of facts.
    """
    if _raised:
        raise Terminated if Terminated in _raised else KeyboardInterrupt
