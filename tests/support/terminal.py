"""A terminal that a command runs in: a real pseudo-terminal, and what a person sees of it."""

import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pyte

_ROWS = 150  # nothing scrolls away
_WIDE = 250  # far wider than what a command is told of: what would wrap is seen to be too long
_SECONDS = 120.0


@dataclass
class Terminal:
    """What a command in a terminal wrote.

    Attributes:
        columns: that the command was told of.
        written: every byte.
        screen: what a far wider terminal shows.
        seen: every line that stood there at any time.
        code: how the command ended.
        sane: whether the terminal's settings are what they were.
    """

    columns: int
    written: bytes = b""
    screen: pyte.Screen = field(default_factory=lambda: pyte.Screen(_WIDE, _ROWS))
    seen: dict[str, None] = field(default_factory=dict)
    code: int = -1
    sane: bool = False

    @property
    def lines(self) -> list[str]:
        """What stands there in the end."""
        rows = (self._row(number) for number in range(_ROWS))
        return [row for row in rows if row]

    def too_long(self) -> list[str]:
        """Lines that stood there at any time, and would have wrapped."""
        return [line for line in self.seen if _cells(line) > self.columns]

    def feed(self, some: bytes, stream: pyte.ByteStream) -> None:
        """Show what was written."""
        self.written += some
        stream.feed(some)
        for row in self.screen.dirty:
            self.seen[self._row(row)] = None
        self.screen.dirty.clear()

    def _row(self, number: int) -> str:
        cells = self.screen.buffer[number]
        return "".join(cells[x].data for x in range(max(cells, default=-1) + 1)).rstrip()


def _cells(line: str) -> int:
    return sum(pyte.screens.wcwidth(letter) for letter in line)


def in_terminal(
    run: Callable[[], object],
    columns: int,
    environment: Mapping[str, str] | None = None,
    typed: Callable[[Terminal], bytes] = lambda terminal: b"",
) -> Terminal:
    """Run something in a process of its own that a terminal belongs to.

    Args:
        run: exits as a command does.
        columns: of the terminal.
        environment: beside that of this process.
        typed: asked after each piece of output for what a person types then.
    """
    terminal = Terminal(columns)
    pid, master = pty.fork()
    if pid == 0:
        _as_command(run, columns, environment or {})
    before = termios.tcgetattr(master)
    stream, until = pyte.ByteStream(terminal.screen), time.monotonic() + _SECONDS
    while time.monotonic() < until and select.select([master], [], [], _SECONDS)[0]:
        try:
            some = os.read(master, 2**16)
        except OSError:  # the command has ended
            break
        if not some:
            break
        terminal.feed(some, stream)
        if keys := typed(terminal):
            os.write(master, keys)
    terminal.code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    terminal.sane = termios.tcgetattr(master)[:4] == before[:4]
    os.close(master)
    return terminal


def _as_command(run: Callable[[], object], columns: int, environment: Mapping[str, str]) -> None:
    """Never returns."""
    code = 99
    try:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "CI"):
            os.environ.pop(name, None)
        os.environ |= {"TERM": "xterm-256color", **environment}
        sys.stdin = open(0)  # noqa: SIM115  # what pytest has put there is not the terminal
        sys.stdout, sys.stderr = (open(n, "w", buffering=1) for n in (1, 2))  # noqa: PTH123, SIM115
        sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
        run()
        code = 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
