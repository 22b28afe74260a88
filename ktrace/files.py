"""Write files so that a reader, now or after a crash, sees the whole file or none."""

import errno
import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ktrace.errors import KtraceError

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
# Where a network file system forgets a lock too early, no living writer is this long in one file.
_STALE_SECONDS = 600.0

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
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
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


def remove_stale(folder: Path) -> list[Path]:
    """Remove the temporary files that killed writers left, in a folder and below it.

    A file that a living process holds stays, and so does a young one: some network file systems
    lose a lock before the writer is done.

    Raises:
        KtraceError: one cannot be removed.
    """
    removed = []
    for path in sorted(folder.rglob(".*.tmp")):
        if not _TEMPORARY.fullmatch(path.name):
            continue
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:  # its writer has just finished
            continue
        except OSError as error:
            raise KtraceError(f"output_dir: {path} cannot be removed: {error.strerror}") from error
        try:
            age = time.time() - os.fstat(descriptor).st_mtime
            if age > _STALE_SECONDS and _try_lock(descriptor):
                path.unlink(missing_ok=True)
                removed.append(path)
        finally:
            os.close(descriptor)
    return removed


def _try_lock(descriptor: int) -> bool:
    """Whether nobody else holds the file; always, where the file system keeps no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


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
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
