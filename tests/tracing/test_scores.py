"""Each metric against its definition, computed here with numpy alone."""

import numpy as np
import pytest
import torch

from ktrace.facts import Span
from ktrace.tracing.engine import Baseline, Case
from ktrace.tracing.scores import make_targets, score

GENERATOR = np.random.default_rng(0)
# (facts, answer tokens, vocabulary), (facts, samples, ...) and (runs, facts, samples, ...)
CLEAN = GENERATOR.normal(size=(2, 2, 7))
CORRUPTED = GENERATOR.normal(size=(2, 3, 2, 7))
RUN = GENERATOR.normal(size=(4, 2, 3, 2, 7))
ANSWERS = np.array([[1, 4], [6, 6]])


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits)
    return powers / powers.sum(axis=-1, keepdims=True)


def unnamed(case: Case) -> None:
    """Most noises name no foil."""


@pytest.fixture(params=[1, 2], ids=["one-token", "two-tokens"])
def n_answer(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def found(n_answer: int) -> dict[str, np.ndarray]:
    group = [
        Case(number, (2, 3), Span(0, 1), tuple(ids[:n_answer]))
        for number, ids in enumerate(ANSWERS.tolist())
    ]
    clean, corrupted, run = (
        torch.from_numpy(logits[..., :n_answer, :]) for logits in (CLEAN, CORRUPTED, RUN)
    )
    scores = score(run, make_targets(group, clean, corrupted, unnamed))
    return {metric: values.numpy() for metric, values in scores.items()}


def of_tokens(values: np.ndarray, tokens: np.ndarray, n_answer: int) -> np.ndarray:
    """`(runs, facts, samples, n_answer)`: each fact's and answer position's own token."""
    chosen = np.empty((*values.shape[:3], n_answer))
    for fact in range(2):
        for place in range(n_answer):
            chosen[:, fact, :, place] = values[:, fact, :, place, tokens[fact, place]]
    return chosen


def test_probability_log_probability_and_logit(found: dict[str, np.ndarray], n_answer: int) -> None:
    by_token = of_tokens(softmax(RUN), ANSWERS, n_answer)
    np.testing.assert_allclose(found["probability"], by_token.prod(axis=-1))
    np.testing.assert_allclose(found["log_probability"], np.log(by_token).sum(axis=-1))
    np.testing.assert_allclose(found["logit"], of_tokens(RUN, ANSWERS, n_answer).sum(axis=-1))


def test_logit_difference_is_to_the_corrupted_runs_favourite(
    found: dict[str, np.ndarray], n_answer: int
) -> None:
    mean = softmax(CORRUPTED).mean(axis=1)
    for fact, place in np.ndindex(2, 2):
        mean[fact, place, ANSWERS[fact, place]] = 0  # the answer is never its own foil
    foils = mean.argmax(axis=-1)
    expected = of_tokens(RUN, ANSWERS, n_answer) - of_tokens(RUN, foils, n_answer)
    np.testing.assert_allclose(found["logit_difference"], expected.sum(axis=-1))


def test_kl_is_from_the_clean_run(found: dict[str, np.ndarray], n_answer: int) -> None:
    clean = softmax(CLEAN)[None, :, None]
    by_token = (clean * (np.log(clean) - np.log(softmax(RUN)))).sum(axis=-1)
    expected = by_token[..., :n_answer].sum(axis=-1)
    np.testing.assert_allclose(found["kl"], expected, atol=1e-12)
    assert (expected > 0).all()


def test_a_known_foil_is_kept() -> None:
    """Also where this corrupted run would choose another."""
    known = Baseline({}, {}, foil_ids=((3,), (4,)))
    case = Case(0, (2, 3), Span(0, 1), (1,), known)
    logits = torch.zeros(1, 2, 1, 7)
    targets = make_targets([case], logits[:, 0], logits, lambda case: [(5,), (6,)])
    assert targets.foils.tolist() == [[[3], [4]]]


def test_a_named_foil_is_each_samples_own() -> None:
    """The clean run of a sample is compared with that sample's foil, too."""
    case = Case(0, (2, 3), Span(0, 1), (1, 6))
    named = [(1, 2), (5, 6), (0, 6)]  # of each sample, (answer token,)
    clean, corrupted = torch.from_numpy(CLEAN[:1]), torch.from_numpy(CORRUPTED[:1])
    targets = make_targets([case], clean, corrupted, lambda case: named)
    for logits in (corrupted, clean[:, None].expand(-1, 3, -1, -1)):
        [found] = score(logits[None], targets)["logit_difference"][0].numpy()
        of_sample = logits[0].numpy()
        expected = [
            of_sample[sample, 0, 1]
            - of_sample[sample, 0, first]
            + of_sample[sample, 1, 6]
            - of_sample[sample, 1, second]
            for sample, (first, second) in enumerate(named)
        ]
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_softmax_is_taken_in_float32() -> None:
    logits = torch.tensor([[[[[8.0, 7.96875, 0.0]]]]], dtype=torch.bfloat16)
    targets = make_targets([Case(0, (2, 3), Span(0, 1), (0,))], logits[0, 0], logits[0], unnamed)
    expected = softmax(logits.double().numpy())[0, 0, 0, 0, 0]
    assert score(logits, targets)["probability"].item() == pytest.approx(expected, rel=1e-6)
