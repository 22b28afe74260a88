"""SIGINT and SIGTERM as exceptions, so that a run which is told to end keeps what is finished."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM: a job manager or a shutdown ends this run; what is finished is kept."""


# What a signal raised, until the run has ended.
_raised: list[type[KeyboardInterrupt]] = []


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Turn SIGTERM into `Terminated`, and SIGINT, unless it is ignored, into `KeyboardInterrupt`.

    Only a main thread can; in others nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: they are being kept
        _raised.append(Terminated)
        raise Terminated

    def interrupt(number: int, frame: FrameType | None) -> None:
        _raised.append(KeyboardInterrupt)
        raise KeyboardInterrupt

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, terminate)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    _raised.clear()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _raised.clear()


def raise_if_signalled() -> None:
    """Raise once more what a signal raised.

    Python drops exceptions in finalizers and weak references' callbacks; a signal that comes while
    one runs would be lost, were it not asked for between facts.
    """
    if _raised:
        raise _raised[-1]
