"""How far a run is: bars for who watches a terminal, log lines for who reads a file later.

Bars go to stderr and keep within the terminal's width: what is done, how much of it, how fast, and
how long it still takes. In a file, a pipe, a dumb terminal or a process that a launcher started
beside others, there is no bar and no control code, but one line for each step that is done.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import parent_process
from time import monotonic
from typing import Protocol, TextIO

from rich.console import Console
from rich.filesize import pick_unit_and_suffix
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
from rich.table import Column
from rich.text import Text

log = logging.getLogger(__name__)

BYTES = "B"
_SIZES = ["B", "kB", "MB", "GB", "TB"]
_FRAMES_PER_SECOND = 4  # the cores are for the model
# Of the terminal's width: a longer title is cut, so that numbers never are.
_TITLE_SHARE = 1 / 3


class Advance(Protocol):
    """Called with how many were finished since the last call."""

    def __call__(self, count: int) -> None: ...


class Tell(Protocol):
    """Called with what is done, and how much of how much."""

    def __call__(self, what: str, done: int, total: int) -> None: ...


@dataclass
class _Step:
    """One line.

    Attributes:
        what: is done.
        unit: of what is counted.
        total: of it; None where nobody can tell.
        done: of it.
        first: what was done before the step was seen to begin.
        began: by the clock.
        ended: by the clock; None while it goes on.
    """

    what: str
    unit: str
    total: int | None
    done: int = 0
    first: int = 0
    began: float = field(default_factory=monotonic)
    ended: float | None = None

    @property
    def seconds(self) -> float:
        """So far, or in all."""
        return (monotonic() if self.ended is None else self.ended) - self.began

    @property
    def rate(self) -> float:
        """Units a second, over all of it: what comes in lumps has no rate of the last seconds."""
        seconds = self.seconds
        return (self.done - self.first) / seconds if seconds > 0 else 0.0

    @property
    def numbers(self) -> str:
        """Count, rate, and the time that is left, or that it took."""
        time, rate, total = _time(self.seconds), self.rate, self.total
        if total is None:
            return time
        parts = [_count(self.done, total, self.unit)]
        parts += [_rate(rate, self.unit)] if rate else []
        if self.ended is not None:
            parts.append(f"in {time}")
        else:
            parts.append(f"{_time((total - self.done) / rate)} left" if rate else time)
        return " ".join(parts)

    @property
    def told(self) -> str:
        """For a log, at its end."""
        total = self.total or 0
        count = f"{total} {self.unit}".rstrip()
        if self.unit == BYTES:
            unit, suffix = pick_unit_and_suffix(total, _SIZES, 1000)
            count = f"{total / unit:.1f} {suffix}"
        rate = f", {_rate(self.rate, self.unit)}" if self.rate else ""
        return f"{self.what}: {count} in {_time(self.seconds)}{rate}"


def _count(done: int, total: int, unit: str) -> str:
    if unit != BYTES:
        return f"{done}/{total} {unit}".rstrip()
    size, suffix = pick_unit_and_suffix(total, _SIZES, 1000)
    return f"{done / size:.1f}/{total / size:.1f} {suffix}"


def _rate(rate: float, unit: str) -> str:
    """Units a second, a minute or an hour, whichever is a number that one can read."""
    if unit == BYTES:
        size, suffix = pick_unit_and_suffix(int(rate), _SIZES, 1000)
        return f"{rate / size:.0f} {suffix}/s"
    of, seconds = ("s", 1) if rate >= 0.5 else ("min", 60) if rate * 60 >= 0.5 else ("h", 3600)
    shown = rate * seconds
    return f"{shown:.0f}/{of}" if shown >= 10 else f"{shown:.1f}/{of}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _What(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields["step"].what, no_wrap=True, overflow="ellipsis")


class _Numbers(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields["step"].numbers)


class _Steps:
    """Steps, each a bar or a log line; there is none before the first is told of."""

    def __init__(self, unit: str, *, stays: bool = True) -> None:
        self._unit = unit
        self._stays = stays
        self._bar: Progress | None = None
        self._replaced: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []
        self._steps: dict[str, _Step] = {}
        self._tasks: dict[str, TaskID] = {}

    def begin(self, what: str, total: int | None, first: int = 0) -> None:
        """Begin a step."""
        self._steps[what] = step = _Step(what, self._unit, total, first, first)
        if not is_watched():
            return
        if self._bar is None:
            self._bar = _bar(transient=not self._stays)
            self._start(self._bar)
        self._tasks[what] = self._bar.add_task("", total=total, completed=first, step=step)

    def tell(self, what: str, done: int, total: int) -> None:
        """See `Tell`."""
        if what not in self._steps:
            self.begin(what, total, done)
        step = self._steps[what]
        for other in self._steps.values():
            if other is not step and other.ended is None:
                other.ended = monotonic()
        step.done, step.total = done, total
        step.ended = monotonic() if done >= total else None
        if self._bar is not None:
            self._bar.update(self._tasks[what], completed=done, total=total)

    def end(self) -> None:
        """All is done."""
        for step in self._steps.values():
            step.ended = step.ended or monotonic()
            if self._bar is None and step.total is not None:
                log.info("%s", step.told)

    def close(self) -> None:
        """Leave the terminal as it was; what is not done is shown as far as it came."""
        try:
            if self._bar is not None:
                self._bar.stop()
        finally:
            for handler, stream in self._replaced:
                handler.setStream(stream)

    def _start(self, bar: Progress) -> None:
        """Show a bar; log lines stand above it, as all that is printed meanwhile does."""
        before = sys.stderr
        bar.start()
        for logger in (logging.root, *logging.root.manager.loggerDict.values()):
            for handler in getattr(logger, "handlers", ()):
                if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                    self._replaced.append((handler, before))
                    handler.setStream(sys.stderr)


def is_watched() -> bool:
    """Whether somebody sees bars, and this process alone draws there."""
    console = Console(stderr=True)
    is_terminal = console.is_terminal and sys.stderr.isatty()  # FORCE_COLOR is for colours
    return is_terminal and not console.is_dumb_terminal and parent_process() is None


def _bar(*, transient: bool) -> Progress:
    console = Console(stderr=True)
    return Progress(
        _What(table_column=Column(max_width=max(1, int(console.width * _TITLE_SHARE)))),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        _Numbers(table_column=Column(no_wrap=True)),
        console=console,
        expand=True,
        transient=transient,
        refresh_per_second=_FRAMES_PER_SECOND,
    )


@contextmanager
def _steps(unit: str, *, stays: bool = True) -> Iterator[_Steps]:
    steps = _Steps(unit, stays=stays)
    try:
        yield steps
        steps.end()
    finally:
        steps.close()


@contextmanager
def progress(what: str, total: int, unit: str = "facts") -> Iterator[Advance]:
    """A stage over things whose number is known; in a log a line tells that it begins, too."""
    with _steps(unit) as steps:
        if not is_watched():
            log.info("%s: %d %s", what, total, unit)
        steps.begin(what, total)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            steps.tell(what, done, total)

        yield advance


@contextmanager
def steps(unit: str) -> Iterator[Tell]:
    """Steps that rooms below tell of; nothing is shown where they tell nothing.

    Args:
        unit: of what is counted; `BYTES` are shown in kB, MB, ...; empty where the steps say it.
    """
    with _steps(unit) as found:
        yield found.tell


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Something short that nobody can count: at a terminal alone, and gone when it is over."""
    with _steps("", stays=False) as found:
        found.begin(what, None)
        yield
