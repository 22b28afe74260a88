"""The embedded model as large ones are loaded: spread by accelerate, or with rounded weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from ktrace.config import EngineConfig
from ktrace.errors import KtraceError
from ktrace.lm.model import LanguageModel
from ktrace.terms import PUBLISHED_MEDIATORS
from ktrace.tracing.engine import Case, Engine, Scores, Use
from ktrace.tracing.engines import make_engine
from ktrace.tracing.mediators import Mediator, make_mediator
from ktrace.tracing.noise import RandomNoise
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.suffix.engine import SuffixEngine
from tests.support.models import known_case, loaded
from tests.support.places import ROOT

TINY = ROOT / "data" / "tiny"  # wide enough for blocks of rounded weights
NOISE = RandomNoise(1.0, samples=2)
MEDIATORS = [make_mediator(name, 2) for name in PUBLISHED_MEDIATORS]
HALF_ON_DISK = {
    **{"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"},
    **{f"model.layers.{layer}": ("disk", "cpu")[layer % 2] for layer in range(6)},
    "lm_head": "cpu",
}


@pytest.fixture(scope="module")
def whole() -> LanguageModel:
    return loaded(TINY)


@pytest.fixture(scope="module")
def case(whole: LanguageModel) -> Case:
    """Before its subject stands one token, after it another."""
    return known_case(whole, 1, 4, 1, 3)


@pytest.fixture(scope="module")
def full(whole: LanguageModel, case: Case) -> dict[str, Scores]:
    """With the model's own weights, in float32."""
    return restored(ReferenceEngine(whole, NOISE), case)


def restored(
    engine: Engine, case: Case, mediators: Sequence[Mediator] = MEDIATORS
) -> dict[str, Scores]:
    [(_, found)] = engine.restored([case], mediators)
    return dict(found)


def difference(ours: dict[str, Scores], theirs: dict[str, Scores]) -> float:
    assert ours.keys() <= theirs.keys()
    return max(
        float(np.abs(scores["probability"] - theirs[key]["probability"]).max())
        for key, scores in ours.items()
    )


def test_layers_on_disk_give_the_numbers_of_the_whole_model(case: Case) -> None:
    """accelerate fetches each layer's weights when it is called, by whoever calls it."""
    expected = restored(ReferenceEngine(loaded(TINY, dtype="float64"), NOISE), case)
    assert max(np.ptp(scores["probability"]) for scores in expected.values()) >= 0.1
    lm = loaded(TINY, dtype="float64", device_map=HALF_ON_DISK)
    assert {p.device.type for p in lm.model.model.layers[2].parameters()} == {"meta"}
    engine = make_engine(EngineConfig(), lm, NOISE, Use(MEDIATORS))
    assert isinstance(engine, SuffixEngine)
    assert difference(restored(engine, case), expected) <= 1e-12
    two = restored(ReferenceEngine(lm, NOISE), case, MEDIATORS[2:4])
    assert difference(two, expected) <= 1e-12


@pytest.mark.parametrize("bits", ["int4", "int8"])
def test_both_engines_take_rounded_weights(full: dict[str, Scores], case: Case, bits: str) -> None:
    lm = loaded(TINY, quantization=bits)
    engine = make_engine(EngineConfig(), lm, NOISE, Use(MEDIATORS))
    assert isinstance(engine, SuffixEngine)
    expected = restored(ReferenceEngine(lm, NOISE), case)
    assert difference(restored(engine, case), expected) <= 1e-5
    assert difference(expected, full) > 1e-3  # the weights are other ones


def test_int8_weights_are_multiplied_with_states_as_they_are() -> None:
    """bitsandbytes rounds them, but not in columns where any row of the batch is large."""
    lm = loaded(TINY, quantization="int8")
    product: Any = lm.model.model.layers[1].mlp.up_proj
    calm = torch.randn(5, product.in_features, generator=torch.Generator().manual_seed(0))
    steps = product.weight.CB if product.weight.CB is not None else product.state.CB
    scale = product.weight.SCB if product.weight.SCB is not None else product.state.SCB
    expected = calm.double() @ (steps.double() * scale.double()[:, None] / 127).T
    for company in (calm, 50 * calm):
        with torch.inference_mode():
            found = product(torch.cat([calm, company]))[: len(calm)]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_an_embedding_on_disk_is_refused_by_name() -> None:
    for device_map in (
        {"": "disk"},
        HALF_ON_DISK | {"model.embed_tokens": "disk"},
        {"model": "cpu", "lm_head": "disk"},
    ):
        with pytest.raises(KtraceError, match=r"is on disk, and with it (lm_head|model\.embed_t)"):
            loaded(TINY, device_map=device_map)
