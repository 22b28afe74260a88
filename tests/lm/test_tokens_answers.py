"""An answer's tokens are those that the tokenizer gives it where it stands.

The truth comes from the bytes that the tokens spell, as in tests/facts/test_tokenizers.py.
"""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktrace.facts.separator import separator
from ktrace.lm.tokens import Frame, PlacedAnswer, answer_token_ids, encode_prompt, place_answer
from tests.facts.kinds import KINDS, bytes_of, every_kind, places_of
from tests.support.tokenizers import spelled

SCRIPTS = {
    "Latin": ("The Eiffel Tower is in", "Paris"),
    "Cyrillic": ("Столица России —", "Москва"),
    "Arabic": ("عاصمة فرنسا هي", "باريس"),
    "Devanagari": ("भारत की राजधानी है", "दिल्ली"),
    "Thai": ("เมืองหลวงของไทยคือ", "กรุงเทพ"),
    "Chinese": ("法国的首都是", "巴黎"),
    "Japanese": ("日本の首都は", "東京"),
    "Korean": ("프랑스의 수도는", "파리"),
    "emoji": ("The flag of France is", "🇫🇷"),
    "joined emoji": ("She flies there as a", "👩\u200d🚀"),
    "a year": ("The brand was founded in", "1958"),
    "a year in Chinese": ("巴黎铁塔建于", "1889"),
    "an amount": ("The ticket costs", "$5.50"),
    "an amount behind its sign": ("The ticket costs $", "5"),
    "a date": ("She was born on", "12 May 1958"),
    "an accent": ("The capital of Peru is", "Lima"),
    "a quotation": ('The book is called "', "Dune"),
    "a bracket": ("The capital of Peru (", "Lima"),
    "a hyphen": ("the Franco-", "German war"),
    "a prompt of one letter": ("A", "b"),
}


def expected(tokenizer: Any, prompt: str, between: str, answer: str) -> PlacedAnswer | None:
    """From the bytes of the tokens; None where the prompt's own tokens are others."""
    text = prompt + between + answer
    ids = encode_prompt(tokenizer, text).input_ids
    n_prompt = len(encode_prompt(tokenizer, prompt).input_ids)
    if ids[:n_prompt] != encode_prompt(tokenizer, prompt).input_ids:
        return None
    begin, _ = bytes_of(text, len(prompt + between), len(text))
    places = places_of(tokenizer, ids, text)
    own = [n for n in range(n_prompt, len(ids)) if places[n][1] > begin]
    return PlacedAnswer(n_prompt, ids[n_prompt : own[0]], ids[own[0] :])


@every_kind
@pytest.mark.parametrize("script", SCRIPTS)
def test_an_answer_has_the_tokens_of_its_place(kind: str, script: str) -> None:
    tokenizer, (prompt, answer) = KINDS[kind](), SCRIPTS[script]
    between = separator(prompt, answer)
    placed = place_answer(tokenizer, prompt, between, answer)
    truth = expected(tokenizer, prompt, between, answer)
    assert truth is not None, "none of these merges"
    assert placed == truth
    assert answer_token_ids(tokenizer, prompt, answer, between) == placed.ids


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        ("byte_level_bpe", ["Ġ"]),
        ("tiktoken_style", ["Ġ"]),
        ("ignore_merges", ["Ġ"]),
        ("sentencepiece_bpe", ["▁"]),
        ("sentencepiece_unigram", ["▁"]),
        ("gpt2", []),  # whose tokens hold the space, too
    ],
)
def test_the_space_before_a_year_is_read_and_not_scored(kind: str, read: list[str]) -> None:
    """By itself it is what the model predicts before any year."""
    tokenizer = KINDS[kind]()
    placed = place_answer(tokenizer, "The brand was founded in", " ", "1958")
    assert tokenizer.convert_ids_to_tokens(list(placed.read)) == read
    assert spelled(tokenizer, placed.ids[:1])[0].strip().startswith(b"1")


ANY = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="▁"), max_size=3)
WORD = st.sampled_from(
    ["the", "is", "-", '"', "(", "'s", "1958", "é", "日本", "は", "🗼", "Ж", "."]
)
TEXT = st.lists(WORD | ANY, min_size=1, max_size=4).map("".join).map(str.strip).filter(bool)


@every_kind
@settings(derandomize=True, deadline=None, max_examples=100)
@given(TEXT, st.sampled_from(["", " ", "\n"]), TEXT)
def test_any_answer(kind: str, prompt: str, between: str, answer: str) -> None:
    """Never a token without characters of it, never one that the prompt has a part of."""
    tokenizer = KINDS[kind]()
    placed, truth = place_answer(tokenizer, prompt, between, answer), None
    truth = expected(tokenizer, prompt, between, answer)
    if truth is None:
        assert placed.merged is not None
        assert placed.read == placed.ids == ()
    else:
        assert placed == truth


def test_the_token_that_merges_is_named() -> None:
    tokenizer = KINDS["ignore_merges"]()
    merged = place_answer(tokenizer, "They are French-", "", "speaking").merged
    assert merged == ("-speaking", "-")
    assert place_answer(tokenizer, "They are French", "", "-speaking").merged is None
    # No token is of both, but the last letters of the prompt are cut otherwise.
    gpt = KINDS["byte_level_bpe"]()
    merged = place_answer(gpt, "The cap", "", "ital of").merged
    assert merged is not None
    assert "The cap".endswith(merged.of_prompt)
    assert merged.token.startswith(merged.of_prompt)


@every_kind
def test_the_offsets_of_a_framed_prompt_are_the_prompts_own(kind: str) -> None:
    tokenizer, prompt = KINDS[kind](), "The Eiffel Tower is in"
    framed = encode_prompt(tokenizer, prompt, Frame("Question: ", "\nAnswer:\n"))
    whole = encode_prompt(tokenizer, f"Question: {prompt}\nAnswer:\n")
    assert framed.input_ids == whole.input_ids
    assert framed.tokens == whole.tokens
    for (first, last), (own_first, own_last) in zip(whole.offsets, framed.offsets, strict=True):
        shift = len("Question: ")
        inside = range(max(first - shift, 0), min(last - shift, len(prompt)))
        assert range(own_first, own_last) == inside or not (inside or own_first < own_last)
    longer = framed.going_on(tokenizer, whole.input_ids[-2:])
    assert longer.input_ids == whole.input_ids + whole.input_ids[-2:]
    assert longer.offsets[-2:] == ((len(prompt), len(prompt)),) * 2


def test_of_several_bos_tokens_one_is_read_if_that_is_asked_for() -> None:
    tokenizer = KINDS["tiktoken_style"]()
    bos, prompt = tokenizer.bos_token_id, "<s>The Eiffel Tower is in"
    kept = encode_prompt(tokenizer, prompt)
    stripped = encode_prompt(tokenizer, prompt, Frame(one_bos=True))
    assert kept.input_ids[:3].count(bos) == 2
    assert stripped.input_ids == kept.input_ids[1:]
    assert stripped.offsets == kept.offsets[1:]
    placed = place_answer(tokenizer, prompt, " ", "Paris", Frame(one_bos=True))
    assert placed.ids == place_answer(tokenizer, prompt, " ", "Paris").ids
    without = encode_prompt(tokenizer, "The Eiffel Tower is in", Frame(one_bos=True))
    assert without.input_ids == stripped.input_ids
