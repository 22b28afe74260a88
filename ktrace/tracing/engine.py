"""What an engine is: from cases to scores."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ktrace.facts import Span
from ktrace.tracing.mediators import Mediator

# One array for each metric.
Scores = dict[str, npt.NDArray[np.float64]]

# What is scored at the last position, of the answer token unless said otherwise:
#   probability       unitless, in [0, 1]
#   log_probability   natural logarithm
#   logit             before softmax
#   logit_difference  the answer's logit minus the foil's; the foil is the token, other than the
#                     answer, that the corrupted run finds most probable (mean over samples)
#   kl                Kullback-Leibler divergence from the clean run's distribution, in nats
METRICS = ("probability", "log_probability", "logit", "logit_difference", "kl")


@dataclass(frozen=True)
class Case:
    """A fact as an engine needs it.

    Attributes:
        index: the fact's row in its dataset.
        input_ids: the prompt's token ids.
        span: positions of the subject.
        answer_id: the token whose probability is scored at the last position.
    """

    index: int
    input_ids: tuple[int, ...]
    span: Span
    answer_id: int


@dataclass(frozen=True)
class Baseline:
    """A fact without restoration.

    Attributes:
        clean: scores of the clean run, one number for each metric.
        corrupted: scores of the corrupted run, `(n_samples,)` for each metric.
        foil_id: the token of `logit_difference`.
    """

    clean: dict[str, float]
    corrupted: Scores
    foil_id: int


class Engine(Protocol):
    """Computes the scores of corrupted runs, with and without restoration.

    Work goes by groups of cases. The groups follow from the cases alone, so that a run that was
    interrupted meets the same groups again, and the same bits. Every engine gives the reference
    engine's numbers, to rounding.
    """

    def groups(self, cases: Iterable[Case]) -> list[list[Case]]:
        """Cut cases into groups that `baseline` and `restored` take."""
        ...

    def baseline(self, group: Sequence[Case]) -> Iterator[tuple[Case, Baseline]]:
        """Scores of the clean run and of the corrupted run."""
        ...

    def restored(
        self, group: Sequence[Case], mediators: Sequence[Mediator]
    ) -> Iterator[tuple[Case, Mapping[str, Scores]]]:
        """Scores of the corrupted-with-restoration run, by mediator key.

        `(n_samples, n_layers, n_positions)` for each metric. Positions before the subject hold the
        corrupted run's scores: the noise does not reach them, so restoring them changes nothing.
        """
        ...


@dataclass(frozen=True)
class Targets:
    """What the logits of some facts are scored against.

    Attributes:
        answers: token ids, `(n_facts,)`.
        foils: token ids, `(n_facts,)`.
        clean: probabilities of the clean run, `(n_facts, vocabulary)`.
        clean_entropy: of those, in nats, `(n_facts,)`.
    """

    answers: torch.Tensor
    foils: torch.Tensor
    clean: torch.Tensor
    clean_entropy: torch.Tensor


def make_targets(
    answers: torch.Tensor, clean_logits: torch.Tensor, corrupted_logits: torch.Tensor
) -> Targets:
    """What to score against.

    Args:
        answers: token ids, `(n_facts,)`.
        clean_logits: `(n_facts, vocabulary)`.
        corrupted_logits: `(n_facts, n_samples, vocabulary)`.
    """
    mean = _widened(corrupted_logits).softmax(dim=-1).mean(dim=1)
    foils = mean.scatter(1, answers[:, None], -1.0).argmax(dim=-1)
    log_clean = _widened(clean_logits).log_softmax(dim=-1)
    clean = log_clean.exp()
    return Targets(answers, foils, clean, -(clean * log_clean).sum(dim=-1))


def score(logits: torch.Tensor, targets: Targets) -> dict[str, torch.Tensor]:
    """Every metric from logits at the last position.

    Softmax is taken in float32, or in float64 when the model computes in it.

    Args:
        logits: `(n, n_facts, n_samples, vocabulary)`.
        targets: of those facts.

    Returns:
        `(n, n_facts, n_samples)` for each of `METRICS`.
    """
    wide = _widened(logits)
    shape = wide.shape[:-1]
    answers = targets.answers[None, :, None].expand(shape)
    foils = targets.foils[None, :, None].expand(shape)
    log_probability = -torch.nn.functional.cross_entropy(
        wide.reshape(-1, wide.shape[-1]), answers.reshape(-1), reduction="none"
    ).reshape(shape)
    logit = wide.gather(-1, answers[..., None])[..., 0]
    foil_logit = wide.gather(-1, foils[..., None])[..., 0]
    # KL(clean || run) = sum of clean * (log clean - logits) + log of the run's normaliser.
    expected_logit = torch.stack([wide[:, n] @ p for n, p in enumerate(targets.clean)], dim=1)
    normaliser = logit - log_probability
    return {
        "probability": log_probability.exp(),
        "log_probability": log_probability,
        "logit": logit,
        "logit_difference": logit - foil_logit,
        "kl": normaliser - expected_logit - targets.clean_entropy[None, :, None],
    }


def _widened(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
