"""What was proven of a model once, by any process, is not proven again; only that is believed."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ktrace.config import ModelConfig
from ktrace.errors import KtraceError
from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from ktrace.pipeline import origin, session
from ktrace.pipeline.run import run
from ktrace.terms import PUBLISHED_MEDIATORS, Direction
from ktrace.tracing.engine import Shape, Use
from ktrace.tracing.mediators import make_mediator
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.suffix import judge, verdicts
from ktrace.tracing.suffix.limits import MEASURED, Limits
from ktrace.tracing.suffix.verdicts import Judged, Verdict, VerdictFiles
from tests.support.configs import Compose
from tests.support.models import micro_llama
from tests.support.proof import forget_verdicts


def in_a_new_process() -> None:
    """Nothing is known, and no model is loaded."""
    forget_verdicts()
    session._loaded = session._LastModel()


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    in_a_new_process()
    yield
    in_a_new_process()


Judgements = list[set[str]]
GOOD = Verdict(packed=False)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Judgements:
    """Whenever a model is judged, the mediators that it is judged with."""
    found: Judgements = []
    original = judge.proven

    def proven(lm: LanguageModel, use: Use, limits: Limits) -> Verdict:
        found.append({mediator.key for mediator in use.mediators})
        return original(lm, use, limits)

    monkeypatch.setattr(judge, "proven", proven)
    return found


def kept(output: object) -> list[Path]:
    return sorted(Path(str(output)).glob("*/.proofs/*.json"))


def traced(config: Compose, *overrides: str) -> Path:
    in_a_new_process()
    return run(config("stage=corrupted", *overrides)).folder


def told(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "run.yaml").read_text("utf-8"))
    return found


def test_another_run_believes_what_one_has_proven(config: Compose, judged: Judgements) -> None:
    traced(config)
    [path] = kept(config().output_dir)
    said = json.loads(path.read_text("utf-8"))
    assert said["judged"]["mediators"] == ["hidden"]
    assert said["verdict"] == {"problem": None, "packed": False, "against_packs": None}
    assert said["when"].startswith("20")
    assert said["about"]["versions"]["torch"] == origin.package_versions()["torch"]
    assert {"model", "devices", "versions", "arithmetic"} <= said["about"].keys()
    before = path.read_bytes()
    # Another noise: nothing of it is stored.
    traced(config, "noise.seed=2")
    assert judged == [{"hidden"}]
    assert path.read_bytes() == before


def test_a_sweep_proves_each_mediator_once(
    config: Compose, judged: Judgements, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever process runs a job; and then all of them are proven together."""
    cells: list[object] = []
    original = ReferenceEngine.cells

    def counted(self: Any, case: Any, some: Any, together: int = 1) -> Any:
        cells.extend(some)
        return original(self, case, some, together)

    monkeypatch.setattr(ReferenceEngine, "cells", counted)
    seeds = iter(range(10, 20))
    for name in PUBLISHED_MEDIATORS:
        traced(config, f"mediator={name}", f"noise.seed={next(seeds)}")
    assert [len(keys) for keys in judged] == [1] * 5
    assert len(set.union(*judged)) == 5
    one_by_one = len(cells)
    traced(config, "mediator=all", f"noise.seed={next(seeds)}")
    assert len(judged) == 5
    assert len(cells) == one_by_one
    traced(config, "mediator=all", f"noise.seed={next(seeds)}", "engine.prove=always")
    assert len(cells) == 2 * one_by_one


def cut_short(text: str) -> str:
    return text[: len(text) // 2]


def one_word_changed(text: str) -> str:
    return text.replace('"packed": false', '"packed": true')


def of_another_model(text: str) -> str:
    """Put under a name that is not its own, and whole."""
    said = json.loads(text)
    del said["sha256"]
    said["about"]["model"]["identity"] = "sha256:0"
    return json.dumps(said | {"sha256": verdicts._digest(said)})


def of_another_format(text: str) -> str:
    said = {"what": "is this"}
    return json.dumps(said | {"sha256": verdicts._digest(said)})


def with_a_key_more(text: str) -> str:
    said = json.loads(text)
    del said["sha256"]
    said["verdict"]["unheard_of"] = 1
    return json.dumps(said | {"sha256": verdicts._digest(said)})


@pytest.mark.parametrize(
    "damage",
    [
        cut_short,
        one_word_changed,
        of_another_model,
        of_another_format,
        with_a_key_more,
        lambda _: "",
        lambda _: "[" * 100_000,
        lambda _: "[1, 2]",
        lambda _: "null",
        lambda _: "\udcff",
    ],
)
def test_what_is_damaged_or_foreign_is_no_verdict(
    damage: Callable[[str], str], tmp_path: Path
) -> None:
    """Nor an error; and a good one takes its place."""
    files = VerdictFiles(tmp_path, {"model": {"identity": "sha256:1"}}, as_loaded=None)
    judged = Judged(frozenset([make_mediator("hidden", 1)]), Shape(9, 1), MEASURED)
    files.keep(judged, GOOD)
    assert [*files.known(judged)] == [(judged, GOOD)]
    [path] = tmp_path.iterdir()
    path.write_bytes(damage(path.read_text("utf-8")).encode(errors="surrogateescape"))
    assert [*files.known(judged)] == []
    files.keep(judged, GOOD)
    assert [*files.known(judged)] == [(judged, GOOD)]


def test_a_verdict_is_about_what_was_asked(tmp_path: Path) -> None:
    files = VerdictFiles(tmp_path, {"model": 1}, as_loaded=None)
    hidden, mlp = make_mediator("hidden", 1), make_mediator("mlp", 3)
    judged = Judged(frozenset([hidden, mlp]), Shape(9, 1), MEASURED)
    files.keep(judged, GOOD)
    of_one = replace(judged, mediators=frozenset([mlp]))
    assert [*files.known(of_one)] == [(of_one, GOOD)]
    for mediators in ([make_mediator("mlp", 5)], [make_mediator("hidden", 1, Direction.noise)]):
        assert [*files.known(replace(judged, mediators=frozenset(mediators)))] == []
    other_limits = replace(judged, limits=replace(MEASURED, pack_width=1))
    assert [*files.known(other_limits)] == []
    assert [*VerdictFiles(tmp_path, {"model": 2}, as_loaded=None).known(judged)] == []


def test_what_numbers_hang_on_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, config = language_model(micro_llama(3)), ModelConfig(name="micro", path="micro")
    prints = {"identity": "sha256:1", "dtype": "float32"}
    told = [origin.about_proof(config, prints, lm)]
    told.append(origin.about_proof(config, {**prints, "identity": "sha256:2"}, lm))
    lm.model.set_attn_implementation("eager")
    told.append(origin.about_proof(config, prints, lm))
    told.append(origin.about_proof(replace(config, device_map="auto"), prints, lm))
    for changed in (
        ("ktrace.pipeline.origin._device_name", lambda _: "another"),
        ("ktrace.pipeline.origin._code", lambda: "another"),
        ("ktrace.pipeline.origin.package_versions", lambda: {"torch": "another"}),
        ("torch.backends.cpu.get_cpu_capability", lambda: "another"),
        ("torch.get_float32_matmul_precision", lambda: "another"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(*changed)
            told.append(origin.about_proof(config, prints, lm))
    assert len({json.dumps(one) for one in told}) == len(told)


def more_hooks(lm: LanguageModel) -> None:
    lm.blocks[0].register_forward_pre_hook(lambda *rest: None)


def other_weights(lm: LanguageModel) -> None:
    with torch.no_grad():
        next(lm.model.parameters()).mul_(2)


def another_forward(lm: LanguageModel) -> None:
    lm.blocks[0].forward = lm.blocks[0].forward


@pytest.mark.parametrize("change", [more_hooks, other_weights, another_forward])
def test_a_model_that_was_changed_in_memory_is_another(
    change: Callable[[LanguageModel], None], config: Compose, judged: Judgements
) -> None:
    traced(config)
    [path] = kept(config().output_dir)
    in_a_new_process()
    original = session._loaded

    class Changed(session._LastModel):
        def __call__(self, *rest: Any) -> LanguageModel:
            lm = super().__call__(*rest)
            change(lm)
            return lm

    session._loaded = Changed()
    run(config("stage=corrupted", "noise.seed=2"))
    session._loaded = original
    assert len(judged) == 2
    path.unlink()
    session._loaded = Changed()
    run(config("stage=corrupted", "noise.seed=3"))
    assert kept(config().output_dir) == []


def test_nothing_is_proven_where_nobody_asks_for_it(
    config: Compose, judged: Judgements, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="ktrace"):
        folder = traced(config, "engine.prove=never")
    assert judged == []
    assert kept(config().output_dir) == []
    [message] = [r.getMessage() for r in caplog.records if "prove" in r.getMessage()]
    assumed = (
        "LlamaForCausalLM is taken to give the numbers of engine=reference by engine=suffix, "
        "without packs; nothing was compared"
    )
    assert message == f"engine.prove=never: {assumed}"
    engine = {"asked": "suffix", "used": "suffix", "prove": "never", "assumed": assumed}
    assert told(folder)["engine"] == engine


def test_what_fails_is_not_kept(
    config: Compose, judged: Judgements, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "proven", lambda *rest: Verdict("it was made up"))
    assert told(traced(config))["engine"]["used"] == "reference"
    assert kept(config().output_dir) == []


def test_a_verdict_that_cannot_be_kept_ends_no_run(
    config: Compose, judged: Judgements, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*rest: Any) -> None:
        raise KtraceError("no space left on device")

    monkeypatch.setattr(verdicts, "write_text", full)
    assert told(traced(config))["engine"]["used"] == "suffix"
    assert kept(config().output_dir) == []
