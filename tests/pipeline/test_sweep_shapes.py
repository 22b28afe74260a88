"""Sweeps of every shape: each job keeps what it found, and failures are in exit code and table."""

import json
from pathlib import Path

import pandas as pd
import pytest

from ktrace.config import RunConfig
from ktrace.errors import KtraceError, Terminated
from ktrace.pipeline import run as pipeline
from ktrace.pipeline.jobs import Job, Sweep
from ktrace.pipeline.swept import analysis_overrides, variant
from tests.support.command import Ended, Ktrace, refused
from tests.support.sweeps import records

pytestmark = pytest.mark.usefixtures("no_figures", "no_proof")

RUN = Path("outputs/random/known/gaussian-x3-n1-seed1")
ONE = ("noise.samples=1", "hydra.sweep.dir=jobs")


def statuses(folder: str = "jobs") -> list[str]:
    return [job["status"] for job in records(Path(folder)).values()]


def table(folder: str = "jobs") -> pd.DataFrame:
    return pd.read_csv(Path(folder) / "sweep.csv", keep_default_na=False, dtype=str)


@pytest.fixture
def sweep(ktrace: Ktrace, own: tuple[str, ...]) -> Ktrace:
    def run(*arguments: str) -> Ended:
        ended = ktrace("-m", *own, *ONE, *arguments)
        assert "Traceback" not in ended.stderr
        return ended

    return run


def test_failures_in_nested_folders_are_seen(sweep: Ktrace) -> None:
    ended = sweep(
        "shard=1/2,3/2,4/2", "stage=filter", "hydra.sweep.subdir=${hydra.job.override_dirname}"
    )
    assert ended.code == 1
    assert statuses() == ["done", "failed", "failed"]
    assert table()["status"].tolist() == ["done", "failed", "failed"]
    assert "job 1 (shard=3/2) failed: shard='3/2' is out of range" in ended.stdout


def test_failures_of_jobs_that_differ_in_a_path_are_seen(
    sweep: Ktrace, facts_file: Path, in_folder: Path
) -> None:
    ended = sweep(
        f"dataset.path={facts_file},{in_folder}/none.jsonl",
        "stage=filter",
        "hydra.sweep.subdir=x/${hydra.job.override_dirname}",
    )
    assert ended.code == 1
    assert table()["status"].tolist() == ["done", "failed"]
    assert "none.jsonl" in table()["message"][1]


def test_a_folder_of_two_sweeps_counts_the_jobs_of_each(sweep: Ktrace) -> None:
    assert sweep("dataset.limit=0,-1,1", "stage=filter").code == 1
    ended = sweep("dataset.limit=1,2", "stage=filter")
    assert ended.code == 0
    assert "failed" not in ended.stdout
    assert table()["job"].tolist() == ["0", "1"]
    assert len([*Path("jobs/jobs").iterdir()]) == 2


def test_each_limit_keeps_its_analysis(sweep: Ktrace) -> None:
    ended = sweep("dataset.limit=2,0,4")
    assert ended.code == 1
    for limit in ("2", "4"):
        folder = Path(f"{RUN}/analysis-limit-{limit}")
        assert json.loads((folder / "summary.json").read_text())["n_facts"] == int(limit)
        assert len(pd.read_csv(folder / "candidates.csv")) == int(limit)
    assert not (RUN / "analysis").exists()
    found = table()
    assert found["overrides"].tolist() == [f"dataset.limit={limit}" for limit in "204"]
    assert found["status"].tolist() == ["done", "failed", "done"]
    assert found["n_facts"].tolist() == ["2", "", "4"]
    assert found["analysis"].tolist() == [f"{RUN}/analysis-limit-2", "", f"{RUN}/analysis-limit-4"]
    assert "wrote jobs: sweep.csv" in ended.stdout


def test_each_metric_keeps_its_analysis(sweep: Ktrace) -> None:
    assert sweep("metric=logit,probability", "noise.seed=1,-1", "dataset.limit=3").code == 1
    found = table()
    assert found["metric"].tolist() == ["logit", "", "probability", ""]
    for job in found.to_dict("records")[::2]:
        summary = json.loads((Path(job["analysis"]) / "summary.json").read_text())
        assert summary["metric"] == job["metric"]
        assert summary["peaks"]["hidden"]["last"]["aie"] == pytest.approx(float(job["peak_last"]))


def test_roles_and_limit_together(sweep: Ktrace) -> None:
    assert sweep("roles.scheme=rome,seed", "dataset.limit=2,3", "stage=filter").code == 0
    assert sorted(path.name for path in RUN.glob("analysis*")) == [
        f"analysis-scheme-{scheme}-limit-{limit}" for scheme in ("rome", "seed") for limit in "23"
    ]


@pytest.mark.parametrize("key", ["model.dtype=float32,float64", "model.quantization=null,int8"])
def test_jobs_whose_stores_would_have_one_folder_are_refused(
    ktrace: Ktrace, own: tuple[str, ...], key: str
) -> None:
    ended = ktrace("-m", *own, *ONE, key)
    name = key.partition("=")[0]
    refused(ended, f"{name} is swept", f"'model.name=random-${{{name}}}'")
    assert not Path("jobs").exists()


def test_each_dtype_has_its_stores_under_a_name_of_its_own(sweep: Ktrace) -> None:
    ended = sweep(
        "model.dtype=float32,float64",
        "dataset.limit=1,0",
        "model.name=r-${model.dtype}",
        "stage=filter",
    )
    assert ended.code == 1
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["r-float32", "r-float64"]
    assert statuses() == ["done", "failed"] * 2


def test_engines_and_shards_share_stores_and_say_so(sweep: Ktrace) -> None:
    ended = sweep("engine=suffix,reference", "shard=1/2,2/2,5/2", "stage=filter")
    assert ended.code == 1
    assert ended.stderr.count("the others find its numbers") == 1
    found = table()
    assert found["overrides"].tolist() == [
        f"engine={engine} shard={shard}"
        for engine in ("suffix", "reference")
        for shard in ("1/2", "2/2", "5/2")
    ]
    assert found["status"].tolist() == ["done", "done", "failed"] * 2
    # Once in the log, once below the table.
    assert ended.stdout.count("2 jobs (2, 5) failed: shard='5/2'") == 1
    assert ended.stderr.count("shard='5/2'") == 1


def test_a_job_without_a_record_has_failed(sweep: Ktrace, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Sweep.write

    def forgetful(self: Sweep, job: Job) -> None:
        if job.job != "1":
            write(self, job)

    monkeypatch.setattr(Sweep, "write", forgetful)
    ended = sweep("dataset.limit=1,2,3", "stage=filter")
    assert ended.code == 1
    assert "job 1 (dataset.limit=2) failed: it left no record" in ended.stdout
    assert table()["status"].tolist() == ["done", "failed", "done"]


def test_an_error_of_the_launcher_is_told_with_the_table(
    sweep: Ktrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Sweep.write

    def full(self: Sweep, job: Job) -> None:
        if job.job == "1":
            raise KtraceError("the disk is full")
        write(self, job)

    monkeypatch.setattr(Sweep, "write", full)
    ended = sweep("dataset.limit=1,2", "stage=filter")
    assert ended.code == 1
    assert ended.stderr.endswith("ktrace: the disk is full\n")
    assert "job 1 (dataset.limit=2) failed: it did not begin" in ended.stdout
    assert table()["status"].tolist() == ["done", "failed"]


@pytest.mark.parametrize(
    ("stop", "code", "word"),
    [(KeyboardInterrupt, 130, "interrupted"), (Terminated, 143, "terminated")],
)
def test_a_sweep_that_a_signal_ends_has_its_table(
    sweep: Ktrace,
    monkeypatch: pytest.MonkeyPatch,
    stop: type[BaseException],
    code: int,
    word: str,
) -> None:
    run = pipeline.run

    def told(config: RunConfig) -> pipeline.Outcome:
        if config.dataset.limit == 2:
            raise stop
        return run(config)

    monkeypatch.setattr(pipeline, "run", told)
    ended = sweep("dataset.limit=1,2,3,4", "stage=filter")
    assert ended.code == code
    assert statuses() == ["done", "failed"]
    assert table()["status"].tolist() == ["done", "failed", "failed", "failed"]
    goes_on = "the same command goes on where this job stopped"
    assert f"job 1 (dataset.limit=2) failed: {word}; {goes_on}\n" in ended.stdout
    assert f"2 jobs (2, 3) failed: {word} before it began\n" in ended.stdout


def test_metrics_are_compared_apart(sweep: Ktrace) -> None:
    ended = sweep("metric=logit,probability", "noise.seed=1,2", "dataset.limit=4", "compare=true")
    assert ended.code == 0, ended.stderr
    for metric in ("logit", "probability"):
        runs = pd.read_csv(f"outputs/comparison-metric-{metric}/runs.csv")
        assert runs["metric"].tolist() == [metric] * 2
    assert not Path("outputs/comparison").exists()


def test_analyses_of_one_run_are_no_runs_to_compare(ktrace: Ktrace, own: tuple[str, ...]) -> None:
    refused(
        ktrace("-m", *own, *ONE, "metric=logit,probability", "compare=true"),
        "compare=true compares runs",
        "metric",
        "sweep.csv",
    )


def test_one_folder_for_the_analyses_of_many_is_refused(
    ktrace: Ktrace, own: tuple[str, ...]
) -> None:
    refused(
        ktrace("-m", *own, *ONE, "metric=logit,probability", "analysis.folder=there"),
        "analysis.folder=there is one folder",
        "'analysis.folder=there/${metric}'",
    )


def test_variants_differ_where_what_they_are_called_by_does() -> None:
    submitted = [[f"analysis.facts={facts}", "metric=kl"] for facts in ("[0,7]", "[0-7]", "[]")]
    told = [analysis_overrides(overrides, submitted) for overrides in submitted]
    assert told[0] == ["analysis.facts=[0,7]"]
    names = [variant(overrides) for overrides in told]
    assert len(set(names)) == 3
    assert all(name.startswith("-facts-") and "/" not in name for name in names)
    # Nobody knows what another sweeper submits: anything may differ.
    assert analysis_overrides(submitted[0], []) == submitted[0]
