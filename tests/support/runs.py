"""Real runs in processes of their own, that tests kill, stop and let meet each other.

torch takes seconds to import, so one process imports it and loads the model once, and forks a child
for every run. The child is a run like any other: it can be killed at any instruction.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktrace.store import RESTORED, RunFolders, Store
from ktrace.store.part import read_part
from ktrace.terms import RUN_KINDS
from tests.support.command import said
from tests.support.places import ROOT

RUN = "random/known/gaussian-x3-n2-seed1"
FIVE = ("hidden", "hidden_attn_severed", "hidden_mlp_severed", "mlp-w10", "attn-w10")
N_FACTS, N_CANDIDATES = 7, 6
# What states such runs keep.
STATES = ("activations.corrupted=[attn]", "activations.positions=[last_subject,further]")
# Every fact once in every store that it belongs to.
# States of clean runs are those of candidates, and the others' rows are empty.
N_STORED = 2 * (N_FACTS + N_CANDIDATES) + N_CANDIDATES * len(FIVE)

# Lines in: "start <log>\t<argument>\t...", "warm ..." for a run in the server itself, "wait <pid>".
# Lines out: the process id, 0 where the warming run was good, the wait status.
# Parts of two facts, so that there is progress to kill between.
_SERVER = """
import os, sys
import torch
import ktrace.__main__ as command
import ktrace.analysis.analyze, ktrace.lm.load, ktrace.pipeline.run
from hydra.core.global_hydra import GlobalHydra
from ktrace.store import claims, writer
from tests.support.figures import NO_FIGURES
from tests.support.proof import skip_proof

torch.set_num_threads(1)
skip_proof()
# Figures are looked at in other tests.
ktrace.analysis.analyze.draw_figures = lambda *args, **options: NO_FIGURES
writer._PART_FACTS = 2
claims._POLL_SECONDS = 0.02
for line in sys.stdin:
    order, _, rest = line.rstrip("\\n").partition(" ")
    if order == "wait":
        print(os.waitpid(int(rest), 0)[1], flush=True)
        continue
    log, *sys.argv[1:] = rest.split("\\t")
    child = 0 if order == "warm" else os.fork()
    if child == 0:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        kept = os.dup(1)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        code = 0
        try:
            command.main()
        except SystemExit as ended:
            code = ended.code or 0
            if isinstance(code, str):
                print(code, file=sys.stderr)
                code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        if order != "warm":
            os._exit(code)
        GlobalHydra.instance().clear()
        os.dup2(kept, 1)
        child = code
    print(child, flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit code, or minus the signal that killed it; and what it printed."""

    code: int
    output: str

    @property
    def said(self) -> str:
        """What it printed, but for how far it was and how wide windows are."""
        return said(self.output)


class Runs:
    """Starts `python -m ktrace ...` in a folder, with some arguments in common.

    Args:
        folder: where the runs' processes work and what they print is kept.
        common: arguments before those of each run.
        environment: variables beside those of this process.
    """

    def __init__(
        self, folder: Path, *common: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self._folder = folder
        self._common = common
        self._logs: dict[int, Path] = {}
        own = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**own, "PYTHONPATH": str(ROOT), **(environment or {})},
            start_new_session=True,
        )
        warm = [str(folder / "warm.log"), *common, "stage=filter", f"output_dir={folder / 'warm'}"]
        assert int(self._order("warm " + "\t".join(warm))) == 0, Path(warm[0]).read_text()

    def __enter__(self) -> "Runs":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stdin.close()  # type: ignore[union-attr]
        self._server.stdout.close()  # type: ignore[union-attr]
        try:
            self._server.wait(timeout=60)
        finally:  # a run that a failed test has left, too
            with suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)

    def start(self, *arguments: str) -> int:
        """Start a run; returns its process id."""
        log = self._folder / f"run-{len(self._logs)}.log"
        pid = int(self._order("start " + "\t".join([str(log), *self._common, *arguments])))
        self._logs[pid] = log
        return pid

    def wait(self, pid: int) -> Ended:
        """Wait for a run's end."""
        code = os.waitstatus_to_exitcode(int(self._order(f"wait {pid}")))
        return Ended(code, self.output(pid))

    def run(self, *arguments: str) -> Ended:
        """Start a run and wait for its end."""
        return self.wait(self.start(*arguments))

    def output(self, pid: int) -> str:
        """What a run has printed so far."""
        log = self._logs[pid]
        return log.read_text() if log.exists() else ""

    def _order(self, line: str) -> str:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(line + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the server of runs is gone"
        return answer


def state_of(pid: int) -> str:
    """A process's state in the kernel's letters, such as T where it is stopped; empty if gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def is_alive(pid: int) -> bool:
    """Whether a run has not ended yet; an ended one that nobody waited for counts as ended."""
    return state_of(pid) not in ("Z", "")


def holds_claim(pid: int) -> bool:
    """Whether a run holds facts that others must wait for: a POSIX lock, as the kernel lists it."""
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return any(line[1] == "POSIX" and int(line[4]) == pid for line in lines)


def stores_of(run: Path) -> list[Store]:
    """Every store of a run."""
    folders = RunFolders(run)
    restored = sorted((run / "restored").glob("*/"))
    states = [folders.activations(kind) for kind in RUN_KINDS]
    scores = [folders.clean, folders.corrupted]
    return [*scores, *states, *(folders.restored(path.name) for path in restored)]


def contents(run: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Every field of every fact of a run, arrays as bytes with their shapes."""
    found = {}
    for store in stores_of(run):
        for record in store.read(*store.schema):
            plain = {
                name: (value.shape, value.dtype.str, value.tobytes())
                if hasattr(value, "tobytes")
                else repr(value)
                for name, value in record.items()
            }
            place = str(store.folder.relative_to(run.parent))
            found[place, record["index"]] = plain
    return found


def parts(root: Path) -> dict[Path, tuple[int, int]]:
    """When each part was written, and where it lies on the disk."""
    found = {}
    for path in root.rglob("part-*.h5"):
        status = path.stat()
        found[path] = (status.st_mtime_ns, status.st_ino)
    return found


def facts_in_parts(root: Path) -> int:
    """Facts over all parts, those that are there twice counted twice."""
    # Every store has the field that is read.
    return sum(len(read_part(path, RESTORED, ["index"])) for path in parts(root))
