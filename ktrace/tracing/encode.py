"""A fact in its model's tokens: prompt, subject, answer."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ktrace.config import Answer, Bos, DatasetConfig, Separator
from ktrace.errors import KtraceError
from ktrace.facts import Fact, Span, changed_span, token_span
from ktrace.facts.separator import separator
from ktrace.facts.text import blanks, is_blank, trimmed
from ktrace.lm.chat import ChatTemplate
from ktrace.lm.reader import Reader, Reads
from ktrace.lm.tokens import (
    PLAIN,
    EncodedPrompt,
    Frame,
    Merged,
    decoded,
    encode_prompt,
    n_bos,
    place_answer,
)
from ktrace.tracing.answers import distinct
from ktrace.tracing.checks import require_known
from ktrace.tracing.clean import clean_run
from ktrace.tracing.encoded import EncodedFact

log = logging.getLogger(__name__)

# Blank tokens that are read before the model's own answer, at the most.
_MOST_BLANK = 8
_PART_OF_CHARACTER = "\ufffd"  # how bytes are written that are none


class Encoder:
    """Puts facts into a model's tokens, as the keys `dataset.*` ask for."""

    def __init__(self, lm: Reads, dataset: DatasetConfig) -> None:
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

        Where a fact has no answer, that is the first token that shows of what the model predicts;
        without the model's weights there is then none, and no problem.

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
        """What stands around its prompt: line breaks at its end are read, but not in a chat."""
        if self._chat:
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
        """Of several, those that are read from one place: what is read before is not scored."""
        placed = [self.with_answer(found, fact, text) for text in fact.answers]
        first = next((answer for answer in placed if not answer.problem), placed[0])
        if first.problem:
            return first
        own, unscored = [], []
        for text, other in zip(fact.answers, placed, strict=True):
            if other.problem:
                unscored.append(f"{text!r}: {other.problem}")
            elif other.prompt.input_ids != first.prompt.input_ids:
                unscored.append(f"{text!r}: it does not begin at the token where others do")
            else:
                own.append(other.answer_ids)
        ids, *also = distinct(own)
        return replace(first, answer_ids=ids, also=tuple(also), unscored=tuple(unscored))

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
        if isinstance(lm, Reader):
            return found
        for n_between in range(_MOST_BLANK + 1):
            if too_long(lm, len(prompt.input_ids)):  # `clean_fact` says so of the prompt itself
                break
            predicted = clean_run(lm, prompt.input_ids).predicted_ids
            if _shows(lm, predicted):
                return replace(found, prompt=prompt, answer_ids=predicted, n_between=n_between)
            prompt = prompt.going_on(lm.tokenizer, predicted)
        return replace(found, problem="the model predicts nothing that shows")


def _shows(lm: Reads, ids: Sequence[int]) -> bool:
    # Not every tokenizer writes SentencePiece's mark of a space as one.
    return not all(map(is_blank, lm.tokenizer.decode(ids).replace("▁", " ")))


def encode_facts(lm: Reads, facts: Sequence[Fact], dataset: DatasetConfig) -> list[EncodedFact]:
    """Facts in a model's tokens; what is out of the ordinary is logged, in a line of each kind.

    Raises:
        KtraceError: see `Encoder`.
    """
    encoder = Encoder(lm, dataset)
    encoded = [encoder.encoded(fact) for fact in facts]
    _tell_separators(facts, encoded, dataset)
    _tell(lm, facts, encoded)
    return encoded


def about_answers(encoded: Sequence[EncodedFact]) -> dict[str, object]:
    """What stands between prompts and answers, and how many tokens there are read alone."""
    between = [own.separator for own in encoded if own.separator is not None]
    return {
        "separators": dict(Counter(map(_name, between))),
        "behind_blank_tokens": sum(own.n_between > 0 for own in encoded),
    }


def _name(between: str) -> str:
    """What stands between a prompt and its answer, in words."""
    broken, spaced = between.strip(" ") != "", between.endswith(" ")
    return " and ".join(["line break"] * broken + ["space"] * spaced) or "nothing"


def _tell_separators(
    facts: Sequence[Fact], encoded: Sequence[EncodedFact], dataset: DatasetConfig
) -> None:
    """Log what stands between prompts and answers, and what became of line breaks there."""
    separators = about_answers(encoded)["separators"]
    assert isinstance(separators, dict)
    if separators.keys() - {"space"}:
        told = ", ".join(f"{name} ({count})" for name, count in separators.items())
        log.info("what stands between prompts and answers (dataset.separator): %s", told)
    if dataset.chat:
        level, kind = logging.WARNING, "prompts end in line breaks, which dataset.chat=true drops"
    else:
        level, kind = logging.INFO, "prompts end in line breaks, which are read before the answer"
    _count(level, kind, facts, [fact.ending != "" for fact in facts])


def _count(level: int, kind: str, facts: Sequence[Fact], met: Sequence[bool]) -> None:
    """Log how many facts have met a kind of thing, and the first of them."""
    if any(met):
        first = facts[met.index(True)].known_id
        log.log(level, "%d of %d %s (first known_id=%d)", sum(met), len(met), kind, first)


def _tell(lm: Reads, facts: Sequence[Fact], encoded: Sequence[EncodedFact]) -> None:
    """Log what is out of the ordinary, with the first fact of each kind."""
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
            [
                any(_PART_OF_CHARACTER in decoded(lm.tokenizer, ids) for ids in own.answers)
                for own in encoded
            ],
        ),
    )
    for level, kind, met in kinds:
        _count(level, kind, facts, met)
    unscored = [
        f"known_id={fact.known_id}, {answer}"
        for fact, own in zip(facts, encoded, strict=True)
        for answer in own.unscored
    ]
    if unscored:
        n_answers = sum(len(fact.answers) for fact in facts)
        text = "%d of %d right answers are left out, and others of their facts scored (first %s)"
        log.warning(text, len(unscored), n_answers, unscored[0])


def too_long(lm: Reads, n_tokens: int) -> bool:
    """Whether a model does not read so many tokens."""
    return lm.max_positions is not None and n_tokens > lm.max_positions
