"""What an engine is: from cases to scores. No torch here: stored cases are read without it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ktrace.facts import Span
from ktrace.lm.told import Told, untold
from ktrace.tracing.mediators import Mediator

# One array for each metric.
Scores = dict[str, npt.NDArray[np.float64]]
# Of one fact: for each sample, a token for each token of the answer.
Foils = Sequence[tuple[int, ...]]


class Shape(NamedTuple):
    """What cases must have in common to share a batch.

    Attributes:
        n_positions: tokens of the prompt.
        start: first position where the runs' prompts differ.
        n_answer: tokens of the answer.
    """

    n_positions: int
    start: int
    n_answer: int = 1

    def and_longer(self) -> "Shape":
        """Of the longest prompt of about this length: what is proven of it serves the next one."""
        return self._replace(n_positions=-(-self.n_positions // 16) * 16)


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

    def base(self, mediator: Mediator) -> Scores:
        """Of the run that a mediator changes: what it leaves wherever it changes nothing."""
        return self.clean if mediator.changes_clean_run else self.corrupted

    def source(self, mediator: Mediator) -> Scores:
        """Of the run that it takes states from."""
        return self.corrupted if mediator.noises else self.clean


@dataclass(frozen=True)
class Case:
    """A fact as an engine needs it.

    Attributes:
        index: the fact's row in its dataset.
        input_ids: the prompt's token ids.
        span: positions where the runs' prompts differ: those of the subject, which is corrupted, or
            from the first to the last token that another prompt has not.
        answer_ids: the tokens whose probability is scored after the prompt.
        baseline: where the fact has been run without restoration before. `Engine.restored` then
            gives these very scores where restoring changes nothing, and takes the same foil.
        also: other right answers. An engine adds the probability of those that differ from
            `answer_ids` in their last token alone; ktrace/tracing/answers.py adds the others'.
        corrupted_ids: what the corrupted run reads, where that is another prompt, of as many
            tokens.
    """

    index: int
    input_ids: tuple[int, ...]
    span: Span
    answer_ids: tuple[int, ...]
    baseline: Baseline | None = None
    also: tuple[tuple[int, ...], ...] = ()
    corrupted_ids: tuple[int, ...] = ()

    @property
    def shape(self) -> Shape:
        """What a batch has in common."""
        return Shape(len(self.input_ids), self.span.start, len(self.answer_ids))

    @property
    def forced_ids(self) -> tuple[int, ...]:
        """What the model reads: the prompt, and the answer without its last token."""
        return self.input_ids + self.answer_ids[:-1]

    @property
    def corrupted_forced_ids(self) -> tuple[int, ...]:
        """The same of the corrupted run, before its embeddings are corrupted."""
        return (self.corrupted_ids or self.input_ids) + self.answer_ids[:-1]

    @property
    def last_ids(self) -> tuple[int, ...]:
        """Tokens that are right in the last place, behind the answer's others: its own first."""
        start = self.answer_ids[:-1]
        return (self.answer_ids[-1], *(ids[-1] for ids in self.also if ids[:-1] == start))


@dataclass(frozen=True)
class Use:
    """What an engine is made for, and proven for.

    Attributes:
        mediators: that it will restore.
        shapes: of the cases that it will meet.
        told: learns how many cells of a proof are compared.
    """

    mediators: Sequence[Mediator]
    shapes: Sequence[Shape] = ()
    told: Told = untold


class Engine(Protocol):
    """Computes the scores of corrupted runs, with and without restoration.

    Cases of one shape may go through it together, as a group; whoever cuts the groups asks how
    many (ktrace/tracing/groups.py). Every engine gives the reference engine's numbers, to rounding.
    """

    def cases_together(self, shape: Shape) -> int:
        """Most cases of this shape that are worth one batch."""
        ...

    def baseline(
        self, group: Sequence[Case], then: Sequence[Mediator] = ()
    ) -> Iterator[tuple[Case, Baseline]]:
        """Scores of the clean run and of the corrupted run.

        Args:
            group: cases of one shape.
            then: what `restored` is asked for next, of these cases: what both need may be kept.
        """
        ...

    def restored(
        self, group: Sequence[Case], mediators: Sequence[Mediator]
    ) -> Iterator[tuple[Case, Mapping[str, Scores]]]:
        """Scores of the corrupted-with-restoration run, by mediator key; or of the noised one.

        `(n_samples, n_layers, n_places)` for each metric, with `Mediator.places` of the case; of
        heads `(n_samples, n_layers, n_heads, n_places)`. Positions before the subject hold the
        scores of the mediator's base: the noise does not reach them, so that both runs are alike
        there. Layers without the site that a mediator restores or cuts hold NaN: there is nothing
        to put; so do heads that a layer has not.
        """
        ...
