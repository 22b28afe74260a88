"""Figures drawn in processes of their own: the same files, and no process is left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ktrace.analysis.figures import processes
from ktrace.analysis.figures.files import Saved
from ktrace.analysis.figures.look import Look
from ktrace.analysis.figures.processes import Artists, artists
from ktrace.errors import KtraceError

forks = pytest.mark.skipif(sys.platform == "win32", reason="no forkserver")


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine of two processors."""
    monkeypatch.setattr(processes, "_processors", lambda: 2)


def begin(drawers: Artists, stem: Path) -> Callable[[], Saved]:
    grid = pd.DataFrame(np.arange(6.0).reshape(2, 3), index=["first subject", "last"])
    grids, look = {"one": grid, "other": -grid}, Look("logit")
    return drawers.begin(
        stem, "heatmaps.named_heatmaps", grids, key="hidden", title="Layers of 北京", look=look
    )


@forks
@pytest.mark.usefixtures("two")
def test_the_files_are_those_that_this_process_would_write(tmp_path: Path) -> None:
    here = begin(Artists(), tmp_path / "here")()
    with artists() as drawers:
        there = [begin(drawers, tmp_path / f"there{number}") for number in range(3)]
        saved = [finish() for finish in there]
    for one in saved:
        assert one.lacking == here.lacking
        for mine, theirs in zip(here.paths, one.paths, strict=True):
            assert mine.read_bytes() == theirs.read_bytes(), mine.suffix


@forks
@pytest.mark.usefixtures("two")
def test_what_stands_in_the_way_of_a_file_is_raised(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with artists() as drawers:
        finish = begin(drawers, tmp_path / "taken" / "figure")
        with pytest.raises(KtraceError, match="taken"):
            finish()


@forks
@pytest.mark.usefixtures("two")
def test_a_process_that_was_killed_is_done_without(tmp_path: Path) -> None:
    with artists() as drawers:
        assert begin(drawers, tmp_path / "before")().paths
        assert drawers._pool is not None
        for number in drawers._pool._processes:  # type: ignore[attr-defined]
            os.kill(number, signal.SIGKILL)
        finish = [begin(drawers, tmp_path / f"after{number}") for number in range(2)]
        files = [path for one in finish for path in one().paths]
    assert all(path.stat().st_size for path in files)


# A script that does not ask whether it is the program: what draws must not run it again.
SCRIPT = """
import os, signal, sys
from ktrace.analysis.figures import processes

print("once", flush=True)
processes._processors = lambda: 2
with processes.artists() as drawers:
    assert "matplotlib" not in sys.modules
    pool = drawers._pool
    with processes._no_main_module():
        print(pool.submit(os.getpid).result(), pool.submit(os.getppid).result(), flush=True)
    if sys.argv[1:]:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@forks
@pytest.mark.parametrize("how", [[], ["killed"]])
def test_no_process_outlives_the_program(tmp_path: Path, how: list[str]) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT, "utf-8")
    command = [sys.executable, str(path), *how]
    # Not pipes, which a process that is left behind would keep open.
    with (tmp_path / "out").open("w") as out:
        code = subprocess.run(command, stdout=out, stderr=out, timeout=60).returncode
    text = (tmp_path / "out").read_text("utf-8")
    assert code == (-signal.SIGKILL if how else 0), text
    once, numbers, *_ = text.splitlines()  # behind them, what Python says of a killed program
    assert once == "once"
    patience = time.monotonic() + 10
    for number in map(int, numbers.split()):
        while alive(number):
            assert time.monotonic() < patience, number
            time.sleep(0.02)


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    try:  # ended, and waits for a parent that asks how
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
