"""Subjects are found in whatever a tokenizer makes of their prompt.

The truth comes from the bytes that the tokens spell, which lie one after another as in the prompt.
The offsets that a tokenizer reports, which ktrace goes by, have no part in it.
"""

from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ktrace.facts import Span, load_facts, role_of_positions, token_span
from ktrace.facts.text import blanks, is_blank
from ktrace.lm.tokens import _own_characters, encode_prompt, subject_token_ids
from tests.facts.kinds import KINDS, bytes_of, every_kind, places_of
from tests.support.places import ROOT, SHARED, needs_shared
from tests.support.tokenizers import spelled


def found(tokenizer: Any, prompt: str, start: int, stop: int) -> Span:
    """As the pipeline finds it."""
    return token_span(encode_prompt(tokenizer, prompt).offsets, start, stop, blanks(prompt))


def truth(tokenizer: Any, prompt: str, start: int, stop: int) -> Span:
    """From the bytes of the tokens: those that spell anything of the subject that shows."""
    ids = encode_prompt(tokenizer, prompt).input_ids
    shown = [bytes_of(prompt, n, n + 1) for n in range(start, stop) if not is_blank(prompt[n])]
    held = [
        position
        for position, (first, last) in enumerate(places_of(tokenizer, ids, prompt))
        if first < last and any(first < end and last > begin for begin, end in shown)
    ]
    return Span(held[0], held[-1] + 1)


@every_kind
@pytest.mark.parametrize(
    ("before", "subject", "after"),
    [
        pytest.param("The capital of ", "France", " is", id="plain"),
        pytest.param("They live in ", "Kingdom of Thailand", "", id="prompt-ends-with-it"),
        pytest.param("", "Kingdom of Thailand", " is", id="very-start"),
        pytest.param("", "日本", " is in", id="very-start-unknown-letters"),
        pytest.param("In ", "St. John's, N.L.", ", one speaks", id="punctuation"),
        pytest.param("It is ", "Anna", "'s capital", id="possessive"),
        pytest.param("", "José Núñez", " é", id="accents"),
        pytest.param("A ", "Zoe\u0308", " is", id="combining-accent"),
        pytest.param("", "日", "本 is", id="part-of-an-unknown-word"),
        pytest.param("本", "日", "本 is", id="between-unknown-letters"),
        pytest.param("So ", "👩\u200d🚀", "🚀 flew", id="emoji-of-several-letters"),
        pytest.param("un", "believ", "able is", id="part-of-a-longer-word"),
        pytest.param("  ", "two", "  spaces", id="spaces"),
        pytest.param("a\n", "b\tc", "\n", id="other-white-space"),
        pytest.param("the ▁ ", "▁x", " of", id="the-mark-of-a-space"),
        pytest.param("", "Ġ", "x", id="the-other-mark-of-a-space"),
    ],
)
def test_a_subject_that_is_hard_to_find(kind: str, before: str, subject: str, after: str) -> None:
    tokenizer, prompt = KINDS[kind](), before + subject + after
    if "▁" in prompt and kind.startswith("sentencepiece"):
        pytest.skip("to these tokenizers it is a space")
    place = len(before), len(before) + len(subject)
    assert found(tokenizer, prompt, *place) == truth(tokenizer, prompt, *place)


# fmt: off
WORDS = st.sampled_from([
    "the", "Thailand", "'s", " ", " ", "  ", ".", ",", "-", "A", "a", "1987", "\n", "\t",
    "\u00a0", "\u2028", "é", "e\u0301", "ß", "ﬁ", "Ж", "日本", "語", "کابل", "🗼", "👩\u200d🚀",
])
# fmt: on
ANY = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="▁"), max_size=4)
TEXT = st.lists(WORDS | ANY, max_size=6).map("".join)


@every_kind
@settings(derandomize=True, deadline=None, max_examples=150)
@given(TEXT, TEXT.filter(lambda text: not all(map(is_blank, text))), TEXT)
@example("", "日", "本")
def test_any_subject(kind: str, before: str, subject: str, after: str) -> None:
    tokenizer, prompt = KINDS[kind](), before + subject + after
    place = len(before), len(before) + len(subject)
    assert found(tokenizer, prompt, *place) == truth(tokenizer, prompt, *place)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"gpt2"}))  # which puts none
def test_bos_is_as_the_tokenizer_adds_it_and_no_part_of_the_subject(kind: str) -> None:
    tokenizer = KINDS[kind]()
    prompt = encode_prompt(tokenizer, "Thailand is")
    assert prompt.input_ids == tuple(tokenizer("Thailand is")["input_ids"])
    assert (prompt.tokens[0], prompt.offsets[0]) == ("<s>", (0, 0))
    span = token_span(prompt.offsets, 0, len("Thailand"))
    assert span.start >= 1
    assert role_of_positions(span, len(prompt.input_ids))[0] is None
    # Sigma is measured on these.
    assert tokenizer.bos_token_id not in subject_token_ids(tokenizer, "Thailand")


@needs_shared
@pytest.mark.parametrize("kind", ["gpt2", "sentencepiece_unigram", "byte_level_bpe"])
def test_every_published_fact_has_its_span(kind: str) -> None:
    """Not one of them may be matched by words: every hundredth has punctuation or possessives."""
    tokenizer = KINDS[kind]()
    published = yaml.safe_load((ROOT / "conf" / "dataset" / "known_1000.yaml").read_text())
    facts = load_facts(SHARED / "data" / "known_1000.json", sha256=published["sha256"])
    assert len(facts) == 1209
    for fact in facts.facts:
        place = fact.subject_start, fact.subject_start + len(fact.subject)
        span = found(tokenizer, fact.prompt, *place)
        assert span == truth(tokenizer, fact.prompt, *place), fact
        ids = encode_prompt(tokenizer, fact.prompt).input_ids[span.start : span.stop]
        assert fact.subject.encode() in b"".join(spelled(tokenizer, ids)), fact


@pytest.mark.parametrize(("piece", "alone"), [("▁", True), ("Ġ", True), ("", False), ("▁Ġ", False)])
def test_only_the_mark_of_a_space_stands_before_the_text(piece: str, alone: bool) -> None:
    offsets = _own_characters("xy", [piece, "x"], [(0, 1), (0, 1)])
    assert offsets == [(0, 0) if alone else (0, 1), (0, 1)]


@pytest.mark.parametrize("kind", ["sentencepiece_bpe", "sentencepiece_unigram"])
def test_a_space_behind_a_special_token_is_none_of_the_subject(kind: str) -> None:
    """As in a chat: some tokenizers put one in front of each piece of text between them."""
    tokenizer, prompt = KINDS[kind](), "So</s>日本 is"
    encoded = encode_prompt(tokenizer, prompt)
    span = found(tokenizer, prompt, 6, 8)
    assert encoded.offsets[span.start] == (6, 7)
    assert tokenizer.convert_ids_to_tokens(encoded.input_ids[span.start]).startswith("<0x")
