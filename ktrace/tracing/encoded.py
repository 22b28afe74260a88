"""A fact in its model's tokens, as the engines need it."""

from dataclasses import dataclass, replace

from ktrace.facts import Span
from ktrace.lm.tokens import EncodedPrompt
from ktrace.tracing.engine import Case, Shape


@dataclass(frozen=True)
class EncodedPair:
    """What `noise=pair` needs of a fact (ktrace/tracing/pairs.py).

    Attributes:
        corrupted_ids: the other prompt's tokens, as many as the prompt's.
        span: from the first that differs to the last one.
        problem: why the corrupted run cannot read it: the others are then of no meaning.
        foil_ids: tokens of the fact's foil that are scored; none where it has none.
        foil_problem: why there are none where it has one.
    """

    corrupted_ids: tuple[int, ...]
    span: Span
    problem: str = ""
    foil_ids: tuple[int, ...] = ()
    foil_problem: str = ""


@dataclass(frozen=True)
class EncodedFact:
    """A fact in its model's tokens.

    Attributes:
        prompt: its tokens, up to where the answer is read.
        span: positions of the subject; of a pair without one, those of what differs.
        answer_ids: tokens that are scored; none where there is no token to predict.
        also: the same of other right answers, none of which begins another.
        separator: what stands between the prompt and the (first) answer; None where that is what
            the model predicts.
        n_between: how many of the prompt's last tokens stand between the two: they hold no
            character of either, so they are read and not scored.
        problem: why there is no token to predict.
        unscored: other right answers that are left out, each with the reason.
        pair: with `noise=pair`.
    """

    prompt: EncodedPrompt
    span: Span
    answer_ids: tuple[int, ...]
    separator: str | None = None
    n_between: int = 0
    problem: str = ""
    also: tuple[tuple[int, ...], ...] = ()
    unscored: tuple[str, ...] = ()
    pair: EncodedPair | None = None

    @property
    def answers(self) -> tuple[tuple[int, ...], ...]:
        """Tokens of every right answer; none where there is no token to predict."""
        return (self.answer_ids, *self.also) if self.answer_ids else ()

    @property
    def n_answer(self) -> int:
        """Tokens of the longest answer."""
        return max(map(len, self.answers), default=0)

    @property
    def n_read(self) -> int:
        """Tokens that the model reads: an answer's last one is only predicted."""
        return len(self.prompt.input_ids) + max(0, self.n_answer - 1)

    @property
    def shape(self) -> Shape | None:
        """What it must have in common with facts in one batch; None where it is never traced."""
        if not self.answer_ids:
            return None
        span = self.span if self.pair is None else self.pair.span
        return Shape(len(self.prompt.input_ids), span.start, self.n_answer)

    def case(self, index: int, predicted: tuple[int, ...] = ()) -> Case:
        """As an engine needs it: of several right answers the predicted one is its own."""
        own = predicted if predicted in self.answers else self.answer_ids
        also = tuple(ids for ids in self.answers if ids != own)
        return self.corrupted(Case(index, self.prompt.input_ids, self.span, own, also=also))

    def corrupted(self, case: Case) -> Case:
        """Its case, with what the corrupted run reads."""
        if self.pair is None:
            return case
        return replace(case, span=self.pair.span, corrupted_ids=self.pair.corrupted_ids)
