"""Noise is data: drawn once for each (fact, sample), the same in every pass over the fact.

A noise says what stands in place of the embeddings of a subject's tokens. Every kind is a pure
function of the case and of the clean embeddings: any pass, engine or order meets the same tensor.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ktrace.errors import KtraceError
from ktrace.lm.load import LanguageModel
from ktrace.tracing.engine import Case, Foils

Array = npt.NDArray[np.float64]


class Noise(Protocol):
    """What corrupts the embeddings of a subject's tokens."""

    @property
    def samples(self) -> int:
        """Number of corrupted rows for each fact."""
        ...

    def corrupt(self, case: Case, embeddings: torch.Tensor) -> torch.Tensor:
        """The corrupted embeddings of a subject.

        Args:
            case: the fact.
            embeddings: the clean ones, `(n_subject, d)`, as the embedding module gives them.

        Returns:
            `(n_samples, n_subject, d)`, in the same dtype; the same at every call.
        """
        ...

    def foils(self, case: Case) -> Foils | None:
        """What `logit_difference` compares the answer with, where the noise says.

        Returns:
            For each sample, a token for each token of the answer; None for what the corrupted run
            finds most probable.
        """
        ...


# From a generator and a shape to independent draws of scale one.
Draw = Callable[[np.random.RandomState, tuple[int, ...]], Array]


def normal(generator: np.random.RandomState, shape: tuple[int, ...]) -> Array:
    """Standard normal: `RandomState.randn`, as published."""
    return generator.randn(*shape)


def uniform(generator: np.random.RandomState, shape: tuple[int, ...]) -> Array:
    """Uniform on [-1, 1], as published: its standard deviation is 1/√3."""
    return generator.uniform(-1, 1, shape)


def student_t(degrees: float) -> Draw:
    """Student's t with so many degrees of freedom: as normal, with heavier tails."""
    return lambda generator, shape: generator.standard_t(degrees, shape)


@dataclass(frozen=True)
class RandomNoise:
    """Random draws, added to the embeddings or in their place.

    The generator is made afresh for each fact from the seed, as published: a fact's noise depends
    on its subject's length alone, never on which facts came before it.

    Attributes:
        scale: what a draw is multiplied with: a number, or the root of a covariance `(rank, d)`,
            for which `rank` numbers are drawn for each token.
        samples: draws for each fact.
        seed: of the generator.
        draw: distribution of scale one.
        replace: whether the draw stands in place of the embedding.
        mean: added to a draw that replaces, `(d,)`.
    """

    scale: float | Array
    samples: int = 10
    seed: int = 1
    draw: Draw = normal
    replace: bool = False
    mean: Array | None = None

    def corrupt(self, case: Case, embeddings: torch.Tensor) -> torch.Tensor:
        """See `Noise.corrupt`. Rounds once, to the embeddings' dtype."""
        drawn = self.draws(*embeddings.shape)
        if self.replace:
            if self.mean is not None:
                drawn = drawn + self.mean
            return _like(drawn, embeddings, embeddings.dtype)
        wide = torch.promote_types(embeddings.dtype, torch.float32)
        return (embeddings.to(wide) + _like(drawn, embeddings, wide)).to(embeddings.dtype)

    def foils(self, case: Case) -> None:
        """See `Noise.foils`: a draw has no answer of its own."""

    def draws(self, n_subject: int, width: int) -> Array:
        """The numbers of one fact, `(n_samples, n_subject, width)`."""
        generator = np.random.RandomState(self.seed)
        if isinstance(self.scale, np.ndarray):
            unit = self.draw(generator, (self.samples, n_subject, len(self.scale)))
            return np.asarray(unit @ self.scale)
        return self.scale * self.draw(generator, (self.samples, n_subject, width))


@dataclass(frozen=True)
class ConstantNoise:
    """One vector in place of every subject embedding: zero, or the mean over subjects."""

    value: Array  # (d,)

    @property
    def samples(self) -> int:
        """Nothing is random."""
        return 1

    def corrupt(self, case: Case, embeddings: torch.Tensor) -> torch.Tensor:
        """See `Noise.corrupt`."""
        value = _like(self.value, embeddings, embeddings.dtype)
        return value.expand(1, *embeddings.shape)

    def foils(self, case: Case) -> None:
        """See `Noise.foils`: a constant has no answer of its own."""


@dataclass(frozen=True)
class Partner:
    """A subject that may stand in for another.

    Attributes:
        ids: its token ids, as in its prompt.
        answer_ids: tokens that are scored of its fact's answer.
    """

    ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


@dataclass(frozen=True)
class TokenReplacement:
    """Another fact's subject of the same length in place of the subject (Zhang & Nanda 2023).

    Attributes:
        embeddings: of every token that may stand in, `(d,)` by token id.
        partners: for each case index, the subjects that may stand in.
        samples: subjects for each fact, all different: a row that comes twice would count as two
            independent ones.
        seed: of the choice, which differs from fact to fact.
        compared: whether the foil is the answer of the subject that stands in.
    """

    embeddings: Mapping[int, torch.Tensor]
    partners: Mapping[int, Sequence[Partner]]
    samples: int = 1
    seed: int = 1
    compared: bool = False

    def corrupt(self, case: Case, embeddings: torch.Tensor) -> torch.Tensor:
        """See `Noise.corrupt`."""
        rows = [
            torch.stack([self.embeddings[t] for t in partner.ids]) for partner in self.chosen(case)
        ]
        return torch.stack(rows).to(embeddings)

    def foils(self, case: Case) -> Foils | None:
        """See `Noise.foils`.

        Answers of several tokens are compared where they part: what follows another token is no
        alternative to the answer's. Elsewhere the foil is the answer's own token, which adds 0.
        """
        if not self.compared:
            return None
        foils = []
        for partner in self.chosen(case):
            place = parting(case.answer_ids, partner.answer_ids)
            assert place is not None  # `partners_of` takes no others
            foil = list(case.answer_ids)
            foil[place] = partner.answer_ids[place]
            foils.append(tuple(foil))
        return foils

    def chosen(self, case: Case) -> list[Partner]:
        """The subjects that stand in, one for each sample."""
        pool = self.partners[case.index]
        generator = np.random.RandomState([self.seed, case.index])
        picks = generator.choice(len(pool), self.samples, replace=False)
        return [pool[pick] for pick in picks]


@dataclass(frozen=True)
class Subject:
    """A subject as the noise needs it.

    Attributes:
        alone: token ids of the subject on its own, without special tokens.
        in_prompt: token ids that it has in its prompt.
        text: the subject.
        relation: of its fact.
        answer_ids: tokens that are scored of its fact's answer: none where it has no token.
    """

    alone: tuple[int, ...]
    in_prompt: tuple[int, ...]
    text: str
    relation: str
    answer_ids: tuple[int, ...]


@torch.inference_mode()
def embed(lm: LanguageModel, token_ids: Sequence[int]) -> torch.Tensor:
    """Embeddings where the noise is injected: what the module gives, scaled if it scales.

    Returns:
        `(n_tokens, d)`.
    """
    embedding = lm.model.get_submodule(lm.paths.embedding)
    embeddings: torch.Tensor = embedding(torch.tensor(token_ids, device=lm.device))
    return embeddings


def spread(embeddings: Array) -> float:
    """Sigma: their standard deviation over all elements (ROME, section 2.1; unbiased)."""
    return float(embeddings.std(ddof=1))


def covariance_root(embeddings: Array) -> Array:
    """A matrix `(rank, d)` that turns standard normal rows into rows with their covariance."""
    centred = embeddings - embeddings.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    return np.asarray(singular[:, None] * directions / np.sqrt(len(embeddings) - 1))


def parting(answer: Sequence[int], other: Sequence[int]) -> int | None:
    """The first place where two answers have other tokens; None where one begins the other."""
    pairs = zip(answer, other, strict=False)
    return next((place for place, (mine, theirs) in enumerate(pairs) if mine != theirs), None)


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
                and parting(subject.answer_ids, other.answer_ids) is not None
            ):
                found.setdefault(other.in_prompt, Partner(other.in_prompt, other.answer_ids))
        partners[index] = list(found.values())
    return partners


@dataclass(frozen=True)
class NoiseChoice:
    """What a user asked for; see the keys `noise.*` of the config."""

    kind: str = "gaussian"
    replace: bool = False
    multiple: float = 3.0
    std: float | None = None
    samples: int = 10
    seed: int = 1
    degrees: float = 5.0
    foil: str = "corrupted"


@dataclass(frozen=True)
class MeasuredNoise:
    """A noise with the numbers that it rests on.

    Attributes:
        noise: what corrupts.
        sigma: standard deviation of the subjects' embeddings.
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


def make_noise(
    choice: NoiseChoice,
    lm: LanguageModel,
    subjects: Sequence[Subject],
    measured_on: Sequence[Subject] | None = None,
) -> MeasuredNoise:
    """Make a noise, measured on every subject of a dataset.

    Args:
        choice: the config.
        lm: the model.
        subjects: one for each row of the dataset, also of those that are no candidates: a fact's
            noise must not depend on `dataset.limit`.
        measured_on: the subjects that sigma, mean and covariance are of, and that may stand in for
            another; None for `subjects`.

    Raises:
        KtraceError: unknown kind.
    """
    measured_on = subjects if measured_on is None else measured_on
    tokens = [token for subject in measured_on for token in subject.alone]
    embeddings = np.asarray(embed(lm, tokens).double().cpu().numpy())
    sigma = spread(embeddings)
    sizes = (len(measured_on), len(tokens))
    level = choice.multiple * sigma if choice.std is None else choice.std
    draws: dict[str, Draw] = {
        "gaussian": normal,
        "uniform": uniform,
        "student_t": student_t(choice.degrees),
    }
    if choice.kind in draws:
        noise: Noise = RandomNoise(
            level, choice.samples, choice.seed, draws[choice.kind], choice.replace
        )
        return MeasuredNoise(noise, sigma, level, {}, *sizes)
    if choice.kind == "multivariate":
        root = choice.multiple * covariance_root(embeddings)
        mean = embeddings.mean(axis=0)
        noise = RandomNoise(root, choice.samples, choice.seed, normal, choice.replace, mean)
        return MeasuredNoise(noise, sigma, choice.multiple * sigma, {}, *sizes)
    constants = {"zero": np.zeros(lm.d_embedding), "mean": embeddings.mean(axis=0)}
    if choice.kind in constants:
        noise = ConstantNoise(constants[choice.kind])
        return MeasuredNoise(noise, sigma, float("nan"), {}, *sizes)
    if choice.kind == "token_replacement":
        partners = partners_of(subjects, measured_on)
        used = sorted({t for pool in partners.values() for partner in pool for t in partner.ids})
        table = dict(zip(used, embed(lm, used), strict=True)) if used else {}
        noise = TokenReplacement(
            table, partners, choice.samples, choice.seed, compared=choice.foil == "replacement"
        )
        few = FEW_PARTNERS.format(samples=choice.samples)
        alone = {
            index: few if pool else NO_PARTNER
            for index, pool in partners.items()
            if len(pool) < choice.samples
        }
        return MeasuredNoise(noise, sigma, float("nan"), alone, *sizes)
    raise KtraceError(f"noise.kind={choice.kind!r} is unknown")


def _like(values: Array, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # Narrowed before it moves: not every device has float64.
    return torch.from_numpy(values).to(dtype).to(tensor.device)
