"""Sweeps: one table at the end, a failed job that stays alone, and what is kept on SIGTERM."""

import os
import re
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import ktrace.__main__ as main_module
from ktrace.__main__ import main
from ktrace.config import RunConfig
from ktrace.pipeline import run as pipeline
from ktrace.pipeline import sweep
from ktrace.pipeline.jobs import Sweep
from ktrace.store import RunFolders
from ktrace.tracing.suffix import engine as suffix
from tests.support.configs import Compose
from tests.support.known_facts import save_random_model, write_known_facts
from tests.support.signals import signalled_where_it_is_dropped
from tests.support.sweeps import records

pytestmark = pytest.mark.usefixtures("no_figures", "no_proof")


def cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ktrace", *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0) if not isinstance(stop.code, str) else 1
    return 0


def test_a_sweep_over_models_and_mediators_ends_with_one_table(
    model_folder: Path,
    in_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = save_random_model(in_folder / "other", seed=5)
    facts = write_known_facts(in_folder / "both.jsonl", [model_folder, other])
    code = cli(
        monkeypatch,
        "--multirun",
        "model=auto",
        f"model.path={model_folder},{other}",
        "mediator=hidden,mlp,attn",
        "dataset=file",
        f"dataset.path={facts}",
        "noise.samples=2",
    )
    assert code == 0
    printed = capsys.readouterr().out
    assert printed.count("Sweep") == 1
    [folder] = Path("outputs/sweeps").iterdir()
    jobs = records(folder).values()
    assert len(jobs) == 6
    assert {job["status"] for job in jobs} == {"done"}
    assert {tuple(job["mediators"]) for job in jobs} == {("hidden",), ("mlp-w10",), ("attn-w10",)}
    for name in ("random", "other", "hidden", "mlp-w10", "attn-w10", "gaussian-x3-n2-seed1"):
        assert name in printed
    # What tells the jobs apart, and not what they share.
    assert f"model.path={other} mediator=mlp" in printed
    assert "noise.samples=2" not in printed
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["other", "random", "sweeps"]


def test_a_failing_job_does_not_stop_the_sweep(
    model_folder: Path,
    facts_file: Path,
    in_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = cli(
        monkeypatch,
        "--multirun",
        "model=auto",
        f"model.path={model_folder}",
        "dataset=file",
        f"dataset.path={facts_file}",
        "dataset.limit=0,2",
        "noise.samples=2",
    )
    assert code == 1
    [folder] = Path("outputs/sweeps").iterdir()
    jobs = records(folder)
    assert [jobs[number]["status"] for number in ("0", "1")] == ["failed", "done"]
    assert "dataset.limit=0" in jobs["0"]["message"]
    assert jobs["0"]["traceback"].startswith("Traceback")
    *_, last, wrote = capsys.readouterr().out.splitlines()
    assert last == "job 0 (dataset.limit=0) failed: dataset.limit=0 is out of range: at least 1"
    assert wrote.startswith("wrote outputs/sweeps/")


def test_a_job_that_was_killed_is_failed(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As under a launcher with a process for each job, one of which is out of memory."""

    class Killed(BaseException):
        pass

    def die(config: RunConfig) -> None:
        raise Killed

    monkeypatch.setattr(pipeline, "run", die)
    with pytest.raises(Killed):
        cli(monkeypatch, "-m", "noise.seed=1,2", "hydra.sweep.dir=jobs")
    [name] = (path.name for path in Path("jobs/jobs").iterdir())
    command = sweep.Command(sweep=Sweep(Path("jobs"), name))
    command.report()
    assert command.failed == ["0", "1"], "the second did not begin"
    printed = capsys.readouterr().out
    assert "job 0 (" in printed
    assert "failed: it started and left no result" in printed


@pytest.mark.parametrize(("is_dropped", "n_kept"), [(False, 1), (True, 2)])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_job_in_a_launchers_process_keeps_its_facts_on_sigterm(
    model_folder: Path,
    facts_file: Path,
    in_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_dropped: bool,
    n_kept: int,
) -> None:
    """As `scancel` ends it; there `main` has run in another process."""

    def elsewhere(config: Any) -> None:
        with mock.patch.object(sweep, "current_command", sweep.Command):
            sweep.run_job(config)

    monkeypatch.setattr(main_module, "run_job", elsewhere)
    monkeypatch.setattr(main_module, "ended_by_signals", nullcontext)
    original = suffix.SuffixEngine.baseline
    calls = []

    def baseline(self: Any, group: Any, then: Any = ()) -> Any:
        calls.append(group)
        if len(calls) == 2:
            if is_dropped:
                signalled_where_it_is_dropped(signal.SIGTERM)
            else:
                os.kill(os.getpid(), signal.SIGTERM)
        return original(self, group, then)

    monkeypatch.setattr(suffix.SuffixEngine, "baseline", baseline)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as submitit does
    try:
        code = cli(
            monkeypatch,
            *("-m", "model=auto", f"model.path={model_folder}", "dataset=file"),
            *(f"dataset.path={facts_file}", "noise.samples=2,3", "stage=corrupted"),
            *("engine.row_budget=3", "hydra.sweep.dir=jobs"),
        )
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 1
    told, other = records(Path("jobs")).values()
    assert (told["status"], other["status"]) == ("failed", "done")
    assert told["message"] == "terminated; the same command goes on where this job stopped"
    folder = Path("outputs/random/known/gaussian-x3-n2-seed1")
    assert len(list(RunFolders(folder).corrupted.read())) == n_kept


def test_two_sweeps_in_one_second_have_two_folders(
    config: Compose, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        assert cli(monkeypatch, "-m", "noise.samples=0", "output_dir=out") == 1
    names = [path.name for path in Path("out/sweeps").iterdir()]
    assert len(names) == 2
    for name in names:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.\d{6}", name)
