"""SIGTERM as an exception, so that a run which is told to end keeps the facts that are finished."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM: a job manager or a shutdown ends this run; what is finished is kept."""


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Turn SIGTERM into `Terminated`. Only a main thread can; in others nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: they are being kept
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
