"""What is scored is what the user's answer is in a model's tokens after its prompt."""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch

import ktrace
from ktrace.config import DatasetConfig
from ktrace.facts import Fact, prompt_facts, role_of_positions
from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from ktrace.lm.tokens import encode_prompt
from ktrace.tracing.candidates import clean_fact
from ktrace.tracing.encode import encode_facts
from ktrace.tracing.encoded import EncodedFact
from tests.facts.kinds import KINDS, every_kind
from tests.support.configs import configured
from tests.support.models import micro_llama
from tests.support.tokenizers import spelled

YEAR = Fact(0, "The brand Kingdom was founded in", "Kingdom", "1958")


@cache
def model(kind: str, seed: int = 0) -> LanguageModel:
    """A random model with a tokenizer of one kind."""
    tokenizer = KINDS[kind]()
    return language_model(micro_llama(2, seed, len(tokenizer)), tokenizer)


def settings(**keys: Any) -> DatasetConfig:
    return configured(DatasetConfig, name="made-up", path=None, **keys)


def encoded(lm: LanguageModel, fact: Fact, **keys: Any) -> EncodedFact:
    [found] = encode_facts(lm, [fact], settings(**keys))
    return found


def next_probabilities(lm: LanguageModel, ids: Sequence[int]) -> torch.Tensor:
    """From transformers alone."""
    with torch.inference_mode():
        return lm.model(torch.tensor([list(ids)])).logits[0, -1].softmax(-1)


def saying(lm: LanguageModel, *tokens: int) -> LanguageModel:
    """A copy of a model that predicts these tokens, one after another and round again."""
    copy = language_model(micro_llama(2, vocabulary=len(lm.tokenizer)), lm.tokenizer)
    following = dict(zip(tokens, (*tokens[1:], tokens[0]), strict=True))

    def say(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        said = torch.zeros_like(output)
        for row, read in enumerate(copy.read):  # type: ignore[attr-defined]
            for place, token in enumerate(read[-output.shape[1] :]):
                said[row, place, following.get(token, tokens[0])] = 20.0
        return said

    def keep(module: Any, arguments: Any, options: Any) -> None:
        object.__setattr__(copy, "read", options["input_ids"].tolist())

    copy.model.register_forward_pre_hook(keep, with_kwargs=True)
    copy.model.get_output_embeddings().register_forward_hook(say)
    return copy


@every_kind
@pytest.mark.parametrize("answer", ["first_token", "full"])
def test_a_year_is_scored_by_its_digits(kind: str, answer: str) -> None:
    """By the bare space before it, any year would be right, with a probability near one."""
    lm = model(kind)
    found = encoded(lm, YEAR, answer=answer)
    digits = spelled(lm.tokenizer, found.answer_ids)
    assert b"".join(digits).strip() == (b"1958" if answer == "full" else digits[0].strip())
    assert digits[0].strip()[:1] == b"1"
    whole = encode_prompt(lm.tokenizer, f"{YEAR.prompt} 1958").input_ids
    n_read = len(found.prompt.input_ids)
    assert found.prompt.input_ids == whole[:n_read]
    assert found.answer_ids == whole[n_read : n_read + len(found.answer_ids)]
    run, _ = clean_fact(lm, YEAR, found)
    assert run is not None
    expected = 1.0
    for n, token in enumerate(found.answer_ids):
        expected *= float(next_probabilities(lm, whole[: n_read + n])[token])
    assert run.probability == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["tiktoken_style", "sentencepiece_bpe", "sentencepiece_unigram"])
def test_a_space_that_is_read_alone_is_the_last_position_and_no_part_of_the_prompt(
    kind: str,
) -> None:
    lm = model(kind)
    found, plain = encoded(lm, YEAR), encode_prompt(lm.tokenizer, YEAR.prompt)
    assert found.n_between == 1
    assert found.separator == " "
    assert found.prompt.input_ids[:-1] == plain.input_ids
    assert found.prompt.offsets == (*plain.offsets, (len(YEAR.prompt), len(YEAR.prompt)))
    roles = role_of_positions(found.span, len(found.prompt.input_ids))
    assert roles[-2:] == ("further", "last")  # which the answer is read from


@pytest.mark.parametrize("kind", ["tiktoken_style", "sentencepiece_bpe"])
def test_a_year_is_a_candidate_only_if_its_digits_are_predicted(kind: str) -> None:
    lm = model(kind)
    [space], digits = encoded(lm, YEAR).prompt.input_ids[-1:], encoded(lm, YEAR).answer_ids
    other = encoded(lm, Fact(0, YEAR.prompt, "Kingdom", "2001")).answer_ids
    for said, is_candidate in ((digits, True), (other, False)):
        speaker = saying(lm, space, *said)
        run, left_out = clean_fact(speaker, YEAR, encoded(speaker, YEAR))
        assert run is not None
        assert (left_out == "") is is_candidate
        assert run.probability == pytest.approx(1.0 if is_candidate else 0.0, abs=1e-4)


@pytest.mark.parametrize(
    ("prompt", "subject", "answer", "after"),
    [
        ("法国的首都是", "法国", "巴黎", ""),
        ("法国的首都是 ", "法国", "巴黎", ""),
        ("The Kingdom has the capital ", "Kingdom", "Paris", " "),
        ("The Kingdom has the capital\n", "Kingdom", "Paris", "\n"),
        ("The Kingdom's capital? \n\n", "Kingdom", "Paris", "\n\n"),
        ('The Kingdom has the capital "', "Kingdom", "Paris", ""),
        ("The Kingdom has a capital (", "Kingdom", "Paris", ""),
        ("The Kingdom is the Franco-", "Kingdom", "Moscow", ""),
    ],
)
@every_kind
def test_an_answer_stands_behind_what_the_prompt_asks_for(
    kind: str, prompt: str, subject: str, answer: str, after: str
) -> None:
    lm, [fact] = model(kind), prompt_facts(prompt, subject, answer).facts
    found = encoded(lm, fact, answer="full")
    assert found.separator == after
    assert found.problem == ""
    text = prompt.rstrip() + after + answer
    whole = encode_prompt(lm.tokenizer, text).input_ids
    assert found.prompt.input_ids + found.answer_ids == whole
    assert b"".join(spelled(lm.tokenizer, found.answer_ids)).strip() == answer.encode()
    span = spelled(lm.tokenizer, found.prompt.input_ids[found.span.start : found.span.stop])
    assert b"".join(span).strip() == subject.encode()


@pytest.mark.parametrize(("separator", "between"), [("space", " "), ("none", "")])
@pytest.mark.parametrize("end", ["", " ", "\n"])
def test_a_separator_may_be_chosen(separator: str, between: str, end: str) -> None:
    lm = model("byte_level_bpe")
    [fact] = prompt_facts(f"The Kingdom is (the place){end}", "Kingdom", "Paris").facts
    found = encoded(lm, fact, answer="full", separator=separator)
    between = end.strip(" ") + between
    text = f"The Kingdom is (the place){between}Paris"
    assert found.prompt.input_ids + found.answer_ids == encode_prompt(lm.tokenizer, text).input_ids
    assert found.separator == between


def test_a_merging_token_is_named_with_what_to_do() -> None:
    lm = model("ignore_merges")
    fact = Fact(0, "The Kingdom is French-", "Kingdom", "speaking")
    found = encoded(lm, fact)
    assert found.answer_ids == ()
    assert found.shape is None
    run, left_out = clean_fact(lm, fact, found)
    assert run is not None
    assert left_out == (
        "the answer merges with the prompt's last token: '-speaking' is one token of both; "
        "end the prompt before '-' and begin the answer with it"
    )
    # What it says helps.
    other = encoded(lm, Fact(0, "The Kingdom is French", "Kingdom", "-speaking"))
    assert spelled(lm.tokenizer, other.answer_ids) == [b"-speaking"]
    joined = encoded(model("gpt2"), Fact(0, "The Kingdom", "Kingdom", "s"), separator="none")
    assert joined.problem == (
        "the answer merges with the prompt's last token: ' Kingdoms' is one token of both; "
        "dataset.separator=space keeps them apart"
    )


WORDS = [
    ("Kingdom", "was the land of"),
    ("Царство", "было"),
    ("مملكة", "كانت"),
    ("राज्य", "था"),
    ("ราชอาณาจักร", "คือ"),
    ("王国", "是"),
    ("おうこく", "は"),
    ("왕국", "은"),
    ("👩\u200d🚀", "flew"),
]


@every_kind
@pytest.mark.parametrize("blank", [" ", "\t", "\u00a0", "\u3000", "\u200b", "\n"])
def test_the_span_of_a_subject_with_blank_ends(kind: str, blank: str) -> None:
    """It is the span of the subject without them, wherever the next word's token begins."""
    lm = model(kind)
    for subject, rest in WORDS:
        prompt, spans = f"In{blank}{subject}{blank}{rest}", set()
        for before, after in (("", ""), ("", blank), (blank, ""), (blank, blank)):
            [fact] = prompt_facts(prompt, f"{before}{subject}{after}", "x").facts
            found = encoded(lm, fact)
            spans.add(found.span)
            last_first, _ = found.prompt.offsets[found.span.stop - 1]
            assert last_first < prompt.index(subject) + len(subject)
        assert len(spans) == 1


def test_an_answer_left_out_is_the_first_token_that_shows() -> None:
    lm = model("sentencepiece_bpe")
    fact = Fact(0, YEAR.prompt, "Kingdom", "")
    space, digit = encoded(lm, YEAR).prompt.input_ids[-1], encoded(lm, YEAR).answer_ids[0]
    plain = encode_prompt(lm.tokenizer, fact.prompt).input_ids
    speaker = saying(lm, space, digit)
    found = encoded(speaker, fact)
    assert (found.answer_ids, found.prompt.input_ids) == ((digit,), (*plain, space))
    run, left_out = clean_fact(speaker, fact, found)
    assert run is not None
    assert (left_out, run.probability) == ("", pytest.approx(1.0, abs=1e-4))
    # Spaces without end are no answer.
    silent = saying(lm, space)
    assert encoded(silent, fact).answer_ids == ()
    assert clean_fact(silent, fact, encoded(silent, fact))[1] == (
        "the model predicts nothing that shows"
    )
    with pytest.raises(ktrace.KtraceError, match=r"nothing that shows: give an answer$"):
        ktrace.trace(silent, fact.prompt, fact.subject)


def test_what_is_out_of_the_ordinary_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ktrace")
    lm = model("tiktoken_style")
    plain = Fact(1, "The Kingdom is in", "Kingdom", "the")
    encode_facts(lm, [plain], settings())
    assert not caplog.messages
    bos = Fact(2, "<s>The Kingdom is in", "Kingdom", "the")
    chinese = Fact(3, "法国的首都是", "法国", "巴黎")
    facts = [plain, YEAR, bos, chinese, Fact(4, "<s>A Kingdom", "Kingdom", "1958")]
    encode_facts(lm, facts, settings())
    assert caplog.messages == [
        "what stands between prompts and answers (dataset.separator): space (4), nothing (1)",
        "2 of 5 prompts begin with two BOS tokens, the tokenizer's and their own: "
        "dataset.bos=strip leaves one (first known_id=2)",
        "2 of 5 answers follow a token that holds none of their characters, such as a bare space: "
        "it is read and not scored (first known_id=0)",
        "1 of 5 scored tokens are parts of a character, with which other answers begin, too: "
        "dataset.answer=full scores whole answers (first known_id=3)",
    ]
    caplog.clear()
    encode_facts(lm, [bos], settings(bos="strip"))
    assert not caplog.messages


@pytest.mark.parametrize("answer", ["the", None])
@pytest.mark.parametrize("separator", ["auto", "space", "none"])
def test_a_last_line_break_is_read_whatever_the_separator_and_this_is_told(
    caplog: pytest.LogCaptureFixture, separator: str, answer: str | None
) -> None:
    """Also where nothing follows but the prediction, which no separator may change."""
    caplog.set_level(logging.INFO, "ktrace")
    lm = model("byte_level_bpe")
    [fact] = prompt_facts("The Kingdom has the capital\n", "Kingdom", answer).facts
    assert not caplog.messages  # nobody knows yet
    [found] = encode_facts(lm, [fact], settings(separator=separator))
    whole = encode_prompt(lm.tokenizer, "The Kingdom has the capital\n").input_ids
    assert found.prompt.input_ids[: len(whole)] == whole
    if answer is None:
        assert found == encoded(lm, fact)
    told = [line for line in caplog.messages if "which are read" in line]
    assert told[0] == (
        "1 of 1 prompts end in line breaks, which are read before the answer (first known_id=0)"
    )


def test_bos_changes_nothing_but_the_second_one() -> None:
    lm = model("tiktoken_style")
    bos = Fact(2, "<s>The Kingdom is in", "Kingdom", "the")
    kept, stripped = encoded(lm, bos), encoded(lm, bos, bos="strip")
    assert kept.prompt.input_ids[1:] == stripped.prompt.input_ids
    assert kept.answer_ids == stripped.answer_ids
    assert kept.span.start == stripped.span.start + 1
    without = Fact(3, "The Kingdom is in", "Kingdom", "the")
    assert encoded(lm, without, bos="strip") == encoded(lm, without)


Trace = Callable[..., ktrace.Trace]


def test_a_blank_end_of_a_subject_changes_no_number() -> None:
    """It took the next word into the subject: AIE at the last subject token 0.70 → 0.006."""
    lm = model("byte_level_bpe")

    def traced(prompt: str, subject: str) -> ktrace.Trace:
        return ktrace.trace(lm, prompt, subject, samples=2)

    plain = traced("The Kingdom was the land of", "Kingdom")
    for prompt, subject in (
        ("The Kingdom was the land of", "Kingdom "),
        (" The Kingdom was the land of ", " Kingdom"),
        ("The Kingdom was the land of\u200b", " Kingdom "),
    ):
        other = traced(prompt, subject)
        assert (other.span, other.roles, other.prompt) == (plain.span, plain.roles, plain.prompt)
        assert (other.p_restored == plain.p_restored).all()
