"""What shows of a text, and one text within another however it is spelled."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktrace.facts.text import blanks, difference, equivalents, is_blank, line_ends, trimmed


@pytest.mark.parametrize(
    "letter",
    [" ", "\t", "\n", "\r", "\u00a0", "\u2028", "\u3000", "\u200b", "\ufeff", "\u200e", "\u2060"],
    ids=lambda letter: f"U+{ord(letter):04X}",
)
def test_nothing_shows_of_white_space_and_of_marks_without_width(letter: str) -> None:
    assert is_blank(letter)
    assert trimmed(f"{letter}{letter}a b{letter}") == (2, 5)
    assert blanks(f"a{letter}b") == {1}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("❤\ufe0f", id="variation selector"),
        pytest.param("👩\u200d🚀", id="joined emoji"),
        pytest.param("🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", id="flag"),
        pytest.param("e\u0301", id="combining accent"),
        pytest.param("क्\u200d", id="half form"),
        pytest.param("ู", id="a Thai vowel alone"),
    ],
)
def test_what_changes_how_its_neighbour_looks_is_kept(text: str) -> None:
    assert trimmed(f" {text} ") == (1, 1 + len(text))


def test_a_text_of_which_nothing_shows() -> None:
    assert trimmed(" \u200b\n") == (0, 0)
    assert trimmed("") == (0, 0)
    assert line_ends(" \r\n \n\u200b") == "\r\n\n"


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize(
    ("text", "part", "places"),
    [
        pytest.param(decomposed("In São Paulo is"), "São Paulo", [(3, 13)], id="NFD prompt"),
        pytest.param("In São Paulo is", decomposed("São Paulo"), [(3, 12)], id="NFD subject"),
        pytest.param("Zoe\u0308 met Zoë", "Zoë", [(0, 4), (9, 12)], id="both"),
        pytest.param("e\u0301", "e", [], id="part of a letter"),
        pytest.param(decomposed("한국의"), "한국", [(0, 6)], id="Korean"),
        pytest.param(decomposed("한국의"), "하", [], id="part of a syllable"),
        pytest.param("Ṩ x", "S\u0307\u0323", [(0, 1)], id="marks in another order"),
        pytest.param("Å", "\u212b", [(0, 1)], id="the sign of a unit"),
        pytest.param("Rome", "Paris", [], id="not there"),
    ],
)
def test_a_part_is_found_however_it_is_composed(
    text: str, part: str, places: list[tuple[int, int]]
) -> None:
    assert equivalents(text, part) == places


LETTERS = st.text(st.sampled_from("aeé한ṩ\u0301\u0323 Å국"), max_size=6)


@settings(derandomize=True, deadline=None)
@given(LETTERS, LETTERS.filter(bool), LETTERS)
def test_every_place_is_the_same_text_and_apart_from_the_rest(
    before: str, part: str, after: str
) -> None:
    nfc = unicodedata.normalize
    text = nfc("NFD", before + part + after)
    places = equivalents(text, part)
    for start, stop in places:
        assert nfc("NFC", text[start:stop]) == nfc("NFC", part)
        pieces = text[:start], text[start:stop], text[stop:]
        assert "".join(nfc("NFC", piece) for piece in pieces) == nfc("NFC", text)
    apart = "".join(nfc("NFC", piece) for piece in (before, part, after))
    marks = [unicodedata.combining(nfc("NFD", piece)[0]) for piece in (part, after) if piece]
    if apart == nfc("NFC", text) and not any(marks):
        assert len(nfc("NFD", before)) in [start for start, _ in places]


@pytest.mark.parametrize(
    ("text", "part", "said"),
    [
        ("in New\u00a0York is", "New York", "'New\\xa0York', with U+00A0 in place of U+0020"),
        ("the St John’s is", "St John's", "'St John’s', with U+2019 (’) in place of U+0027 (')"),
        ("the Cafe is", "Café", "'Cafe', with U+0065 (e) in place of U+00E9 (é)"),
        ("the Eiffel Tower", "eiffel tower", "'Eiffel Tower', with U+0045 (E) in place of U+0065"),
        ("Par\u200bis is", "Paris", "'Par\\u200bis', with U+200B in place of U+0069 (i)"),
        ("new  york is", "new york", "'new  york', with U+0020 in place of U+0079 (y)"),
        ("Ａ is", "A", "'Ａ', with U+FF21 (Ａ) in place of U+0041 (A)"),
        ("from 1914–1918", "1914-1918", "'1914–1918', with U+2013 (–) in place of U+002D (-)"),
    ],
)
def test_what_only_looks_alike_is_told_in_code_points(text: str, part: str, said: str) -> None:
    assert difference(text, part).startswith(f"; it holds {said}")


def test_what_does_not_look_alike_is_not() -> None:
    assert difference("Rome is in", "Paris") == ""
    assert difference("Rome is in", "\u0301") == ""
