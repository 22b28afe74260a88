"""What is scored of a run: every metric, from logits where the answer's tokens are predicted.

Metrics are defined with `ktrace.terms.Metric`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ktrace.tracing.engine import Case, Foils
from ktrace.tracing.noise import parting


@dataclass(frozen=True)
class Targets:
    """What the logits of some facts are scored against.

    Attributes:
        answers: token ids, `(n_facts, n_answer)`.
        last: of each fact, every token that is right in its answer's last place.
        foils: token ids, `(n_facts, n_samples, n_answer)`.
        clean: probabilities of the clean run, `(n_facts, n_answer, vocabulary)`.
        clean_entropy: of those, in nats, `(n_facts, n_answer)`.
    """

    answers: torch.Tensor
    last: Sequence[tuple[int, ...]]
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
        named_foils: foils of a case, or None for what the corrupted run finds most probable and
            no right answer has there.
    """
    device = clean_logits.device
    answers = torch.tensor([case.answer_ids for case in group], device=device)
    mean = _widened(corrupted_logits).softmax(dim=-1).mean(dim=1)
    wrong = mean.scatter(-1, answers[..., None], -1.0)
    for number, case in enumerate(group):
        for ids in case.also:
            place = parting(case.answer_ids, ids)
            assert place is not None  # of right answers none begins another
            wrong[number, place, ids[place]] = -1.0
    likely = wrong.argmax(dim=-1)
    foils = likely[:, None].repeat(1, corrupted_logits.shape[1], 1)
    for number, case in enumerate(group):
        known = named_foils(case) if case.baseline is None else case.baseline.foil_ids
        if known is not None:
            foils[number] = torch.tensor(known, device=device)
    log_clean = _widened(clean_logits).log_softmax(dim=-1)
    clean = log_clean.exp()
    last = [case.last_ids for case in group]
    return Targets(answers, last, foils, clean, -(clean * log_clean).sum(dim=-1))


def score(logits: torch.Tensor, targets: Targets) -> dict[str, torch.Tensor]:
    """Every metric from logits where the answer's tokens are predicted.

    Softmax is taken in float32, or in float64 when the model computes in it.

    Args:
        logits: `(n, n_facts, n_samples, n_answer, vocabulary)`; one sample stands for all, where
            their runs are the same.
        targets: of those facts.

    Returns:
        `(n, n_facts, n_samples)` for each of `METRICS`.
    """
    wide = _widened(logits)
    shape = wide.shape[:-1]
    answers = targets.answers[None, :, None].expand(shape)
    foils = targets.foils[None].expand(len(wide), -1, -1, -1)
    log_probability = -torch.nn.functional.cross_entropy(
        wide.reshape(-1, wide.shape[-1]), answers.reshape(-1), reduction="none"
    ).reshape(shape)
    logit = wide.gather(-1, answers[..., None])[..., 0]
    # Foils may differ where runs do not.
    of_samples = wide.expand(-1, -1, foils.shape[2], -1, -1)
    foil_logit = of_samples.gather(-1, foils[..., None])[..., 0]
    # KL(clean || run) = sum of clean * (log clean - logits) + log of the run's normaliser.
    expected_logit = torch.stack(
        [
            torch.stack([wide[:, n, :, token] @ p for token, p in enumerate(by_token)], dim=-1)
            for n, by_token in enumerate(targets.clean)
        ],
        dim=1,
    )
    normaliser = logit - log_probability
    for number, ids in enumerate(targets.last):
        if len(ids) > 1:
            right = wide[:, number, :, -1, list(ids)].logsumexp(dim=-1)
            log_probability[:, number, :, -1] = right - normaliser[:, number, :, -1]
    by_token = {
        "log_probability": log_probability,
        "logit": logit,
        "logit_difference": logit - foil_logit,
        "kl": normaliser - expected_logit - targets.clean_entropy[None, :, None],
    }
    sums = {
        metric: values.sum(dim=-1).expand(foils.shape[:3]) for metric, values in by_token.items()
    }
    return {"probability": sums["log_probability"].exp(), **sums}


def _widened(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
