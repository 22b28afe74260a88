"""What an engine is: from cases to scores."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ktrace.facts import Span
from ktrace.tracing.mediators import Mediator

# One array for each metric.
Scores = dict[str, npt.NDArray[np.float64]]
# Of one fact: for each sample, a token for each token of the answer.
Foils = Sequence[tuple[int, ...]]


class Shape(NamedTuple):
    """What cases must have in common to share a batch.

    Attributes:
        n_positions: tokens of the prompt.
        start: first position of the subject.
        n_answer: tokens of the answer.
    """

    n_positions: int
    start: int
    n_answer: int = 1


@dataclass(frozen=True)
class Baseline:
    """A fact without restoration.

    Attributes:
        clean: scores of the clean run, `(n_samples,)` for each metric: what a sample's scores are
            compared with. All alike, but for `logit_difference` where each sample has its own foil.
        corrupted: scores of the corrupted run, `(n_samples,)` for each metric.
        foil_ids: the tokens of `logit_difference`, for each sample one for each token of the
            answer.
    """

    clean: Scores
    corrupted: Scores
    foil_ids: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Case:
    """A fact as an engine needs it.

    Attributes:
        index: the fact's row in its dataset.
        input_ids: the prompt's token ids.
        span: positions of the subject.
        answer_ids: the tokens whose probability is scored after the prompt.
        baseline: where the fact has been run without restoration before. `Engine.restored` then
            gives these very scores where restoring changes nothing, and takes the same foil.
    """

    index: int
    input_ids: tuple[int, ...]
    span: Span
    answer_ids: tuple[int, ...]
    baseline: Baseline | None = None

    @property
    def shape(self) -> Shape:
        """What a batch has in common."""
        return Shape(len(self.input_ids), self.span.start, len(self.answer_ids))

    @property
    def forced_ids(self) -> tuple[int, ...]:
        """What the model reads: the prompt, and the answer without its last token."""
        return self.input_ids + self.answer_ids[:-1]


class Engine(Protocol):
    """Computes the scores of corrupted runs, with and without restoration.

    Cases of one shape may go through it together, as a group; whoever cuts the groups asks how
    many (ktrace/tracing/groups.py). Every engine gives the reference engine's numbers, to rounding.
    """

    def cases_together(self, shape: Shape) -> int:
        """Most cases of this shape that are worth one batch."""
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
        answers: token ids, `(n_facts, n_answer)`.
        foils: token ids, `(n_facts, n_samples, n_answer)`.
        clean: probabilities of the clean run, `(n_facts, n_answer, vocabulary)`.
        clean_entropy: of those, in nats, `(n_facts, n_answer)`.
    """

    answers: torch.Tensor
    foils: torch.Tensor
    clean: torch.Tensor
    clean_entropy: torch.Tensor


def make_targets(
    group: Sequence[Case],
    clean_logits: torch.Tensor,
    corrupted_logits: torch.Tensor,
    named_foils: Callable[[Case], Foils | None],
) -> Targets:
    """What to score against.

    Args:
        group: `n_facts` cases; those with a baseline keep its foils.
        clean_logits: `(n_facts, n_answer, vocabulary)`.
        corrupted_logits: `(n_facts, n_samples, n_answer, vocabulary)`.
        named_foils: foils of a case, or None for what the corrupted run finds most probable.
    """
    device = clean_logits.device
    answers = torch.tensor([case.answer_ids for case in group], device=device)
    mean = _widened(corrupted_logits).softmax(dim=-1).mean(dim=1)
    likely = mean.scatter(-1, answers[..., None], -1.0).argmax(dim=-1)
    foils = likely[:, None].repeat(1, corrupted_logits.shape[1], 1)
    for number, case in enumerate(group):
        known = named_foils(case) if case.baseline is None else case.baseline.foil_ids
        if known is not None:
            foils[number] = torch.tensor(known, device=device)
    log_clean = _widened(clean_logits).log_softmax(dim=-1)
    clean = log_clean.exp()
    return Targets(answers, foils, clean, -(clean * log_clean).sum(dim=-1))


def score(logits: torch.Tensor, targets: Targets) -> dict[str, torch.Tensor]:
    """Every metric from logits where the answer's tokens are predicted.

    Softmax is taken in float32, or in float64 when the model computes in it.

    Args:
        logits: `(n, n_facts, n_samples, n_answer, vocabulary)`.
        targets: of those facts.

    Returns:
        `(n, n_facts, n_samples)` for each of `METRICS`.
    """
    wide = _widened(logits)
    shape = wide.shape[:-1]
    answers = targets.answers[None, :, None].expand(shape)
    foils = targets.foils[None].expand(shape)
    log_probability = -torch.nn.functional.cross_entropy(
        wide.reshape(-1, wide.shape[-1]), answers.reshape(-1), reduction="none"
    ).reshape(shape)
    logit = wide.gather(-1, answers[..., None])[..., 0]
    foil_logit = wide.gather(-1, foils[..., None])[..., 0]
    # KL(clean || run) = sum of clean * (log clean - logits) + log of the run's normaliser.
    expected_logit = torch.stack(
        [
            torch.stack([wide[:, n, :, token] @ p for token, p in enumerate(by_token)], dim=-1)
            for n, by_token in enumerate(targets.clean)
        ],
        dim=1,
    )
    normaliser = logit - log_probability
    by_token = {
        "log_probability": log_probability,
        "logit": logit,
        "logit_difference": logit - foil_logit,
        "kl": normaliser - expected_logit - targets.clean_entropy[None, :, None],
    }
    sums = {metric: values.sum(dim=-1) for metric, values in by_token.items()}
    return {"probability": sums["log_probability"].exp(), **sums}


def _widened(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
