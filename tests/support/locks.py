"""Systems and file systems with other locks than this machine's, made from the genuine ones."""

import errno
import fcntl
import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

# What file systems answer that keep no locks.
ANSWERS = {"ENOSYS": errno.ENOSYS, "ENOLCK": errno.ENOLCK, "EOPNOTSUPP": errno.EOPNOTSUPP}


def windows_modules() -> dict[str, Any]:
    """`sys.modules` of a system without `fcntl`, whose `msvcrt` locks as Windows does."""

    def locking(descriptor: int, how: int, n_bytes: int) -> None:
        start = os.lseek(descriptor, 0, os.SEEK_CUR)
        kind = fcntl.LOCK_UN if how == 0 else fcntl.LOCK_EX | fcntl.LOCK_NB
        try:
            fcntl.lockf(descriptor, kind, n_bytes, start)
        except BlockingIOError as error:
            raise PermissionError(errno.EACCES, "Permission denied") from error

    return {"fcntl": None, "msvcrt": SimpleNamespace(locking=locking, LK_NBLCK=2, LK_UNLCK=0)}


def refusing(answer: int, on: str) -> ModuleType:
    """`fcntl` of a file system that answers so `on` "lock" or "unlock"."""
    refused = ModuleType("fcntl")
    vars(refused).update(vars(fcntl))

    def lockf(descriptor: int, kind: int, *rest: int) -> None:
        if (kind == fcntl.LOCK_UN) == (on == "unlock"):
            raise OSError(answer, os.strerror(answer))
        fcntl.lockf(descriptor, kind, *rest)

    def flock(descriptor: int, kind: int) -> None:
        lockf(descriptor, kind)

    vars(refused).update(lockf=lockf, flock=flock)
    return refused


def become(system: str) -> None:
    """Make this process one of a `system`: `posix`, `windows`, `neither`, or of such an answer."""
    if system == "windows":
        sys.modules.update(windows_modules())
    elif system == "neither":
        sys.modules.update({"fcntl": None, "msvcrt": None})  # type: ignore[dict-item]
    elif system != "posix":
        sys.modules["fcntl"] = refusing(ANSWERS[system], "lock")
