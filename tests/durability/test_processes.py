"""A sweep in processes of this machine: shards side by side, a failing job among them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException

from ktrace.config.complaints import explain
from tests.support.places import ROOT
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


@pytest.mark.parametrize("launcher", ["joblib", "submitit_slurm"])
def test_a_launcher_that_is_not_installed_names_the_extra(launcher: str) -> None:
    missing = MissingConfigException("In 'x': ...", f"hydra/launcher/{launcher}", ["basic"])
    assert explain(missing) == (
        f"hydra/launcher={launcher} needs the extra cluster: pip install 'ktrace[cluster]'"
    )
