"""A noise from its config, measured on the subjects of a dataset."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ktrace.config import DatasetConfig, Foil, NoiseConfig, NoiseKind
from ktrace.facts import Fact, FactSet, Span
from ktrace.lm.memory import within_memory
from ktrace.lm.model import LanguageModel
from ktrace.lm.tokens import EncodedPrompt, subject_token_ids
from ktrace.tracing.checks import require_known
from ktrace.tracing.encode import Encoder
from ktrace.tracing.encoded import EncodedFact
from ktrace.tracing.noise import (
    ConstantNoise,
    Draw,
    Noise,
    Partner,
    PromptPair,
    RandomNoise,
    TokenReplacement,
    normal,
    parting,
    student_t,
    uniform,
)

log = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Subject:
    """A subject as the noise needs it.

    Attributes:
        alone: token ids of the subject on its own, without special tokens.
        in_prompt: token ids that it has in its prompt.
        text: the subject.
        relation: of its fact.
        answer_ids: tokens that are scored of its fact's answer: none where it has no token.
        also: the same of its other right answers.
    """

    alone: tuple[int, ...]
    in_prompt: tuple[int, ...]
    text: str
    relation: str
    answer_ids: tuple[int, ...]
    also: tuple[tuple[int, ...], ...] = ()

    def answers_otherwise(self, other: "Subject") -> bool:
        """Whether all right answers differ: none begins another, and so none lacks tokens."""
        pairs = product((self.answer_ids, *self.also), (other.answer_ids, *other.also))
        return all(parting(mine, theirs) is not None for mine, theirs in pairs)


@torch.inference_mode()
def embed(lm: LanguageModel, token_ids: Sequence[int]) -> torch.Tensor:
    """Embeddings where the noise is injected: what the module gives, scaled if it scales.

    Returns:
        `(n_tokens, d)`.
    """
    embedding = lm.model.get_submodule(lm.paths.embedding)
    embeddings: torch.Tensor = embedding(torch.tensor(token_ids, device=lm.device))
    return embeddings.detach()  # a hook of who trains the model may ask for gradients here


def spread(embeddings: Array) -> float:
    """Sigma: their standard deviation over all elements (ROME, section 2.1; unbiased)."""
    return float(embeddings.std(ddof=1))


def covariance_root(embeddings: Array) -> Array:
    """A matrix `(rank, d)` that turns standard normal rows into rows with their covariance."""
    centred = embeddings - embeddings.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    return np.asarray(singular[:, None] * directions / np.sqrt(len(embeddings) - 1))


def partners_of(subjects: Sequence[Subject], among: Sequence[Subject]) -> dict[int, list[Partner]]:
    """For each fact, the subjects of its relation and length that have another answer, each once.

    Answers are told apart by the tokens that are scored: where one begins the other, the corrupted
    run would go on to predict the answer, or a part of it. A fact without a relation takes its
    partners from every relation. Of several facts with the same subject the first counts.
    """
    pools: dict[int, list[Subject]] = {}
    for subject in among:
        pools.setdefault(len(subject.in_prompt), []).append(subject)
    partners: dict[int, list[Partner]] = {}
    for index, subject in enumerate(subjects):
        found: dict[tuple[int, ...], Partner] = {}
        for other in pools.get(len(subject.in_prompt), ()):
            if (
                subject.relation in ("", other.relation)
                and other.text != subject.text
                and other.in_prompt != subject.in_prompt
                and subject.answers_otherwise(other)
            ):
                found.setdefault(other.in_prompt, Partner(other.in_prompt, other.answer_ids))
        partners[index] = list(found.values())
    return partners


@dataclass(frozen=True)
class MeasuredNoise:
    """A noise with the numbers that it rests on.

    Attributes:
        noise: what corrupts.
        sigma: standard deviation of the subjects' embeddings; NaN for `pair`, which corrupts none.
        level: what draws were multiplied with; NaN for kinds without a level.
        unusable: cases that this noise cannot corrupt, and why.
        n_facts: how many facts' subjects sigma was measured on.
        n_tokens: how many tokens these have.
    """

    noise: Noise
    sigma: float
    level: float
    unusable: Mapping[int, str]
    n_facts: int
    n_tokens: int


NO_PARTNER = "no other subject of its relation and length has another answer"
FEW_PARTNERS = (
    "fewer than noise.samples={samples} other subjects of its relation and length "
    "have another answer"
)


@dataclass(frozen=True)
class Measurement:
    """What a noise may rest on.

    Attributes:
        lm: the model.
        config: what was asked for.
        subjects: one for each row of the dataset, also of those that are no candidates: a fact's
            noise must not depend on `dataset.limit`.
        measured_on: the subjects that sigma, mean and covariance are of, and that may stand in for
            another.
        embeddings: of their tokens, `(n_tokens, d)`.
        sigma: the standard deviation of these.
    """

    lm: LanguageModel
    config: NoiseConfig
    subjects: Sequence[Subject]
    measured_on: Sequence[Subject]
    embeddings: Array
    sigma: float

    @property
    def level(self) -> float:
        """What draws of scale one are multiplied with."""
        config = self.config
        return config.level_multiple * self.sigma if config.std is None else config.std


class Made(NamedTuple):
    """A noise, and what its maker knows of it; see `MeasuredNoise`."""

    noise: Noise
    level: float = float("nan")
    unusable: Mapping[int, str] = {}


Maker = Callable[[Measurement], Made]


def _drawn(distribution: Callable[[NoiseConfig], Draw]) -> Maker:
    """Independent draws of one distribution."""

    def make(found: Measurement) -> Made:
        config, level = found.config, found.level
        draw = distribution(config)
        return Made(RandomNoise(level, config.samples, config.seed, draw, config.replace), level)

    return make


def _multivariate(found: Measurement) -> Made:
    config = found.config
    multiple = config.level_multiple
    noise = RandomNoise(
        multiple * covariance_root(found.embeddings),
        config.samples,
        config.seed,
        normal,
        config.replace,
        found.embeddings.mean(axis=0),
    )
    return Made(noise, multiple * found.sigma)


def _token_replacement(found: Measurement) -> Made:
    config = found.config
    partners = partners_of(found.subjects, found.measured_on)
    used = sorted({t for pool in partners.values() for partner in pool for t in partner.ids})
    table = dict(zip(used, embed(found.lm, used), strict=True)) if used else {}
    noise = TokenReplacement(
        table, partners, config.samples, config.seed, compared=config.foil is Foil.replacement
    )
    few = FEW_PARTNERS.format(samples=config.samples)
    unusable = {
        index: few if pool else NO_PARTNER
        for index, pool in partners.items()
        if len(pool) < config.samples
    }
    return Made(noise, unusable=unusable)


def pair_noise(config: NoiseConfig, encoded: Sequence[EncodedFact]) -> MeasuredNoise:
    """The noise of pairs of prompts, which rests on no measurement: sigma and level are NaN.

    Args:
        config: the keys `noise.*`.
        encoded: every fact of the dataset, with its pair.
    """
    pairs = {index: own.pair for index, own in enumerate(encoded) if own.pair is not None}
    unusable = {index: pair.problem for index, pair in pairs.items() if pair.problem}
    given: dict[int, tuple[int, ...]] = {}
    if config.foil is Foil.given:
        refused = {i: p.foil_problem for i, p in pairs.items() if p.foil_problem}
        unusable = refused | unusable
        given = {index: pair.foil_ids for index, pair in pairs.items() if pair.foil_ids}
        lacking = len(pairs.keys() - unusable.keys() - given.keys())
        if lacking:
            log.info(
                "%d of %d pairs have no foil: logit_difference compares their answers with what "
                "the corrupted run finds most probable",
                lacking,
                len(pairs) - len(unusable),
            )
    nan = float("nan")
    return MeasuredNoise(PromptPair(given), nan, nan, unusable, n_facts=0, n_tokens=0)


# A kind of noise that is measured is an entry here, and one of `NOISE_KEYS`
# (ktrace/config/noise.py).
MAKERS: Mapping[NoiseKind, Maker] = {
    NoiseKind.gaussian: _drawn(lambda config: normal),
    NoiseKind.uniform: _drawn(lambda config: uniform),
    NoiseKind.student_t: _drawn(lambda config: student_t(config.degrees)),
    NoiseKind.multivariate: _multivariate,
    NoiseKind.zero: lambda found: Made(ConstantNoise(np.zeros(found.lm.d_embedding))),
    NoiseKind.mean: lambda found: Made(ConstantNoise(found.embeddings.mean(axis=0))),
    NoiseKind.token_replacement: _token_replacement,
}


@within_memory("while the noise is measured")
def make_noise(
    config: NoiseConfig,
    lm: LanguageModel,
    subjects: Sequence[Subject],
    measured_on: Sequence[Subject] | None = None,
) -> MeasuredNoise:
    """Make a noise, measured on every subject of a dataset.

    Args:
        config: the keys `noise.*`.
        lm: the model.
        subjects: see `Measurement`.
        measured_on: see `Measurement`; None for `subjects`.
    """
    measured_on = subjects if measured_on is None else measured_on
    tokens = [token for subject in measured_on for token in subject.alone]
    # Widened on the CPU: not every device has float64.
    embeddings = np.asarray(embed(lm, tokens).cpu().double().numpy())
    sigma = spread(embeddings)
    made = MAKERS[config.kind](Measurement(lm, config, subjects, measured_on, embeddings, sigma))
    return MeasuredNoise(
        made.noise, sigma, made.level, made.unusable, len(measured_on), len(tokens)
    )


def measured_noise(
    lm: LanguageModel,
    config: NoiseConfig,
    facts: FactSet,
    encoded: Sequence[EncodedFact],
    dataset: DatasetConfig,
    noise_facts: FactSet | None = None,
) -> MeasuredNoise:
    """The noise of a config, measured on every subject of a dataset.

    Args:
        lm: the model.
        config: the keys `noise.*`.
        facts: the whole dataset, so that `dataset.limit` does not change a fact's numbers.
        encoded: the same.
        dataset: the keys `dataset.*`, by which it was encoded.
        noise_facts: what the noise is measured on and takes partners from; None for `facts`.
    """
    if config.kind is NoiseKind.pair:
        return pair_noise(config, encoded)
    subjects = [
        replace(_subject(lm, fact, own.prompt, own.span), answer_ids=own.answer_ids, also=own.also)
        for fact, own in zip(facts.facts, encoded, strict=True)
    ]
    if noise_facts is None:
        return make_noise(config, lm, subjects)
    encoder = Encoder(lm, dataset)
    measured_on = []
    for fact in noise_facts.facts:
        if config.kind is NoiseKind.token_replacement:  # which alone asks for their answers
            own = encoder.encoded(fact)
            subject = _subject(lm, fact, own.prompt, own.span)
            measured_on.append(replace(subject, answer_ids=own.answer_ids, also=own.also))
        else:
            measured_on.append(_subject(lm, fact, *encoder.located(fact)))
    return make_noise(config, lm, subjects, measured_on)


def _subject(lm: LanguageModel, fact: Fact, prompt: EncodedPrompt, span: Span) -> Subject:
    """Without its answers."""
    alone = subject_token_ids(lm.tokenizer, fact.subject)
    require_known(lm, fact, alone)
    in_prompt = prompt.input_ids[span.start : span.stop]
    return Subject(alone, in_prompt, fact.subject, fact.relation_id, ())
