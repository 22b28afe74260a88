"""A fact in its model's tokens: prompt, subject, answer; and whether it is a candidate."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ktrace.errors import KtraceError
from ktrace.facts import Fact, Span, token_span
from ktrace.lm.model import LanguageModel
from ktrace.lm.tokens import EncodedPrompt, answer_token_ids, encode_prompt
from ktrace.tracing.clean import CleanRun, clean_run
from ktrace.tracing.engine import Scores, Shape
from ktrace.tracing.mediators import Mediator


@dataclass(frozen=True)
class EncodedFact:
    """A fact in its model's tokens.

    Attributes:
        prompt: its tokens.
        span: positions of the subject.
        answer_ids: tokens that are scored; none where the answer merges with the prompt.
    """

    prompt: EncodedPrompt
    span: Span
    answer_ids: tuple[int, ...]

    @property
    def n_read(self) -> int:
        """Tokens that the model reads: an answer's last one is only predicted."""
        return len(self.prompt.input_ids) + max(0, len(self.answer_ids) - 1)

    @property
    def shape(self) -> Shape | None:
        """What it must have in common with facts in one batch; None where it is never traced."""
        if not self.answer_ids:
            return None
        return Shape(len(self.prompt.input_ids), self.span.start, len(self.answer_ids))


def encode_fact(lm: LanguageModel, fact: Fact, *, whole_answer: bool) -> EncodedFact:
    """Tokens of a fact's prompt, of its subject, and of its answer: the first one, or all.

    Where a fact has no answer, that is the token which the model predicts.

    Raises:
        KtraceError: no token holds any of the subject, or the model has no embedding for a token.
    """
    prompt, span = located(lm, fact)
    require_known(lm, fact, prompt.input_ids)
    if fact.attribute:
        answer = answer_token_ids(lm.tokenizer, fact.prompt, fact.attribute)
        require_known(lm, fact, answer)
    elif _too_long(lm, len(prompt.input_ids)):
        answer = ()  # `clean_fact` says why it is no candidate
    else:
        answer = clean_run(lm, prompt.input_ids).predicted_ids
    return EncodedFact(prompt, span, answer if whole_answer else answer[:1])


def located(lm: LanguageModel, fact: Fact) -> tuple[EncodedPrompt, Span]:
    prompt = encode_prompt(lm.tokenizer, fact.prompt)
    begin = fact.subject_start
    try:
        return prompt, token_span(prompt.offsets, begin, begin + len(fact.subject))
    except ValueError as error:
        raise KtraceError(
            f"known_id={fact.known_id}: the tokenizer of this model keeps nothing of the subject "
            f"{fact.subject!r} in the prompt {fact.prompt!r}"
        ) from error


def clean_fact(lm: LanguageModel, fact: Fact, encoded: EncodedFact) -> tuple[CleanRun | None, str]:
    """The clean run, and why the fact is no candidate: empty where it is one.

    A prompt that is longer than the model reads is not run: it has no clean run.

    Raises:
        KtraceError: the model gives no numbers.
    """
    if _too_long(lm, encoded.n_read):
        return None, f"the prompt is longer than the model's {lm.max_positions} positions"
    run = clean_run(lm, encoded.prompt.input_ids, encoded.answer_ids)
    require_numbers(lm, fact, "clean run", run.predicted_probability)
    if not encoded.answer_ids:
        return run, "the answer merges with the prompt's last token"
    if encoded.answer_ids != run.predicted_ids:
        return run, "another answer is predicted"
    return run, ""


def _too_long(lm: LanguageModel, n_tokens: int) -> bool:
    return lm.max_positions is not None and n_tokens > lm.max_positions


def require_numbers(lm: LanguageModel, fact: Fact, run: str, scores: npt.ArrayLike) -> None:
    """Refuse scores that are NaN: they would pass every later stage as if they were results.

    Raises:
        KtraceError: naming the fact, and what to change.
    """
    if np.isnan(scores).any():
        dtype = str(lm.model.dtype).removeprefix("torch.")
        raise KtraceError(
            f"known_id={fact.known_id}: the {run} gives no numbers (NaN) with model.dtype={dtype}: "
            "another model.dtype or, for a corrupted run, a smaller noise keeps it finite"
        )


def require_scores(lm: LanguageModel, fact: Fact, mediator: Mediator, scores: Scores) -> None:
    """Refuse scores of restorations that are NaN, in the layers that have something to restore.

    Raises:
        KtraceError: see `require_numbers`.
    """
    have = lm.paths.layers_with(mediator.site, lm.n_layers)
    for values in scores.values():
        require_numbers(lm, fact, f"restoration of {mediator.key}", values[:, have])


def require_known(lm: LanguageModel, fact: Fact, ids: Sequence[int]) -> None:
    """Refuse tokens that the model has no embedding for.

    Raises:
        KtraceError: tokenizer and weights do not belong together.
    """
    beyond = [token for token in ids if token >= lm.n_embeddings]
    if beyond:
        raise KtraceError(
            f"known_id={fact.known_id}: token {beyond[0]} ({decoded(lm, beyond[:1])!r}) is beyond "
            f"the model's {lm.n_embeddings} embeddings: tokenizer and weights in model.path do not "
            "belong together"
        )


def decoded(lm: LanguageModel, tokens: Sequence[int]) -> str:
    """Tokens as text."""
    text: str = lm.tokenizer.decode(tokens)
    return text.replace("\0", "␀")  # HDF5 ends a text at NUL
