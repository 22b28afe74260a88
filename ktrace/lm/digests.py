"""SHA-256 of files; of large ones it is remembered: weights are gigabytes, and every start asks.

A record lies in the user's cache, one small file for each large one. It holds for a file of the
same path, size, times, inode and device. Times have steps: a file that changes twice within one
looks the same after the second change. So a record made just after a change is not believed.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ktrace.errors import KtraceError
from ktrace.files import write_text

# Where records are kept; empty: nowhere.
CACHE = "KTRACE_CACHE"
# Smaller files are hashed in the time that a look at a record takes.
LEAST_BYTES = 2**20
# More than the steps of any file system's clock (FAT: two seconds).
_CLOCK_STEP_NS = 3 * 10**9


def file_digest(path: Path, told: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file's content, in hexadecimal digits.

    Args:
        path: of the file.
        told: learns how many bytes of a large one are read; nothing where they were read before.

    Raises:
        OSError: it cannot be read.
    """
    before = path.stat()
    record = None if before.st_size < LEAST_BYTES else _record_of(path)
    known = None if record is None else _known(record, path, before)
    if known is not None:
        return known
    began = time.time_ns()
    found = _hashed(path, None if before.st_size < LEAST_BYTES else told)
    if record is not None and _looks(path, path.stat()) == _looks(path, before):
        said = {**_looks(path, before), "read_ns": began, "sha256": found}
        with suppress(KtraceError):  # a cache that cannot be written is none
            write_text(record, json.dumps(said | {"check": _check(said)}))
    return found


def _hashed(path: Path, told: Callable[[int], None] | None) -> str:
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            done += len(chunk)
            if told is not None:
                told(done)
    return digest.hexdigest()


def _record_of(path: Path) -> Path | None:
    """Where a file's digest is remembered."""
    given = os.environ.get(CACHE)
    if given == "":
        return None
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        return None
    folder = Path(given) if given else Path(base) / "ktrace"
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
    return folder / "digests" / f"{name}.json"


def _known(record: Path, path: Path, status: os.stat_result) -> str | None:
    """What a record says of a file that looks like this; None where it is no such record."""
    try:
        said = json.loads(record.read_text("utf-8"))
        check, digest, began = said.pop("check"), said["sha256"], said["read_ns"]
        looked_like = {name: said[name] for name in _looks(path, status)}
        settled = began - max(said["mtime_ns"], said["ctime_ns"]) > _CLOCK_STEP_NS
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if check != _check(said) or looked_like != _looks(path, status) or not settled:
        return None
    return str(digest)


def _looks(path: Path, status: os.stat_result) -> dict[str, object]:
    """What tells one content of a file from another without reading it."""
    return {
        "path": str(path.absolute()),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,  # which nobody can set back, as mtime can be
        "inode": status.st_ino,
        "device": status.st_dev,
    }


def _check(said: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
