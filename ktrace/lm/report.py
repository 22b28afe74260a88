"""What transformers says and shows while it loads a model: what ktrace lets through, and how."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from functools import partial
from typing import Any

from transformers.utils import logging as transformers_logging

from ktrace.lm.told import Told

# transformers types it as if it took less than it does.
_TRANSFORMERS_LOG: Any = transformers_logging


@contextmanager
def own_report(told: Told) -> Iterator[None]:
    """Keep transformers' table and bar of weights off stderr, and tell how many are loaded.

    Away from a terminal the bars of downloads are kept off, too.
    """
    library = _TRANSFORMERS_LOG
    if not sys.stderr.isatty():
        library.disable_progress_bar()
    # Older versions cannot be asked, and show their own bar.
    hooked = getattr(library, "set_tqdm_hook", lambda hook: None)
    verbosity, before = library.get_verbosity(), hooked(partial(_counted, told))
    library.set_verbosity_error()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        hooked(before)


def _counted(
    told: Told,
    bar: Callable[..., Iterable[object]],
    args: tuple[object, ...],
    options: dict[str, object],
) -> "_Counted":
    """What transformers takes for a bar of its own."""
    things = args[0] if args else options.get("iterable")
    told_total = options.get("total")
    total = told_total if isinstance(told_total, int) else 0
    if isinstance(things, Sized):
        total = len(things)
    return _Counted(told, bar(*args, **options | {"disable": True}), total)


class _Counted:
    """Goes through things, or is told of them, and tells how far it is."""

    def __init__(self, told: Told, bar: Iterable[object], total: int) -> None:
        self._told, self._bar, self._done, self._total = told, bar, 0, total
        told(0, total)

    def __iter__(self) -> Iterator[object]:
        for item in self._bar:
            yield item
            self.update()

    def __enter__(self) -> "_Counted":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing was opened."""

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        self._told(self._done, self._total)

    def __getattr__(self, name: str) -> object:
        return getattr(self._bar, name)
