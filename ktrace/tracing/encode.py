"""A fact in its model's tokens: prompt, subject, answer; and whether it is a candidate."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ktrace.config import Answer, Bos, DatasetConfig, Separator
from ktrace.errors import KtraceError
from ktrace.facts import Fact, Span, changed_span, token_span
from ktrace.facts.separator import separator
from ktrace.facts.text import blanks, is_blank, trimmed
from ktrace.lm.chat import ChatTemplate
from ktrace.lm.model import LanguageModel
from ktrace.lm.tokens import PLAIN, EncodedPrompt, Frame, Merged, encode_prompt, n_bos, place_answer
from ktrace.tracing.answers import branches, distinct
from ktrace.tracing.clean import CleanRun, clean_run
from ktrace.tracing.encoded import EncodedFact
from ktrace.tracing.engine import Scores
from ktrace.tracing.mediators import Mediator

log = logging.getLogger(__name__)

# Blank tokens that are read before the model's own answer, at the most.
_MOST_BLANK = 8
_PART_OF_CHARACTER = "\ufffd"  # how bytes are written that are none


class Encoder:
    """Puts facts into a model's tokens, as the keys `dataset.*` ask for."""

    def __init__(self, lm: LanguageModel, dataset: DatasetConfig) -> None:
        """Read the chat template, where it is asked for.

        Raises:
            KtraceError: there is none, or none that can be followed.
        """
        self._lm = lm
        self._whole_answer = dataset.answer is Answer.full
        self._separator = dataset.separator
        self._chat = ChatTemplate(lm.tokenizer) if dataset.chat else None
        plain = self._chat.frame if self._chat else PLAIN
        self._frame = replace(plain, one_bos=dataset.bos is Bos.strip)

    def encoded(self, fact: Fact) -> EncodedFact:
        """Tokens of a fact's prompt, of its subject, and of its answer: the first one, or all.

        Where a fact has no answer, that is the first token that shows of what the model predicts.

        Raises:
            KtraceError: no token holds any of the subject, the model has no embedding for a token,
                or the chat template changes the prompt.
        """
        prompt, span = self.located(fact)
        require_known(self._lm, fact, prompt.input_ids)
        found = EncodedFact(prompt, span, ())
        if fact.attribute:
            return self._with_answers(found, fact)
        return self._with_prediction(found)

    def located(self, fact: Fact) -> tuple[EncodedPrompt, Span]:
        """Tokens of a fact's prompt, and of its subject; see `encoded`."""
        if self._chat:
            self._chat.require(fact.prompt, f"known_id={fact.known_id}")
        prompt = encode_prompt(self._lm.tokenizer, fact.prompt, self._framed(fact))
        if not fact.subject:
            other = replace(fact, prompt=fact.corrupted_prompt)
            ids = encode_prompt(self._lm.tokenizer, other.prompt, self._framed(other)).input_ids
            return prompt, changed_span(prompt.input_ids, ids)
        begin = fact.subject_start
        end = begin + len(fact.subject)
        try:
            return prompt, token_span(prompt.offsets, begin, end, blanks(fact.prompt))
        except ValueError as error:
            raise KtraceError(
                f"known_id={fact.known_id}: the tokenizer of this model keeps nothing of the "
                f"subject {fact.subject!r} in the prompt {fact.prompt!r}"
            ) from error

    def _framed(self, fact: Fact) -> Frame:
        """What stands around its prompt: line breaks at its end are its separator."""
        if self._chat or self._separator is not Separator.auto:
            return self._frame
        return replace(self._frame, after=fact.ending)

    def _between(self, fact: Fact, answer: str) -> str:
        """What to put between a prompt, or the line breaks that it ends in, and its answer."""
        if self._separator is not Separator.auto:
            return " " if self._separator is Separator.space else ""
        if self._chat:
            return self._chat.separator
        return "" if fact.ending else separator(fact.prompt, answer)

    def _with_answers(self, found: EncodedFact, fact: Fact) -> EncodedFact:
        """Of several, all must be read from one place: what is read before them is not scored."""
        first, *others = (self.with_answer(found, fact, text) for text in fact.answers)
        for text, other in zip(fact.also, others, strict=True):
            if other.problem and not first.problem:
                return replace(first, answer_ids=(), problem=f"of answer {text!r}: {other.problem}")
            if not first.problem and other.prompt.input_ids != first.prompt.input_ids:
                problem = f"answers {fact.attribute!r} and {text!r} do not begin at one token"
                return replace(first, answer_ids=(), problem=problem)
        own, *also = distinct([first.answer_ids, *(other.answer_ids for other in others)])
        return first if first.problem else replace(first, answer_ids=own, also=tuple(also))

    def with_answer(self, found: EncodedFact, fact: Fact, text: str) -> EncodedFact:
        """A text after a fact's prompt, as if it were its one answer; see `encoded`."""
        lm = self._lm
        first, last = trimmed(text)
        answer, frame = text[first:last], self._framed(fact)
        between = self._between(fact, answer)
        placed = place_answer(lm.tokenizer, fact.prompt, between, answer, frame)
        require_known(lm, fact, placed.read + placed.ids)
        problem = "" if placed.ids else "the tokenizer keeps nothing of the answer"
        if placed.merged:
            problem = self._merging(placed.merged, between, separator(fact.prompt, answer))
        prompt = found.prompt
        if placed.ids:
            prompt = prompt.going_on(lm.tokenizer, placed.read, placed.n_kept)
        return EncodedFact(
            prompt,
            found.span,
            placed.ids if self._whole_answer else placed.ids[:1],
            frame.after + between if not self._chat else between,
            len(placed.read),
            problem,
        )

    def _merging(self, merged: Merged, between: str, usual: str) -> str:
        """Why an answer that merges with its prompt has no token of its own, and what to do."""
        if self._chat or (usual and not between):
            other = "none" if between else "space"
            way = f"dataset.separator={other} keeps them apart"
        else:
            way = f"end the prompt before {merged.of_prompt!r} and begin the answer with it"
        how = f"{merged.token!r} is one token of both"
        if merged.token == merged.of_prompt:
            how = f"it becomes {merged.token!r} where the answer follows"
        return f"the answer merges with the prompt's last token: {how}; {way}"

    def _with_prediction(self, found: EncodedFact) -> EncodedFact:
        lm, prompt = self._lm, found.prompt
        for n_between in range(_MOST_BLANK + 1):
            if _too_long(lm, len(prompt.input_ids)):  # `clean_fact` says so of the prompt itself
                break
            predicted = clean_run(lm, prompt.input_ids).predicted_ids
            if _shows(lm, predicted):
                return replace(found, prompt=prompt, answer_ids=predicted, n_between=n_between)
            prompt = prompt.going_on(lm.tokenizer, predicted)
        return replace(found, problem="the model predicts nothing that shows")


def _shows(lm: LanguageModel, ids: Sequence[int]) -> bool:
    # Not every tokenizer writes SentencePiece's mark of a space as one.
    return not all(map(is_blank, lm.tokenizer.decode(ids).replace("▁", " ")))


def encode_facts(
    lm: LanguageModel, facts: Sequence[Fact], dataset: DatasetConfig
) -> list[EncodedFact]:
    """Facts in a model's tokens; what is out of the ordinary is logged, in a line of each kind.

    Raises:
        KtraceError: see `Encoder`.
    """
    encoder = Encoder(lm, dataset)
    encoded = [encoder.encoded(fact) for fact in facts]
    _tell(lm, facts, encoded)
    return encoded


def about_answers(encoded: Sequence[EncodedFact]) -> dict[str, object]:
    """What stands between prompts and answers, and how many tokens there are read alone."""
    names = {" ": "space", "": "nothing"}
    between = [own.separator for own in encoded if own.separator is not None]
    return {
        "separators": dict(Counter(names.get(one, "line break") for one in between)),
        "behind_blank_tokens": sum(own.n_between > 0 for own in encoded),
    }


def _tell(lm: LanguageModel, facts: Sequence[Fact], encoded: Sequence[EncodedFact]) -> None:
    """Log what is out of the ordinary, with the first fact of each kind."""
    separators = about_answers(encoded)["separators"]
    assert isinstance(separators, dict)
    if separators.keys() - {"space"}:
        told = ", ".join(f"{name} ({count})" for name, count in separators.items())
        log.info("what stands between prompts and answers (dataset.separator): %s", told)
    kinds = (
        (
            logging.WARNING,
            "prompts begin with two BOS tokens, the tokenizer's and their own: dataset.bos=strip "
            "leaves one",
            [n_bos(lm.tokenizer, own.prompt.input_ids) > 1 for own in encoded],
        ),
        (
            logging.INFO,
            "answers follow a token that holds none of their characters, such as a bare space: it "
            "is read and not scored",
            [own.n_between > 0 for own in encoded],
        ),
        (
            logging.WARNING,
            "scored tokens are parts of a character, with which other answers begin, too: "
            "dataset.answer=full scores whole answers",
            [any(_PART_OF_CHARACTER in decoded(lm, ids) for ids in own.answers) for own in encoded],
        ),
    )
    for level, kind, met in kinds:
        if any(met):
            first = facts[met.index(True)].known_id
            log.log(level, "%d of %d %s (first known_id=%d)", sum(met), len(met), kind, first)


def clean_fact(lm: LanguageModel, fact: Fact, encoded: EncodedFact) -> tuple[CleanRun | None, str]:
    """The clean run, and why the fact is no candidate: empty where it is one.

    A prompt that is longer than the model reads is not run: it has no clean run.

    Raises:
        KtraceError: the model gives no numbers.
    """
    if _too_long(lm, encoded.n_read):
        return None, f"the prompt is longer than the model's {lm.max_positions} positions"
    run = _clean_run(lm, encoded)
    require_numbers(lm, fact, "clean run", run.predicted_probability)
    if encoded.problem:
        return run, encoded.problem
    if run.predicted_ids not in encoded.answers:
        return run, "another answer is predicted"
    return run, ""


def _clean_run(lm: LanguageModel, encoded: EncodedFact) -> CleanRun:
    """That of the answer which is predicted, else of the first; the probability is of all."""
    ids = encoded.prompt.input_ids
    if not encoded.answers:
        return clean_run(lm, ids)
    runs = [
        clean_run(lm, ids, together[0], tuple(answer[-1] for answer in together))
        for together in branches(encoded.answers)
    ]
    said = [run for run in runs if run.predicted_ids in encoded.answers]
    return replace((said or runs)[0], probability=sum(run.probability for run in runs))


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
