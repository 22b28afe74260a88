"""Each metric against its definition, computed here with numpy alone."""

import numpy as np
import pytest
import torch
from conftest import known_case

from ktrace.lm.load import LanguageModel
from ktrace.store import METRICS as STORED_METRICS
from ktrace.tracing.engine import METRICS, make_targets, score
from ktrace.tracing.noise import RandomNoise
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.suffix import SuffixEngine

GENERATOR = np.random.default_rng(0)
CLEAN = GENERATOR.normal(size=(2, 7))
CORRUPTED = GENERATOR.normal(size=(2, 3, 7))
RUN = GENERATOR.normal(size=(4, 2, 3, 7))
ANSWERS = np.array([1, 6])


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits)
    return powers / powers.sum(axis=-1, keepdims=True)


@pytest.fixture
def found() -> dict[str, np.ndarray]:
    targets = make_targets(
        torch.tensor(ANSWERS), torch.from_numpy(CLEAN), torch.from_numpy(CORRUPTED)
    )
    return {m: v.numpy() for m, v in score(torch.from_numpy(RUN), targets).items()}


def of_answers(values: np.ndarray) -> np.ndarray:
    return np.stack([values[:, n, :, answer] for n, answer in enumerate(ANSWERS)], axis=1)


def test_the_store_holds_every_metric() -> None:
    assert STORED_METRICS == METRICS


def test_probability_log_probability_and_logit(found: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(found["probability"], of_answers(softmax(RUN)))
    np.testing.assert_allclose(found["log_probability"], np.log(of_answers(softmax(RUN))))
    np.testing.assert_allclose(found["logit"], of_answers(RUN))


def test_logit_difference_is_to_the_corrupted_runs_favourite(found: dict[str, np.ndarray]) -> None:
    mean = softmax(CORRUPTED).mean(axis=1)
    for number, answer in enumerate(ANSWERS):
        mean[number, answer] = 0  # the answer is never its own foil
    foils = mean.argmax(axis=1)
    to_foil = np.stack([RUN[:, n, :, foil] for n, foil in enumerate(foils)], axis=1)
    np.testing.assert_allclose(found["logit_difference"], of_answers(RUN) - to_foil)


def test_kl_is_from_the_clean_run(found: dict[str, np.ndarray]) -> None:
    clean = softmax(CLEAN)[None, :, None]
    expected = (clean * (np.log(clean) - np.log(softmax(RUN)))).sum(axis=-1)
    np.testing.assert_allclose(found["kl"], expected, atol=1e-12)
    assert (expected > 0).all()


def test_softmax_is_taken_in_float32() -> None:
    logits = torch.tensor([[[[8.0, 7.96875, 0.0]]]], dtype=torch.bfloat16)
    targets = make_targets(torch.tensor([0]), logits[0, 0], logits[0])
    expected = softmax(logits.double().numpy())[0, 0, 0, 0]
    assert score(logits, targets)["probability"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("make", [ReferenceEngine, SuffixEngine])
def test_the_clean_run_is_its_own_baseline(
    llama: LanguageModel, make: type[ReferenceEngine | SuffixEngine]
) -> None:
    case = known_case(llama, 3)
    [(_, baseline)] = make(llama, RandomNoise(1.0, samples=2)).baseline([case])
    assert baseline.clean["kl"] == pytest.approx(0, abs=1e-5)
    assert baseline.clean["probability"] == pytest.approx(np.exp(baseline.clean["log_probability"]))
    assert baseline.foil_id != case.answer_id
    assert (baseline.corrupted["kl"] > 0.01).any()
