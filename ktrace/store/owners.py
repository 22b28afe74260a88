"""Who holds a claim, as a line in a file says it: for people, and to tell who still lives."""

import json
import os
import socket
import sys
from contextlib import suppress
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import NamedTuple

# A line that is longer was not written by ktrace.
MOST_BYTES = 4096
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PIDS = Path("/proc/self/ns/pid")


class Owner(NamedTuple):
    """A process that claims facts.

    Attributes:
        pid: its number; 0 where nobody can tell.
        host: the name of its machine; empty where nobody can tell.
        since: when it began to claim, UTC, in ISO 8601.
        command: the program, without its arguments: these may hold secrets.
        machine: what its number is valid in: a boot of a machine, a container.
    """

    pid: int
    host: str = ""
    since: str = ""
    command: str = ""
    machine: str = ""

    @property
    def is_here(self) -> bool:
        """Whether its number means a process that this one sees."""
        return bool(self.machine) and self.machine == _machine()

    @property
    def name(self) -> str:
        """In a table."""
        if not self.pid:
            return f"a process on {self.host}" if self.host else "another machine"
        return f"process {self.pid}" + ("" if self.is_here else f" on {self.host or '?'}")

    @property
    def sentence(self) -> str:
        """In a line that is waited by."""
        if not self.pid:
            return self.name
        host, since = self.host or "?", self.since or "?"
        command = f" ({self.command})" if self.command else ""
        return f"process {self.pid} on {host}, since {since}{command}"

    def is_gone(self) -> bool:
        """Whether it has ended, as far as this machine can tell; False where it cannot."""
        if not self.is_here or self.pid <= 0 or os.name != "posix":
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):  # another user's
            return False
        return False

    def line(self) -> bytes:
        """What `parsed` reads."""
        return json.dumps(self._asdict()).encode() + b"\n"


NOBODY_KNOWN = Owner(0)


def this_process() -> Owner:
    """Of the caller."""
    since = datetime.now(timezone.utc).isoformat(timespec="seconds")
    program = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path(sys.executable)
    command = program.parent.name if program.name == "__main__.py" else program.name
    return Owner(os.getpid(), socket.gethostname()[:255], since, command[:255], _machine())


def parsed(line: bytes) -> Owner | None:
    """Who a line names; None where it is none of ours."""
    if len(line) > MOST_BYTES:
        return None
    try:
        found = json.loads(line)
    except (RecursionError, ValueError):
        return None
    if not isinstance(found, dict) or set(found) != set(Owner._fields):
        return None
    pid, *texts = (found[name] for name in Owner._fields)
    if type(pid) is not int or not 0 < pid < 2**32:
        return None
    if not all(isinstance(text, str) and text.isprintable() for text in texts):
        return None
    return Owner(pid, *texts)


@cache
def _machine() -> str:
    told = [socket.gethostname()]
    with suppress(OSError):
        told.append(_BOOT.read_text("ascii").strip())
    with suppress(OSError):
        told.append(str(_PIDS.readlink()))  # containers number their processes alike
    return "/".join(told)
