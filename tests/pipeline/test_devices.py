"""Whole runs on devices that are not here: pretended ones, whose numbers are the CPU's."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from ktrace.config import RunConfig
from ktrace.errors import NoMemoryLeftError
from ktrace.lm.model import LanguageModel
from ktrace.pipeline import session
from ktrace.pipeline.run import run
from ktrace.tracing import engines
from ktrace.tracing.engine import Use
from ktrace.tracing.suffix.judge import judge
from ktrace.tracing.suffix.limits import MEASURED, Limits
from ktrace.tracing.suffix.verdicts import Verdict
from tests.support.accelerator import Accelerator, mps_out_of_memory
from tests.support.configs import Compose
from tests.support.models import as_moved
from tests.support.runs import contents

TWO = {
    **{"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": 0},
    **{"model.layers.1": 1, "model.layers.2": 0, "model.norm": 1, "lm_head": 1},
}
# By name: the pretended devices, and what the config says of them.
PLACES: dict[str, tuple[Accelerator, str]] = {
    "cuda": (Accelerator("cuda"), "model.device=auto"),
    "two devices": (
        Accelerator("cuda", 2),
        f"model.device_map={{{','.join(f'{name}:{place}' for name, place in TWO.items())}}}",
    ),
    "mps": (Accelerator("mps"), "model.device=auto"),
}
SUFFIX = ("engine=suffix", "dataset.limit=2")
REFERENCE = ("engine=reference", "dataset.limit=1", "mediator=hidden_mlp_severed")
RUNS = {
    **{place: (place, SUFFIX) for place in PLACES},
    "two devices, reference": ("two devices", REFERENCE),
}


@pytest.fixture(autouse=True)
def same_calls(monkeypatch: pytest.MonkeyPatch, no_figures: None, no_proof: None) -> None:
    """Let nothing differ but the device: weights lie alike, and calls are of one size."""
    load, make = session.load_language_model, session.make_engine

    def loaded(*args: Any) -> LanguageModel:
        return as_moved(load(*args))

    limits = Limits(accelerator=MEASURED.cpu, pack_width=0)
    monkeypatch.setattr(session, "_loaded", session._LastModel())
    monkeypatch.setattr(session, "load_language_model", loaded)
    monkeypatch.setattr(session, "make_engine", partial(make, limits=limits))


@pytest.fixture
def composed_of(config: Compose, tmp_path: Path) -> Compose:
    def make(folder: str, *overrides: str) -> RunConfig:
        common = ("mediator=all", "noise.samples=2", "model.attention=eager")
        return config(
            f"output_dir={tmp_path / folder}", *common, "engine.row_budget=12", *overrides
        )

    return make


@pytest.mark.parametrize(("named", "engine"), RUNS.values(), ids=RUNS)
def test_a_run_stores_the_cpus_numbers(
    composed_of: Compose, named: str, engine: tuple[str, ...]
) -> None:
    accelerator, place = PLACES[named]
    expected = contents(run(composed_of("cpu", "model.device=cpu", *engine)).folder)
    with accelerator.here():
        found = run(composed_of("there", place, *engine))
    assert contents(found.folder) == expected
    kept = yaml.safe_load((found.folder / "run.yaml").read_text())
    assert kept["device"]["device"].startswith(accelerator.kind)
    assert kept["engine"]["used"] in engine[0]


def test_the_proof_runs_where_the_model_is(
    composed_of: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tests here skip it; on an accelerator it must not need what is on the CPU alone."""
    accelerator, place = PLACES["mps"]
    n_operations: list[int] = []
    verdicts: list[Verdict] = []

    def proven(lm: LanguageModel, use: Use, limits: Limits, *rest: Any) -> Verdict:
        assert lm.device.type in ("cpu", "mps")
        before = accelerator.n_operations
        verdicts.append(judge(lm, use, limits))
        n_operations.append(accelerator.n_operations - before)
        return verdicts[-1]

    monkeypatch.setattr(engines, "judge", proven)
    stages = ("stage=restore", "engine=suffix", "dataset.limit=1")
    expected = contents(run(composed_of("cpu", "model.device=cpu", *stages)).folder)
    with accelerator.here():
        found = run(composed_of("there", place, *stages))
    assert contents(found.folder) == expected
    kept = yaml.safe_load((found.folder / "run.yaml").read_text())
    assert kept["device"]["device"].startswith("mps")
    assert kept["engine"]["used"] == "suffix"
    assert [verdict.problem for verdict in verdicts] == [None, None]
    on_cpu, there = n_operations
    assert on_cpu == 0
    assert there > 1000


def test_a_run_that_is_out_of_memory_goes_on_to_the_same_numbers(composed_of: Compose) -> None:
    """Once there is memory again: what it finished is kept."""
    stages = ("stage=restore", *SUFFIX)
    with Accelerator("mps", error=mps_out_of_memory).here() as mps:
        expected = contents(run(composed_of("whole", *stages)).folder)
        n_operations = mps.n_operations
        for part in (0.1, 0.5):  # in clean runs, and in a walk
            mps.fails_at = range(mps.n_operations + int(part * n_operations), sys.maxsize)
            with pytest.raises(NoMemoryLeftError, match=r"^out of memory .*model\.dtype"):
                run(composed_of(f"broken at {part}", *stages))
            mps.fails_at = ()
            again = run(composed_of(f"broken at {part}", *stages))
            assert contents(again.folder) == expected
