"""A sweep in processes of this machine: shards side by side, a failing job among them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException

from ktrace.config.complaints import explain
from tests.support.places import ROOT
from tests.support.processes import started
from tests.support.runs import RUN, STATES, contents
from tests.support.sweeps import records


def test_shards_run_side_by_side_and_a_failing_job_stays_alone(
    whole: Path, model_folder: Path, facts_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    output, jobs = tmp_path / "out", tmp_path / "jobs"
    command = [
        *(sys.executable, "-m", "ktrace", "-m", "hydra/launcher=processes"),
        *("shard=1/2,3/2,2/2", "model=auto", f"model.path={model_folder}", "dataset=file"),
        *(f"dataset.path={facts_file}", "noise.samples=2", "mediator=all", "stage=restore"),
        *STATES,
        *(f"output_dir={output}", f"hydra.sweep.dir={jobs}"),
    ]
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 1
    told = [record["status"] for record in records(jobs).values()]
    assert told == ["done", "failed", "done"], ended.stderr
    assert "job 1 failed: shard='3/2' is out of range" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert contents(output / RUN) == contents(whole / RUN)


def processes_of(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def test_ctrl_c_ends_the_jobs_and_the_table_tells_so(
    model_folder: Path, facts_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    jobs = tmp_path / "jobs"
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    command = [
        *(sys.executable, "-m", "ktrace", "-m", "hydra/launcher=processes", "noise.seed=1,2,3"),
        *("model=auto", f"model.path={model_folder}", "dataset=file", "engine=reference"),
        *(f"dataset.path={facts_file}", "noise.samples=30000", f"hydra.sweep.dir={jobs}"),
    ]
    with started(command, tmp_path, environment | {"PYTHONPATH": str(ROOT)}) as process:
        deadline = time.monotonic() + 240
        while len(records(jobs)) < 2:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        printed, errors = process.communicate(timeout=120)
        left_by = time.monotonic() + 10
        while left := processes_of(process.pid):
            assert time.monotonic() < left_by, left
            time.sleep(0.05)
    assert process.returncode == 130
    told = "interrupted; the same command goes on where this job stopped"
    assert [(job["status"], job["message"]) for job in records(jobs).values()] == [
        ("failed", told),
        ("failed", told),
    ]
    assert f"2 jobs (0, 1) failed: {told}\n" in printed
    assert "job 2 (noise.seed=3) failed: interrupted before it began\n" in printed
    assert "ktrace: interrupted" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("launcher", ["joblib", "submitit_slurm"])
def test_a_launcher_that_is_not_installed_names_the_extra(launcher: str) -> None:
    missing = MissingConfigException("In 'x': ...", f"hydra/launcher/{launcher}", ["basic"])
    assert explain(missing) == (
        f"hydra/launcher={launcher} needs the extra cluster: pip install 'ktrace[cluster]'"
    )
