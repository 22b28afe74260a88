"""What must hold for every engine (the definition of causal tracing, not of one program)."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from ktrace.terms import MEDIATOR_NAMES
from ktrace.tracing.clean import clean_run
from ktrace.tracing.engine import Case
from ktrace.tracing.mediators import Mediator, make_mediator
from ktrace.tracing.noise import RandomNoise
from ktrace.tracing.reference import ReferenceEngine
from tests.support.models import known_case, micro_llama

CASE = known_case(language_model(micro_llama()), 3)
NOISE = RandomNoise(1.5, samples=3, seed=7)
EXACT = 1e-6  # float32 rounding
ALL = [make_mediator(name, 2) for name in MEDIATOR_NAMES]


@pytest.fixture
def engine(llama: LanguageModel) -> ReferenceEngine:
    return ReferenceEngine(llama, NOISE)


def p_clean(lm: LanguageModel, case: Case = CASE) -> float:
    return clean_run(lm, case.input_ids, case.answer_ids).probability


def corrupted(engine: ReferenceEngine, case: Case = CASE) -> np.ndarray:
    [(_, baseline)] = engine.baseline([case])
    return baseline.corrupted["probability"]


def restored(engine: ReferenceEngine, mediator: Mediator, case: Case = CASE) -> np.ndarray:
    [(_, by_mediator)] = engine.restored([case], [mediator])
    return by_mediator[mediator.key]["probability"]


def test_effects_are_large_enough_to_tell(llama: LanguageModel, engine: ReferenceEngine) -> None:
    """Else every other test here would pass on a model that does not listen."""
    for mediator in ALL:
        scores = restored(engine, mediator)[:, :, CASE.span.start :]
        assert np.ptp(scores) > 0.01, mediator.key
    assert np.abs(p_clean(llama) - corrupted(engine)).max() > 0.01


class _RestoresNothing(Mediator):
    def restored_layers(self, layer: int, n_layers: int) -> range:
        return range(0)


@pytest.mark.parametrize("severs", [None, "mlp", "attn"])
def test_restoring_nothing_gives_the_corrupted_run(
    engine: ReferenceEngine, severs: str | None
) -> None:
    """Also while severing: an output held at its own corrupted value changes nothing."""
    scores = restored(engine, _RestoresNothing("nothing", "hidden", severs=severs))
    expected = corrupted(engine)[:, None, None]
    np.testing.assert_allclose(scores, np.broadcast_to(expected, scores.shape), atol=EXACT)


def test_zero_noise_gives_no_total_effect(llama: LanguageModel) -> None:
    quiet = ReferenceEngine(llama, replace(NOISE, scale=0.0))
    np.testing.assert_allclose(corrupted(quiet), p_clean(llama), atol=EXACT)


@pytest.mark.parametrize("name", ["hidden", "hidden_mlp_severed", "hidden_attn_severed"])
def test_restoring_the_last_layer_at_the_last_position_gives_p_clean(
    llama: LanguageModel, engine: ReferenceEngine, name: str
) -> None:
    scores = restored(engine, make_mediator(name, 2))
    np.testing.assert_allclose(scores[:, -1, -1], p_clean(llama), atol=EXACT)


@pytest.mark.parametrize("mediator", ALL, ids=lambda m: m.key)
def test_positions_before_the_subject_have_no_effect(
    engine: ReferenceEngine, mediator: Mediator
) -> None:
    before = restored(engine, mediator)[:, :, : CASE.span.start]
    assert before.shape[-1] > 0
    assert (before == corrupted(engine)[:, None, None]).all()


@pytest.mark.parametrize("site", ["hidden", "mlp", "attn"])
def test_that_holds_by_computation_too(
    engine: ReferenceEngine, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shortcut for positions before the subject is no assumption: the passes say the same."""
    case = replace(CASE, span=CASE.span._replace(start=2))
    run_without_shortcut = replace(case, span=case.span._replace(start=0))
    original = engine._logits
    # The noise stays where it was; only the loop over positions begins earlier.
    monkeypatch.setattr(engine, "_logits", lambda _case, edits: original(case, edits))
    scores = restored(engine, Mediator("probe", site), run_without_shortcut)[:, :, :2]
    expected = np.broadcast_to(corrupted(engine)[:, None, None], scores.shape)
    np.testing.assert_allclose(scores, expected, atol=EXACT)


def test_every_pass_sees_the_same_noise(llama: LanguageModel) -> None:
    seen = []

    class Counting(RandomNoise):
        def corrupt(self, case: Case, embeddings: torch.Tensor) -> torch.Tensor:
            seen.append(super().corrupt(case, embeddings))
            return seen[-1]

    engine = ReferenceEngine(llama, Counting(1.0, samples=2))
    restored(engine, make_mediator("hidden_mlp_severed", 1))
    assert len(seen) > 2
    assert all(torch.equal(noised, seen[0]) for noised in seen)


def test_a_case_does_not_depend_on_its_company(
    llama: LanguageModel, engine: ReferenceEngine
) -> None:
    others = [known_case(llama, 4, 9, 0, 2), CASE, known_case(llama, 5, 5, 2, 5)]
    together = {case.index: baseline for case, baseline in engine.baseline(others)}
    assert (together[CASE.index].corrupted["probability"] == corrupted(engine)).all()


def test_float64_agrees_to_its_own_rounding() -> None:
    """Noise shrinks, bugs do not: float32 differs from float64 by float32 rounding alone."""
    narrow = language_model(micro_llama())
    wide = language_model(micro_llama().double())
    mediator = make_mediator("mlp", 3)
    difference = np.abs(
        restored(ReferenceEngine(narrow, NOISE), mediator)
        - restored(ReferenceEngine(wide, NOISE), mediator)
    )
    assert 0 < difference.max() < 1e-5


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


def test_hooks_are_gone_after_an_exception(llama: LanguageModel) -> None:
    bad = replace(CASE, input_ids=(*CASE.input_ids[:-1], 10**6))
    with pytest.raises(IndexError):
        corrupted(ReferenceEngine(llama, NOISE), bad)
    modules = llama.model.modules()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)
    assert torch.is_inference_mode_enabled() is False
