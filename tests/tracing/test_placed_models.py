"""The embedded model as large ones are loaded: spread by accelerate, or with rounded weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, known_case

from ktrace.lm.load import LanguageModel, load_language_model
from ktrace.lm.quantized import exact_products
from ktrace.lm.source import find_model
from ktrace.tracing import walk
from ktrace.tracing.engine import Case, Engine, Scores
from ktrace.tracing.mediators import MEDIATOR_NAMES, make_mediator
from ktrace.tracing.noise import RandomNoise
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.select import make_engine
from ktrace.tracing.suffix import SuffixEngine

TINY = ROOT / "data" / "tiny"  # wide enough for blocks of rounded weights
NOISE = RandomNoise(1.0, samples=2)
MEDIATORS = [make_mediator(name, 2) for name in MEDIATOR_NAMES]
HALF_ON_DISK = {
    **{"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"},
    **{f"model.layers.{layer}": ("disk", "cpu")[layer % 2] for layer in range(6)},
    "lm_head": "cpu",
}


def loaded(folder: Path, **keys: Any) -> LanguageModel:
    return load_language_model(find_model(str(folder), None), **{"dtype": "float32", **keys})


@pytest.fixture(scope="module")
def whole() -> LanguageModel:
    return loaded(TINY)


@pytest.fixture(scope="module")
def case(whole: LanguageModel) -> Case:
    return known_case(whole, 1)


def restored(engine: Engine, case: Case) -> dict[str, Scores]:
    [(_, found)] = engine.restored([case], MEDIATORS)
    return dict(found)


def difference(ours: dict[str, Scores], theirs: dict[str, Scores]) -> float:
    assert ours.keys() == theirs.keys()
    return max(
        float(np.abs(ours[key]["probability"] - scores["probability"]).max())
        for key, scores in theirs.items()
    )


def test_layers_on_disk_give_the_numbers_of_the_whole_model(case: Case) -> None:
    """accelerate fetches each layer's weights when it is called, by whoever calls it."""
    expected = restored(ReferenceEngine(loaded(TINY, dtype="float64"), NOISE), case)
    assert max(np.ptp(scores["probability"]) for scores in expected.values()) >= 0.1
    lm = loaded(TINY, dtype="float64", device_map=HALF_ON_DISK)
    assert {p.device.type for p in lm.model.model.layers[2].parameters()} == {"meta"}
    engine = make_engine("suffix", lm, NOISE)
    assert isinstance(engine, SuffixEngine)
    assert difference(restored(engine, case), expected) <= 1e-12
    assert difference(restored(ReferenceEngine(lm, NOISE), case), expected) <= 1e-12


@pytest.mark.parametrize(
    ("bits", "tolerance"), [("int4", 1e-5), ("int8", 0.02)], ids=["int4", "int8"]
)
def test_both_engines_take_rounded_weights(
    whole: LanguageModel, case: Case, bits: str, tolerance: float
) -> None:
    """With 8 bits states are rounded as well, and rounding errors take some to the next step."""
    lm = loaded(TINY, quantization=bits)
    engine = make_engine("suffix", lm, NOISE)
    assert isinstance(engine, SuffixEngine)
    expected = restored(ReferenceEngine(lm, NOISE), case)
    assert difference(restored(engine, case), expected) <= tolerance
    full = restored(ReferenceEngine(whole, NOISE), case)
    assert difference(expected, full) > 1e-3  # the weights are other ones
    with exact_products(lm.model):
        exact = restored(ReferenceEngine(lm, NOISE), case)
        assert difference(restored(engine, case), exact) <= 1e-5
    again = restored(ReferenceEngine(lm, NOISE), case)
    assert difference(again, expected) == 0  # nothing is left behind


def test_the_proof_sees_a_missing_severing_behind_the_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm = loaded(TINY, quantization="int8")
    original = walk.Walk._edits

    def edits_without_severing(self: Any, step: Any, *rest: Any) -> Any:
        return original(self, replace(step, severed={}), *rest)

    monkeypatch.setattr(walk.Walk, "_edits", edits_without_severing)
    assert isinstance(make_engine("suffix", lm, NOISE), ReferenceEngine)


def test_exact_products_are_those_of_the_weights() -> None:
    lm = loaded(TINY, quantization="int8")
    product: Any = lm.model.model.layers[1].mlp.up_proj
    states = torch.randn(5, product.in_features, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        rounded = product(states)
        steps = product.weight.CB if product.weight.CB is not None else product.state.CB
        scale = product.weight.SCB if product.weight.SCB is not None else product.state.SCB
        expected = states.double() @ (steps.double() * scale.double()[:, None] / 127).T
        with exact_products(lm.model):
            np.testing.assert_allclose(product(states), expected, rtol=1e-5, atol=1e-6)
        assert float((rounded - expected).abs().max()) > 1e-4
        assert torch.equal(product(states), rounded)
