"""The parts of a folder that came since the last look, without listing it where nothing changed.

Every part that comes or goes changes the folder's own time of change. That time is told in grains:
of nanoseconds in name, of a clock's tick in truth, of whole seconds on some file systems. A part
that came in the grain of the last listing would leave no trace, so a listing counts only once the
folder's time was the same for longer than a grain before it. Both looks are timed by this machine's
clock alone: a file server's may go otherwise.
"""

import os
import time
from pathlib import Path

_TICK_SECONDS = 0.1  # no kernel's clock ticks slower
_COARSE_SECONDS = 3.0  # longer than FAT's two seconds, the coarsest there is
_SECOND = 10**9


class Listing:
    """Parts of one folder, each told of once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._told: set[str] = set()
        self._stamp: int | None = None
        self._since = 0.0  # when the folder was first seen with this stamp
        self._is_settled = False

    def add(self, path: Path) -> None:
        """Note a part that the caller wrote: it need not be told of."""
        self._told.add(path.name)

    def forget(self, path: Path) -> None:
        """Tell of a part again at the next listing: another may come under its name."""
        self._told.discard(path.name)

    def new(self) -> list[Path]:
        """Parts that were not told of yet, in the order of their first facts.

        Costs one look at the folder, however many parts it has, where none came for a while.
        """
        # Before the listing: what comes in between is listed, or changes the stamp for the next.
        stamp, now = _stamp_of(self._folder), time.monotonic()
        if stamp != self._stamp:
            self._stamp, self._since, self._is_settled = stamp, now, False
        elif self._is_settled:
            return []
        names = [path.name for path in parts_in(self._folder)]
        new = [name for name in names if name not in self._told]
        self._told.update(new)
        self._is_settled = stamp is not None and now - self._since > _grain(stamp)
        return [self._folder / name for name in new]


def parts_in(folder: Path) -> list[Path]:
    """Completed parts, in the order of their first facts."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in sorted(names) if is_part(name)]


def is_part(name: str) -> bool:
    """Whether a file is called as a part is."""
    return name.startswith("part-") and name.endswith(".h5")


def _stamp_of(folder: Path) -> int | None:
    """When the folder last changed, in nanoseconds of its file system's clock; None without it."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)  # a stranger's pipe is not waited for
    try:
        if os.name != "posix":  # Windows opens no folder
            return folder.stat().st_mtime_ns
        # Opened: a network file system asks its server then, and for a name may answer from memory.
        descriptor = os.open(folder, flags)
    except FileNotFoundError:
        return None
    try:
        return os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)


def _grain(stamp: int) -> float:
    """Seconds in which a file system may tell the same time; whole ones look like coarse ones."""
    return _COARSE_SECONDS if stamp % _SECOND == 0 else _TICK_SECONDS
