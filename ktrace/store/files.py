"""Write files so that a reader, now or after a crash, sees the whole file or none."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ktrace.errors import KtraceError


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; on success it becomes `path`, durably, in one step.

    Raises:
        KtraceError: the folder or the file cannot be written.
    """
    # Not the process id: containers repeat it, and a killed run may have left a file behind.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise KtraceError(f"output_dir: {path} cannot be written: {reason}") from error


def require_writable(folder: Path) -> None:
    """Notice before the work, and without writing, that its results could not be kept.

    Raises:
        KtraceError: the folder, or what it would be created in, is no folder or is read-only.
    """
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:  # a name that is too long, for one
        raise KtraceError(f"output_dir: {folder} cannot be written: {error.strerror}") from error
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "it is read-only" if existing.is_dir() else "it is not a folder"
        raise KtraceError(f"output_dir: {folder} cannot be written: {existing}: {reason}")


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
