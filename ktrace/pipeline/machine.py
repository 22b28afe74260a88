"""What of this machine a run may take: cores and memory, also where a control group bounds them.

Linux alone tells; elsewhere nothing is known of memory.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

_GROUPS = Path("/sys/fs/cgroup")


def free_cores(root: Path = Path("/")) -> int:
    """Cores that a run may keep busy.

    As torch counts them, those that this process is bound to or that OMP_NUM_THREADS allows; where
    a control group has a quota, no more than that is worth.

    Args:
        root: of the file system.
    """
    quotas = []
    for folder in _groups("cpu", root):
        numbers = _words(folder / "cpu.max")
        if not numbers:  # version 1 has a file for each
            numbers = [
                *_words(folder / "cpu.cfs_quota_us"),
                *_words(folder / "cpu.cfs_period_us"),
            ]
        with suppress(ValueError, ZeroDivisionError):  # no quota: "max", or -1
            quota, period = map(int, numbers)
            if quota > 0:
                quotas.append(math.ceil(quota / period))
    return max(1, min([torch.get_num_threads(), *quotas]))


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that can be had without swapping; None where the system does not say.

    Args:
        root: of the file system.
    """
    free = []
    with suppress(OSError, ValueError, StopIteration):
        lines = (root / "proc/meminfo").read_text().splitlines()
        free.append(
            1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        )
    for folder in _groups("memory", root):
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),  # version 1
        ):
            with suppress(ValueError):  # no such file, or no limit: "max"
                bounds = [int(word) for name in (limit, used) for word in _words(folder / name)]
                most, taken = bounds
                free.append(max(0, most - taken + _given_back(folder)))
    return min(free, default=None)


def _given_back(folder: Path) -> int:
    """Bytes of files that a group holds and need not: they count as used."""
    words = _words(folder / "memory.stat")
    counts = dict(zip(words[::2], words[1::2], strict=False))
    return int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of this process's control group and of those that hold it, innermost first."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            top = root / _GROUPS.relative_to("/") / (controller if controllers else "")
            own = Path(name.lstrip("/"))
            yield from (top / group for group in dict.fromkeys((own, *own.parents)))


def _words(path: Path) -> list[str]:
    with suppress(OSError):
        return path.read_text().split()
    return []
