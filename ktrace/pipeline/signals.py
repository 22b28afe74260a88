"""SIGINT and SIGTERM as exceptions, so that a run which is told to end keeps what is finished."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ktrace.errors import Terminated

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


def raise_if_signalled() -> None:
    """Raise once more what a signal raised.

    Python drops exceptions in finalizers and weak references' callbacks; a signal that comes while
    one runs would be lost, were it not asked for between groups of facts.
    """
    if _raised:
        raise Terminated if Terminated in _raised else KeyboardInterrupt
