"""Write files so that a reader, now or after a crash, sees the whole file or none."""

import errno
import importlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ktrace.errors import KtraceError

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
# Where a network file system forgets a lock too early, no living writer is this long in one file.
_STALE_SECONDS = 600.0

# Not everywhere: opened is what the name says itself, and never waited for a pipe's other end.
NO_FOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
_AT_ONCE: int = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
# Windows renames and removes no open file, and syncs no folder.
_IS_POSIX = os.name == "posix"

# What is left where it is: another user's, or on a disk that may not be written.
_NOT_OURS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

# What file systems say that keep no locks.
NO_LOCKS = frozenset(
    {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOTTY}
)


@contextmanager
def new_file(path: Path, key: str = "output_dir") -> Iterator[Path]:
    """Give a temporary name to write to; on success it becomes `path`, durably, in one step.

    Args:
        path: the file.
        key: of the config, which placed it; for messages.

    Raises:
        KtraceError: the folder or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, descriptor = _locked_temporary(path)
        try:
            yield temporary
            os.fsync(descriptor)
            made = os.fstat(descriptor)
            if not _IS_POSIX:
                os.close(descriptor)
                descriptor = -1
            _rename(temporary, path, made)
            _sync_folder(path.parent)
        finally:
            if not _IS_POSIX and descriptor >= 0:
                os.close(descriptor)
            temporary.unlink(missing_ok=True)
            if _IS_POSIX:  # locked as long as it has a name
                os.close(descriptor)
    except OSError as error:
        reason = error.strerror or error
        raise KtraceError(f"{key}: {path} cannot be written: {reason}") from error


def _locked_temporary(path: Path) -> tuple[Path, int]:
    """A new empty file that is locked as long as its descriptor is open, so by the living only."""
    while True:
        # Not the process id: containers repeat it, and a killed run may have left a file behind.
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        # Between the two steps it could be taken for a dead writer's.
        if _try_lock(descriptor) and temporary.exists():
            return temporary, descriptor
        os.close(descriptor)


def _rename(temporary: Path, path: Path, made: os.stat_result) -> None:
    try:
        temporary.replace(path)
    except FileNotFoundError:
        # A file server that was asked twice did it the first time, and says so the second.
        with suppress(OSError):
            found = path.stat()
            if (found.st_dev, found.st_ino) == (made.st_dev, made.st_ino):
                return
        raise


def stale_in(folder: Path) -> Iterator[Path]:
    """The temporary files that killed writers left, in a folder and below it.

    A file that a living process holds is none, and nor is a young one: some network file systems
    lose a lock before the writer is done. Nor is what another user may not touch, or what is no
    file: a folder or a link of such a name is somebody's.

    Raises:
        KtraceError: one cannot be looked at.
    """
    now: float | None = None
    for path in sorted(folder.rglob(".*.tmp")):
        if not _TEMPORARY.fullmatch(path.name):
            continue
        try:
            now = _clock_of(folder) if now is None else now
            if _is_stale(path, now):
                yield path
        except FileNotFoundError:  # its writer has just finished
            continue
        except OSError as error:
            if error.errno in _NOT_OURS:
                continue
            raise KtraceError(f"output_dir: {path} cannot be removed: {error.strerror}") from error


def remove_stale(folder: Path) -> list[Path]:
    """Remove the temporary files that killed writers left, in a folder and below it (`stale_in`).

    Raises:
        KtraceError: one cannot be removed.
    """
    removed = []
    for path in stale_in(folder):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            if error.errno in _NOT_OURS:
                continue
            raise KtraceError(f"output_dir: {path} cannot be removed: {error.strerror}") from error
        removed.append(path)
    return removed


def _is_stale(path: Path, now: float) -> bool:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or now - found.st_mtime <= _STALE_SECONDS:
        return False
    descriptor = os.open(path, os.O_RDWR | NO_FOLLOW | _AT_ONCE)
    try:
        return _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _clock_of(folder: Path) -> float:
    """Seconds since 1970 by the clock that dates a folder's files: a file server has its own."""
    path = folder / f".clock.{secrets.token_hex(4)}.tmp"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)


def _try_lock(descriptor: int) -> bool:
    """Whether nobody else holds the file; always, where nothing keeps locks."""
    try:
        fcntl = importlib.import_module("fcntl")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # a system without it
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def read_regular(path: Path, most_bytes: int | None = None) -> bytes:
    """What a file says: it may be a stranger's, and is never waited for.

    Args:
        path: the file.
        most_bytes: of a file that should be small; None for any size.

    Raises:
        OSError: it cannot be read.
        ValueError: it is a pipe, a device or a folder, or too large.
    """
    descriptor = os.open(path, os.O_RDONLY | _AT_ONCE)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no regular file")
        if most_bytes is not None and found.st_size > most_bytes:
            raise ValueError(f"it is too large: {found.st_size} bytes")
        with os.fdopen(os.dup(descriptor), "rb") as stream:
            return stream.read(-1 if most_bytes is None else most_bytes)
    finally:
        os.close(descriptor)


def require_writable(folder: Path, key: str = "output_dir") -> None:
    """Notice before the work, and without writing, that its results could not be kept.

    Args:
        folder: where they would go.
        key: of the config, which placed it; for messages.

    Raises:
        KtraceError: the folder, or what it would be created in, is no folder or is read-only.
    """
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:  # a name that is too long, for one
        raise KtraceError(f"{key}: {folder} cannot be written: {error.strerror}") from error
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        code = errno.EROFS if existing.is_dir() else errno.ENOTDIR
        reason = "it is read-only" if existing.is_dir() else "it is not a folder"
        cause = OSError(code, os.strerror(code), str(existing))
        raise KtraceError(f"{key}: {folder} cannot be written: {existing}: {reason}") from cause


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def set_aside(path: Path) -> Path:
    """Rename a damaged file, so that nothing reads it again and a person still can.

    Returns:
        Its new name, `damaged-...` in the same folder.

    Raises:
        KtraceError: it cannot be renamed.
    """
    aside = path.with_name(f"damaged-{path.name}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"damaged-{path.stem}-{number}{path.suffix}")
    try:
        path.rename(aside)
        _sync_folder(path.parent)
    except FileNotFoundError:  # another process was first
        pass
    except OSError as error:
        raise KtraceError(
            f"output_dir: {path} is damaged and cannot be set aside: {error.strerror}"
        ) from error
    return aside


def _sync_folder(folder: Path) -> None:
    if not _IS_POSIX:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
