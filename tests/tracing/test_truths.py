"""The contract of every engine, and what defines the reference engine."""

from dataclasses import replace

import numpy as np
import pytest

from ktrace.lm.model import LanguageModel
from ktrace.terms import Direction
from ktrace.tracing.clean import clean_run
from ktrace.tracing.engine import Case
from ktrace.tracing.mediators import Mediator, make_mediator
from ktrace.tracing.reference import ReferenceEngine
from tests.support.models import known_case
from tests.tracing.attention_contract import AttentionContract
from tests.tracing.engine_contract import ENGINES, EXACT, NOISE, EngineContract, corrupted


class TestReferenceEngine(EngineContract, AttentionContract):
    make = staticmethod(ENGINES["reference"])


class TestSuffixEngine(EngineContract, AttentionContract):
    make = staticmethod(ENGINES["suffix"])


class TestPackedSuffixEngine(EngineContract, AttentionContract):
    make = staticmethod(ENGINES["suffix-packed"])


@pytest.fixture
def case(llama: LanguageModel) -> Case:
    return known_case(llama, 3, 6, 2, 5)


@pytest.fixture
def engine(llama: LanguageModel) -> ReferenceEngine:
    return ReferenceEngine(llama, NOISE)


def restored(engine: ReferenceEngine, mediator: Mediator, case: Case) -> np.ndarray:
    [(_, by_mediator)] = engine.restored([case], [mediator])
    return by_mediator[mediator.key]["probability"]


class _RestoresNothing(Mediator):
    def restored_layers(self, layer: int, n_layers: int) -> range:
        return range(0)


@pytest.mark.parametrize("severs", [None, "mlp", "attn"])
def test_restoring_nothing_gives_the_corrupted_run(
    engine: ReferenceEngine, case: Case, severs: str | None
) -> None:
    """Also while severing: an output held at its own corrupted value changes nothing."""
    scores = restored(engine, _RestoresNothing("nothing", "hidden", severs=severs), case)
    expected = corrupted(engine, case)[:, None, None]
    np.testing.assert_allclose(scores, np.broadcast_to(expected, scores.shape), atol=EXACT)


def test_noising_nothing_gives_the_clean_run(
    llama: LanguageModel, engine: ReferenceEngine, case: Case
) -> None:
    nothing = _RestoresNothing("nothing", "hidden", direction=Direction.noise)
    p_clean = clean_run(llama, case.input_ids, case.answer_ids).probability
    np.testing.assert_allclose(restored(engine, nothing, case), p_clean, atol=EXACT)


@pytest.mark.parametrize("site", ["hidden", "mlp", "attn"])
def test_positions_before_the_subject_have_no_effect_by_computation_either(
    engine: ReferenceEngine, case: Case, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shortcut for positions before the subject is no assumption: the passes say the same."""
    run_without_shortcut = replace(case, span=case.span._replace(start=0))
    original = engine._logits
    # The noise stays where it was; only the loop over positions begins earlier.
    monkeypatch.setattr(engine, "_logits", lambda _case, *rest: original(case, *rest))
    scores = restored(engine, Mediator("probe", site), run_without_shortcut)[:, :, :2]
    expected = np.broadcast_to(corrupted(engine, case)[:, None, None], scores.shape)
    np.testing.assert_allclose(scores, expected, atol=EXACT)


@pytest.mark.parametrize(
    ("window", "layer", "expected"),
    [
        (1, 0, [0]),
        (1, 5, [5]),
        (2, 3, [2, 3]),
        (3, 3, [2, 3, 4]),
        (3, 0, [0, 1]),
        (3, 5, [4, 5]),
        (10, 0, [0, 1, 2, 3, 4]),
        (10, 5, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_windows_are_the_published_ones(window: int, layer: int, expected: list[int]) -> None:
    assert list(make_mediator("mlp", window).restored_layers(layer, 6)) == expected
