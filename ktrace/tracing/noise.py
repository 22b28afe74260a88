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
            embeddings: those of what the corrupted run reads, `(n_subject, d)`, as the embedding
                module gives them: the clean ones, but where it reads another prompt.

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
        """See `Noise.foils`."""
        if not self.compared:
            return None
        # `partners_of` takes none that does not part from the answer.
        return [foil_against(case.answer_ids, other.answer_ids) for other in self.chosen(case)]

    def chosen(self, case: Case) -> list[Partner]:
        """The subjects that stand in, one for each sample."""
        pool = self.partners[case.index]
        generator = np.random.RandomState([self.seed, case.index])
        picks = generator.choice(len(pool), self.samples, replace=False)
        return [pool[pick] for pick in picks]


@dataclass(frozen=True)
class PromptPair:
    """The corrupted run reads another prompt (`Case.corrupted_ids`), and nothing is put in place.

    Attributes:
        given: by case index, the tokens of foils; of facts without one, what the corrupted run
            finds most probable.
    """

    given: Mapping[int, tuple[int, ...]]

    @property
    def samples(self) -> int:
        """Nothing is random."""
        return 1

    def corrupt(self, case: Case, embeddings: torch.Tensor) -> torch.Tensor:
        """See `Noise.corrupt`: they are those of the other prompt, and stay as they are."""
        return embeddings[None]

    def foils(self, case: Case) -> Foils | None:
        """See `Noise.foils`; compared where it parts from the answer, as in `TokenReplacement`."""
        other = self.given.get(case.index)
        return None if other is None else [foil_against(case.answer_ids, other)]


def foil_against(answer: tuple[int, ...], other: Sequence[int]) -> tuple[int, ...]:
    """The answer, with the token of another one where the two part.

    What follows another token is no alternative to the answer's. Elsewhere the foil is the answer's
    own token, which adds 0.

    Args:
        answer: its tokens.
        other: those of the other answer; neither begins the other.
    """
    place = parting(answer, other)
    assert place is not None
    return (*answer[:place], other[place], *answer[place + 1 :])


def parting(answer: Sequence[int], other: Sequence[int]) -> int | None:
    """The first place where two answers have other tokens; None where one begins the other."""
    pairs = zip(answer, other, strict=False)
    return next((place for place, (mine, theirs) in enumerate(pairs) if mine != theirs), None)


def _like(values: Array, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # Narrowed before it moves: not every device has float64.
    return torch.from_numpy(values).to(dtype).to(tensor.device)
