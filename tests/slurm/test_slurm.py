"""A sweep of shards on a real Slurm of one node, one of whose jobs is cancelled."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.support.places import ROOT
from tests.support.processes import started
from tests.support.runs import RUN, STATES, contents, parts
from tests.support.sweeps import records

HERE = ROOT / "tests" / "slurm"
SECONDS = 300  # a machine may be busy


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands find a cluster of this test's own."""
    names = ("slurmctld", "slurmd", "munged", "sbatch")
    lacking = [name for name in names if shutil.which(name) is None]
    if lacking:
        pytest.skip(f"no Slurm on this machine ({', '.join(lacking)}): see .ci/slurm")
    if os.geteuid() != 0:
        pytest.skip("the daemons of Slurm are started by root")
    pytest.importorskip("submitit")
    # Not in pytest's folder: the path of a socket is short, and munged wants no other's folders.
    with tempfile.TemporaryDirectory(prefix="ktrace-slurm-", dir="/var/tmp") as folder:
        script = str(HERE / "cluster.sh")
        try:
            begun = subprocess.run(
                [script, "start", folder], capture_output=True, text=True, timeout=120, check=False
            )
            assert begun.returncode == 0, begun.stderr
            name, _, value = begun.stdout.strip().partition("=")
            yield {
                **os.environ,
                name: value,
                "PATH": f"{HERE / 'bin'}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
            }
        finally:
            subprocess.run([script, "stop", folder], timeout=120, check=True)


def test_a_cancelled_shard_is_reported_and_the_rerun_completes_it(
    slurm: dict[str, str], own: tuple[str, ...], whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = [
        *(sys.executable, "-m", "ktrace", "--multirun", "hydra/launcher=slurm"),
        *("hydra.launcher.mem_gb=null", "hydra.launcher.cpus_per_task=1"),
        *("shard=1/2,2/2", *own, "noise.samples=2", "mediator=all", "stage=restore", *STATES),
        f"output_dir={output}",
    ]

    def sweep(name: str) -> AbstractContextManager["subprocess.Popen[str]"]:
        return started([*command, f"hydra.sweep.dir={tmp_path / name}"], tmp_path, slurm)

    first = tmp_path / "first"
    with sweep("first") as process:
        deadline = time.monotonic() + SECONDS
        while "0" not in records(first):  # the first job has begun
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        assert records(first)["0"]["status"] == "started"
        [submitted] = first.glob(".submitit/*_0/*_submitted.pkl")
        job = submitted.name.removesuffix("_submitted.pkl")
        subprocess.run(["scancel", job], env=slurm, check=True, timeout=SECONDS)
        printed, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    states = {number: record["status"] for number, record in records(first).items()}
    assert states == {"0": "failed", "1": "done"}, errors
    assert "job 0 failed: terminated; the same command goes on where this job stopped\n" in errors
    assert printed.startswith("Sweep")
    assert "Traceback" not in errors
    before = parts(output)
    lacking = contents(whole / RUN).keys() - contents(output / RUN).keys()
    assert lacking, "the cancelled shard had nothing to do"

    with sweep("second") as process:
        printed, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    assert {record["status"] for record in records(tmp_path / "second").values()} == {"done"}
    assert before.items() < parts(output).items()
    assert contents(output / RUN) == contents(whole / RUN)
