"""Cores and memory that a run may take, from files as Linux has them."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from ktrace.pipeline.machine import free_cores, free_memory

GB = 2**30
MEMINFO = {"proc/meminfo": "MemTotal: 33554432 kB\nMemFree: 1 kB\nMemAvailable: 16777216 kB\n"}
V2 = {"proc/self/cgroup": "0::/jobs/one\n"}
V1 = {"proc/self/cgroup": "5:memory:/jobs/one\n4:cpu,cpuacct:/jobs/one\n1:name=systemd:/\n0::/\n"}


def machine(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def eight_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch says on eight cores, or with OMP_NUM_THREADS=8."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({**V2, "sys/fs/cgroup/jobs/one/cpu.max": "max 100000\n"}, 8),
        ({**V2, "sys/fs/cgroup/jobs/one/cpu.max": "250000 100000\n"}, 3),
        # That of a group around it binds, too.
        (
            {
                **V2,
                "sys/fs/cgroup/jobs/one/cpu.max": "max 100000\n",
                "sys/fs/cgroup/jobs/cpu.max": "200000 100000\n",
            },
            2,
        ),
        ({**V2, "sys/fs/cgroup/jobs/one/cpu.max": "20000 100000\n"}, 1),
        ({**V2, "sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 8),
        (
            {
                **V1,
                "sys/fs/cgroup/cpu/jobs/one/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/jobs/one/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            {
                **V1,
                "sys/fs/cgroup/cpu/jobs/one/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/jobs/one/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_cores_are_those_that_the_process_may_use(
    tmp_path: Path, files: Mapping[str, str], cores: int
) -> None:
    assert free_cores(machine(tmp_path, files)) == cores


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        (MEMINFO, 16 * GB),
        (
            {
                **MEMINFO,
                **V2,
                "sys/fs/cgroup/jobs/one/memory.max": f"{8 * GB}\n",
                "sys/fs/cgroup/jobs/one/memory.current": f"{6 * GB}\n",
                "sys/fs/cgroup/jobs/one/memory.stat": f"anon 5\ninactive_file {GB}\nslab 3\n",
            },
            3 * GB,
        ),
        (
            {
                **MEMINFO,
                **V2,
                "sys/fs/cgroup/jobs/one/memory.max": "max\n",
                "sys/fs/cgroup/jobs/one/memory.current": f"{6 * GB}\n",
            },
            16 * GB,
        ),
        (
            {
                **MEMINFO,
                **V1,
                "sys/fs/cgroup/memory/jobs/memory.limit_in_bytes": f"{4 * GB}\n",
                "sys/fs/cgroup/memory/jobs/memory.usage_in_bytes": f"{3 * GB}\n",
                "sys/fs/cgroup/memory/jobs/memory.stat": (
                    f"inactive_file 0\ntotal_inactive_file {GB}\n"
                ),
            },
            2 * GB,
        ),
    ],
)
def test_memory_is_what_system_and_group_leave(
    tmp_path: Path, files: Mapping[str, str], free: int | None
) -> None:
    assert free_memory(machine(tmp_path, files)) == free
