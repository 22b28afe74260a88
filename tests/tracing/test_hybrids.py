"""Models whose layers differ: each mediator in the layers that have its site."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ktrace.errors import KtraceError
from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from ktrace.lm.paths import LayerKind
from ktrace.tracing.clean import clean_run
from ktrace.tracing.engine import Engine
from ktrace.tracing.mediators import Mediator, make_mediator
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.suffix.engine import SuffixEngine
from tests.support.families import tiny_model
from tests.support.models import all_states, known_case, micro_llama
from tests.tracing.agreement import AS_WIDE, NOISE, largest_difference, made, scores

ATTENTION = [make_mediator("attn", window) for window in (1, 3)]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    """Attention in layers 1 and 3."""
    return language_model(tiny_model("JambaForCausalLM").double())


def of(engine: Engine, lm: LanguageModel, mediator: Mediator) -> np.ndarray:
    return scores(engine, [known_case(lm, 1)], [mediator])[1, mediator.key]


@pytest.mark.parametrize("window", [1, 3])
def test_layers_without_the_site_are_empty(lm: LanguageModel, window: int) -> None:
    found = of(ReferenceEngine(lm, NOISE), lm, make_mediator("attn", window))
    assert np.isnan(found[:, [0, 2]]).all()
    assert not np.isnan(found[:, [1, 3]]).any()


def test_a_window_restores_the_layers_that_have_it(lm: LanguageModel) -> None:
    """Around layer 1, of layers 0 to 2, that is layer 1 alone; around 1 and 3 with five, both."""
    one, three, five = (
        of(ReferenceEngine(lm, NOISE), lm, make_mediator("attn", window)) for window in (1, 3, 5)
    )
    np.testing.assert_array_equal(one[:, [1, 3]], three[:, [1, 3]])
    np.testing.assert_array_equal(five[:, 1], five[:, 3])
    assert np.abs(five[:, 3] - one[:, 3]).max() > 1e-4


def test_severing_leaves_out_what_is_not_there(lm: LanguageModel) -> None:
    severed = of(ReferenceEngine(lm, NOISE), lm, make_mediator("hidden_attn_severed", 1))
    hidden = of(ReferenceEngine(lm, NOISE), lm, make_mediator("hidden", 1))
    assert not np.isnan(severed).any()
    np.testing.assert_allclose(severed[:, 3], hidden[:, 3], rtol=0, atol=1e-12)  # nothing later
    assert np.abs(severed[:, 0] - hidden[:, 0]).max() > 1e-6


def test_states_of_the_clean_run(lm: LanguageModel) -> None:
    states = clean_run(lm, (5, 6, 7), kept=all_states(lm, 3)).states
    assert {site: len(of_site) for site, of_site in states.items()} == {
        "hidden": 4,
        "attn": 4,
        "mlp": 4,
    }
    assert states["attn"][[0, 2]].isnan().all()
    assert not states["attn"][[1, 3]].isnan().any()


def test_a_site_that_no_layer_has_is_refused() -> None:
    mamba = language_model(tiny_model("MambaForCausalLM"))
    with pytest.raises(KtraceError, match=r"has no site 'attn'.*its sites are hidden$"):
        mamba.paths.require("attn")


@pytest.fixture(scope="module")
def partial() -> Any:
    """A Llama of which ktrace is told that some layers have no MLP, others no attention."""
    lm = language_model(micro_llama(5).double())
    paths = lm.paths
    both, one, other = (
        LayerKind((), attn="self_attn", mlp="mlp"),
        LayerKind((), mlp="mlp"),
        LayerKind((), attn="self_attn"),
    )
    kinds = (one, both, other, one, both)
    return replace(lm, paths=replace(paths, attn=None, mlp=None, layers=kinds))


def test_the_suffix_engine_gives_the_same(partial: LanguageModel) -> None:
    engine = made(partial)
    assert isinstance(engine, SuffixEngine)
    mediators = [
        *(make_mediator(name, window) for name in ("mlp", "attn") for window in (1, 2, 3)),
        *(make_mediator(f"hidden_{site}_severed", 1) for site in ("mlp", "attn")),
    ]
    cases = [known_case(partial, seed) for seed in (1, 2)]
    expected = scores(ReferenceEngine(partial, NOISE), cases, mediators)
    for packed in (False, True):
        engine = SuffixEngine(partial, NOISE, packed=packed, limits=AS_WIDE)
        ours = scores(engine, cases, mediators)
        assert largest_difference(ours, expected) <= 1e-12
