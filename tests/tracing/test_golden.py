"""Every engine gives the published implementation's numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from ktrace.facts import Span
from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from ktrace.terms import PUBLISHED_MEDIATORS
from ktrace.tracing.clean import clean_run
from ktrace.tracing.engine import Case
from ktrace.tracing.mediators import make_mediator
from ktrace.tracing.noise import RandomNoise
from tests.tracing.engine_contract import Make, every_engine

GOLDEN = Path(__file__).resolve().parent.parent / "data" / "golden"
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=["gpt2-micro", "llama-micro"])
def golden(request: pytest.FixtureRequest) -> tuple[LanguageModel, list[dict[str, Any]]]:
    folder = GOLDEN / request.param
    lm = language_model(AutoModelForCausalLM.from_pretrained(folder))
    return lm, json.loads((folder / "cases.json").read_text())["cases"]


@every_engine
def test_all_mediators_agree(
    golden: tuple[LanguageModel, list[dict[str, Any]]], make: Make
) -> None:
    lm, published = golden
    assert len(published) == 5
    for number, expected in enumerate(published):
        case = Case(
            number,
            tuple(expected["input_ids"]),
            Span(*expected["subject_range"]),
            (expected["answer_id"],),
        )
        engine = make(lm, RandomNoise(expected["noise_level"], expected["samples"]))
        clean = clean_run(lm, case.input_ids, case.answer_ids).probability
        assert clean == pytest.approx(expected["high_score"], abs=TOLERANCE)
        [(_, baseline)] = engine.baseline([case])
        assert baseline.clean["probability"][0] == pytest.approx(clean, abs=TOLERANCE)
        low = baseline.corrupted["probability"].mean()
        assert low == pytest.approx(expected["low_score"], abs=TOLERANCE)
        mediators = [make_mediator(name, expected["window"]) for name in PUBLISHED_MEDIATORS]
        [(_, restored)] = engine.restored([case], mediators)
        for mediator in mediators:
            ours = restored[mediator.key]["probability"].mean(axis=0).T
            np.testing.assert_allclose(ours, expected[mediator.name], rtol=0, atol=TOLERANCE)
