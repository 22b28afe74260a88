"""Figures are drawn in processes of their own, while the rest of an analysis goes on.

matplotlib and seaborn take a second to load, and most figures half a second. The processes load
them while stores are read; this one never does, unless it has a single processor.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from multiprocessing import (
    current_process,
    forkserver,
    get_all_start_methods,
    get_context,
    parent_process,
)
from pathlib import Path
from threading import Thread
from types import ModuleType

from ktrace.analysis.figures.files import Saved

_HERE = "ktrace.analysis.figures"
_START = "forkserver"  # forks of a process that has loaded matplotlib and holds nothing else
_MOST = 4  # processes: there are about ten figures


class Artists:
    """What draws figures.

    Args:
        pool: processes; None draws each figure here, at once.
    """

    def __init__(self, pool: Executor | None = None) -> None:
        self._pool = pool

    def begin(self, stem: Path, make: str, *args: object, **options: object) -> Callable[[], Saved]:
        """Begin to draw a figure and write its files.

        Args:
            stem: of the files.
            make: what gives the figure, `<module of this room>.<function>`; it is found by name,
                where matplotlib is loaded.
            args: of that function; they are copied to another process.
            options: likewise.

        Returns:
            What waits for the files and raises what stood in their way.
        """
        work = partial(_drawn, stem, make, args, options)
        if self._pool is None:
            saved = work()
            return lambda: saved
        try:
            with _no_main_module():
                future = self._pool.submit(work)
        except BrokenExecutor:
            return work

        def finish() -> Saved:
            try:
                return future.result()
            except BrokenExecutor:  # such as one that was killed for its memory
                return work()

        return finish


@contextmanager
def artists() -> Iterator[Artists]:
    """Processes that draw figures; they are there, and loading, from the beginning.

    They end with the context, and with this process, whatever ends it.
    """
    count = min(_processors(), _MOST)
    if count < 2 or _START not in get_all_start_methods() or current_process().daemon:
        yield Artists()
        return
    context = get_context("forkserver")
    context.set_forkserver_preload([f"{_HERE}.{name}" for name in ("curves", "heatmaps")])
    pool = ProcessPoolExecutor(count, context, initializer=_end_with_parent)
    try:
        forkserver.ensure_running()  # and does not wait until it has loaded what draws
        yield Artists(pool)
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _no_main_module() -> Iterator[None]:
    """While processes start: what they draw with is imported, never the program that asked for it.

    They would run a script again that has no `if __name__ == "__main__"`, and load what it loads.
    """
    own = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = own


def _processors() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _end_with_parent() -> None:
    """In a process that draws: no interrupt reaches it, and no end of its parent leaves it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    Thread(target=follow, daemon=True).start()


def _drawn(stem: Path, make: str, args: tuple[object, ...], options: dict[str, object]) -> Saved:
    """Draw a figure and write its files."""
    module, _, name = make.partition(".")
    figure = getattr(import_module(f"{_HERE}.{module}"), name)(*args, **options)
    saved: Saved = import_module(f"{_HERE}.style").save(figure, stem)
    return saved
