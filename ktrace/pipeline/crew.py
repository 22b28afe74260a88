"""Forked processes that share a piece of work, and what they say to their parent.

What a worker logs or warns of, the parent says in its place, and once where several say the same.
An exception of one of them is raised in the parent, when the others have ended. They keep what they
have finished, also when the parent is killed.
"""

import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from ktrace.errors import KtraceError, NoMemoryLeftError
from ktrace.pipeline.signals import as_worker, held_back, raise_if_signalled

_TOKENIZERS = "TOKENIZERS_PARALLELISM"
_LOOK_SECONDS = 1.0
_GRACE_SECONDS = 20.0  # longer than a call of the engine takes

# Takes what calls for it; gets a function that tells the parent a number.
Share = Callable[[Callable[[int], None]], None]


class _InWorkerError(Exception):
    """Where in a worker an exception came from: the cause of the one that the parent raises."""


@dataclass(frozen=True)
class _Failure:
    error: Exception
    trace: str


@dataclass(frozen=True)
class _Warning:
    """As `warnings.showwarning` gets it."""

    message: str
    category: type[Warning]
    filename: str
    lineno: int


class _End:
    """A worker's last word where all went well."""


@contextmanager
def crew(count: int, share: Share) -> Iterator[Iterator[int]]:
    """Fork workers that all do `share`.

    Nothing that must not be shared may be open: no part, no claim. Leaving the context ends those
    that still work, and waits for them.

    Args:
        count: of workers.
        share: what each does.

    Yields:
        What they tell, as it comes, until all have ended. It raises what one of them raised, and a
        `KtraceError` where one was killed.
    """
    members: dict[Connection, BaseProcess] = {}
    try:
        with held_back(), _without_complaints():  # no worker is begun and not among them
            for _ in range(count):
                connection, process = _forked(share)
                members[connection] = process
        yield _told(dict(members))
    finally:
        # First, so that nobody waits to be heard.
        for connection in members:
            connection.close()
        _end(list(members.values()))


def _end(processes: Sequence[BaseProcess]) -> None:
    """End those that still work; one that does not hear of it, as it is paused or stuck, is killed.

    What it has finished is stored, and its claims end with it.
    """
    for process in processes:
        process.terminate()
    until = time.monotonic() + _GRACE_SECONDS
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()


def _forked(share: Share) -> tuple[Connection, BaseProcess]:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=_work, args=(sender, share, os.getpid()), daemon=True
    )
    try:
        process.start()
    except OSError as error:  # no memory, or as many processes as one may have
        raise KtraceError(
            f"engine.workers: another process cannot be started ({error.strerror}): fewer may do"
        ) from error
    finally:
        sender.close()
    return receiver, process


@contextmanager
def _without_complaints() -> Iterator[None]:
    """Fork beside threads that take no part in it: the workers start none, and hold no lock.

    Python (3.12) warns of any thread, such as those that torch keeps for its next product. The
    library tokenizers complains unless it was told before the fork what to do after it.
    """
    is_told = _TOKENIZERS in os.environ
    os.environ.setdefault(_TOKENIZERS, "false")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
            yield
    finally:
        if not is_told:
            del os.environ[_TOKENIZERS]


def _work(sender: Connection, share: Share, parent: int) -> None:
    """A worker, from its first step to its last."""

    def say(what: object) -> None:
        with suppress(BrokenPipeError):  # the parent waits for the end alone
            sender.send(what)

    os.environ.setdefault(_TOKENIZERS, "false")
    sys.unraisablehook = _tell_of_no_signal
    try:
        with as_worker(parent):
            _speak_by(say)
            share(say)
            say(_End())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)
    except Exception as error:
        say(_Failure(_as_sent(error), traceback.format_exc()))


def _tell_of_no_signal(dropped: "sys.UnraisableHookArgs") -> None:
    """Where Python drops what a signal raised, it is raised again between groups of facts."""
    if not issubclass(dropped.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(dropped)


def _as_sent(error: Exception) -> Exception:
    """An exception that survives being sent."""
    try:
        deepcopy(error)  # made anew from what it says of itself, as where it is received
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class _Sent(QueueHandler):
    """Sends log records instead of showing them."""

    def enqueue(self, record: logging.LogRecord) -> None:
        self.queue(record)  # type: ignore[operator]  # a function, not a queue


def _speak_by(say: Callable[[object], None]) -> None:
    """Have log lines and warnings sent, also those of libraries with handlers of their own."""
    logging.root.handlers = [_Sent(say)]  # type: ignore[arg-type]  # see there
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger) and logger.handlers:
            logger.handlers, logger.propagate = [], True

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object
    ) -> None:
        say(_Warning(str(message), category, filename, lineno))

    warnings.showwarning = show  # type: ignore[assignment]  # of its other arguments none is given


@dataclass
class _Heard:
    """What workers said, so that the parent says it once."""

    _said: Counter[object] = field(default_factory=Counter)
    _by: Counter[tuple[Connection, object]] = field(default_factory=Counter)
    _shown: dict[str | tuple[str, type[Warning], int], int] = field(default_factory=dict)

    def repeat(self, speaker: Connection, what: object) -> None:
        """Say what a worker logged or warned of, unless another one has said it before."""
        if isinstance(what, logging.LogRecord):
            line = (what.name, what.levelno, what.getMessage())
            self._by[speaker, line] += 1
            if self._by[speaker, line] > self._said[line]:
                self._said[line] += 1
                logging.getLogger(what.name).handle(what)
        elif isinstance(what, _Warning):
            warnings.warn_explicit(
                what.message, what.category, what.filename, what.lineno, registry=self._shown
            )


def _told(members: dict[Connection, BaseProcess]) -> Iterator[int]:
    count, heard = len(members), _Heard()
    while members:
        raise_if_signalled()
        for connection in wait(list(members), _LOOK_SECONDS):
            assert isinstance(connection, Connection)
            try:
                what = connection.recv()
            except EOFError:
                raise _lost(members[connection], count) from None
            if isinstance(what, int):
                yield what
            elif isinstance(what, _End):
                del members[connection]
            elif isinstance(what, _Failure):
                raise _raised(what, count)
            else:
                heard.repeat(connection, what)


def _raised(failure: _Failure, count: int) -> Exception:
    error = failure.error
    if isinstance(error, NoMemoryLeftError):
        return NoMemoryLeftError(f"{error}; or fewer workers (engine.workers={count})")
    if not isinstance(error, KtraceError):
        error.__cause__ = _InWorkerError(f"in a worker:\n{failure.trace}")
    return error


def _lost(process: BaseProcess, count: int) -> KtraceError:
    process.join(_GRACE_SECONDS)
    raise_if_signalled()  # who ended the worker may have meant this process, too
    code = process.exitcode or 0
    number = -code if code < 0 else code - 128
    try:
        how = f"was ended by {signal.Signals(number).name}"
    except ValueError:
        how = f"ended with code {code}"
    return KtraceError(
        f"engine.workers={count}: one of them {how}, as by the system when memory runs out: "
        "fewer take less; the same command goes on where this run stopped"
    )
