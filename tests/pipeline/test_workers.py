"""How many workers a run has."""

import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import ktrace.__main__ as command
from ktrace.errors import KtraceError
from ktrace.lm.model import LanguageModel
from ktrace.pipeline import run as pipeline
from ktrace.pipeline import work, workers
from ktrace.pipeline.workers import AUTO, Workers, require_workers, workers_for
from tests.support.configs import Compose

GB = 2**30


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "free_cores", lambda: 4)
    monkeypatch.setattr(workers, "free_memory", lambda: 64 * GB)
    monkeypatch.setattr(sys, "platform", "linux")


def of(lm: LanguageModel, asked: object = AUTO, n_facts: int = 100) -> Workers:
    return workers_for(asked, lm, n_facts, 11 * 20)


@pytest.mark.parametrize(("n_facts", "count"), [(1, 1), (3, 3), (4, 4), (5, 4), (1000, 4)])
def test_there_are_as_many_as_cores_and_facts(
    llama: LanguageModel, n_facts: int, count: int
) -> None:
    assert of(llama, n_facts=n_facts) == Workers(count, 1)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_number_is_taken_at_its_word(llama: LanguageModel, count: int) -> None:
    assert of(llama, count) == Workers(count, 1)


@pytest.mark.parametrize("n_facts", [1, 11, 12])
def test_a_wide_model_has_threads_where_facts_are_few(llama: LanguageModel, n_facts: int) -> None:
    wide = replace(llama, d_embedding=768)
    assert of(wide, n_facts=n_facts) == (Workers(4, 1) if n_facts == 12 else Workers(1, None))
    assert of(wide, 1, n_facts) == Workers(1, 1)


@pytest.mark.parametrize(("free", "count"), [(None, 4), (0, 1), (GB, 4), (GB / 2, 3)])
def test_there_are_no_more_than_fit_into_memory(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch, free: float | None, count: int
) -> None:
    monkeypatch.setattr(workers, "free_memory", lambda: free)
    assert of(llama) == Workers(count, 1)


def test_a_worker_of_a_large_model_needs_more(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "free_memory", lambda: 4 * GB)
    assert of(replace(llama, d_embedding=4096, n_layers=32)).count == 2


def test_on_an_accelerator_there_is_one_and_its_threads_are_torchs(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        LanguageModel, "accelerators", property(lambda lm: {torch.device("cuda:0")})
    )
    assert of(llama) == of(llama, 1) == Workers(1, None)
    with pytest.raises(
        KtraceError,
        match=r"^engine\.workers=2: several are for a CPU, and this model is on cuda:0; give "
        r"engine\.workers=auto, or 1$",
    ):
        require_workers(2, llama)
    require_workers(1, llama)
    require_workers(AUTO, llama)


def test_where_processes_cannot_be_forked_there_is_one(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_workers(2, llama)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert of(llama) == Workers(1, 1)
    with pytest.raises(KtraceError, match=r"^engine\.workers=2: several need Linux, .*darwin"):
        require_workers(2, llama)


def test_a_worker_of_somebody_else_has_none(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    assert of(llama) == Workers(1, 1)
    with pytest.raises(KtraceError, match=r"^engine\.workers=2: this process is itself a worker"):
        require_workers(2, llama)


def test_threads_are_as_before_when_the_work_is_done() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with Workers(1, None).as_threaded():
            assert torch.get_num_threads() == 3
        with Workers(2, 1).as_threaded():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("no_figures", "no_proof")
def test_the_run_shows_and_records_what_its_workers_do(
    config: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def told(count: int) -> tuple[object, ...]:
        shown: Counter[str] = Counter()
        totals: dict[str, int] = {}

        @contextmanager
        def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
            totals[title] = total
            yield lambda count: shown.update({title: count})

        monkeypatch.setattr(work, "progress", progress)
        outcome = pipeline.run(
            config(f"engine.workers={count}", f"output_dir={tmp_path / str(count)}")
        )
        assert shown == totals
        assert len(list((outcome.folder / "runs").iterdir())) == 1
        record = yaml.safe_load((outcome.folder / "run.yaml").read_text())
        assert (record["device"]["workers"], record["device"]["threads"]) == (count, 1)
        assert record["config"]["engine"]["workers"] == count
        return totals, outcome.counts, record["status"], list(record["wall_seconds_by_stage"])

    assert told(3) == told(1)


@pytest.mark.parametrize(
    ("given", "policy"),
    [
        ({}, "passive"),
        ({"OMP_WAIT_POLICY": "active"}, "active"),
        ({"GOMP_SPINCOUNT": "100"}, None),
    ],
)
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], policy: str | None
) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    command._wait_asleep()
    assert os.environ.get("OMP_WAIT_POLICY") == policy
