"""The subject's characters become exactly the tokens that hold them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktrace.facts import Span, token_span

Offsets = list[tuple[int, int]]

#  offsets of "<s>", "The", " Eiffel", " Tower", " is", " in": GPT-2 tokens begin with their space
EIFFEL: Offsets = [(0, 0), (0, 3), (3, 10), (10, 16), (16, 19), (19, 22)]


@pytest.mark.parametrize(
    ("offsets", "characters", "expected"),
    [
        pytest.param(EIFFEL, (4, 16), Span(2, 4), id="tokens-begin-with-a-space"),
        pytest.param([(0, 3), (4, 10), (11, 16)], (4, 16), Span(1, 3), id="spaces-in-no-token"),
        pytest.param(EIFFEL, (4, 10), Span(2, 3), id="single-token"),
        pytest.param(EIFFEL, (0, 3), Span(1, 2), id="prompt-begins-with-subject-after-bos"),
        pytest.param(EIFFEL, (17, 22), Span(4, 6), id="prompt-ends-with-subject"),
        pytest.param([*EIFFEL, (0, 0)], (20, 22), Span(5, 6), id="special-token-at-the-end"),
        pytest.param([(0, 4), (4, 10)], (0, 6), Span(0, 2), id="part-of-a-longer-word"),
        pytest.param([(0, 9)], (3, 5), Span(0, 1), id="inside-one-token"),
        # Byte-level tokenizers cut one character into several tokens with the same offsets.
        pytest.param([(0, 1), (1, 2), (1, 2), (1, 2), (2, 4)], (1, 2), Span(1, 4), id="emoji"),
        # A special token inside the span has no characters, but it stands between its tokens.
        pytest.param([(0, 2), (0, 0), (2, 4)], (0, 4), Span(0, 3), id="special-token-inside"),
    ],
)
def test_tokens_that_hold_the_subject(
    offsets: Offsets, characters: tuple[int, int], expected: Span
) -> None:
    assert token_span(offsets, *characters) == expected


@pytest.mark.parametrize(
    "offsets",
    [[], [(0, 0), (0, 0)], [(0, 3), (6, 9)], [(5, 5)]],
    ids=["no-tokens", "special-tokens-only", "a-hole-where-it-is", "empty-inside-it"],
)
def test_a_subject_in_no_token_is_an_error(offsets: Offsets) -> None:
    with pytest.raises(ValueError, match="no token covers the characters 4 to 6"):
        token_span(offsets, 4, 6)


def test_a_token_that_holds_only_blanks_of_the_subject_is_none_of_its() -> None:
    """Byte-level tokenizers begin the word behind a subject with the blank between the two."""
    with_blank = (4, 17)
    assert token_span(EIFFEL, *with_blank) == Span(2, 5)
    assert token_span(EIFFEL, *with_blank, blank={3, 10, 16, 19}) == Span(2, 4)
    # One between its words belongs to it all the same.
    assert token_span([(0, 1), (1, 2), (2, 3), (3, 4)], 0, 4, blank={1, 3}) == Span(0, 3)
    with pytest.raises(ValueError, match="no token covers"):
        token_span(EIFFEL, 16, 17, blank={16})


@st.composite
def tokenized(draw: st.DrawFn) -> tuple[Offsets, int, int]:
    """Tokens that cover a text without holes, special tokens at its ends, and a piece of it."""
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=12))
    offsets, first = [], 0
    for length in lengths:
        offsets.append((first, first + length))
        first += length
    before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    start = draw(st.integers(0, first - 1))
    stop = draw(st.integers(start + 1, first))
    return [(0, 0)] * before + offsets + [(0, 0)] * after, start, stop


@settings(derandomize=True, deadline=None)
@given(tokenized())
def test_span_is_the_shortest_that_covers_the_subject(case: tuple[Offsets, int, int]) -> None:
    offsets, start, stop = case
    span = token_span(offsets, start, stop)
    first, last = offsets[span.start], offsets[span.stop - 1]
    assert first[0] <= start < first[1]
    assert last[0] < stop <= last[1]


@settings(derandomize=True, deadline=None)
@given(tokenized())
def test_a_special_token_in_front_shifts_the_span_by_one(case: tuple[Offsets, int, int]) -> None:
    offsets, start, stop = case
    span = token_span(offsets, start, stop)
    assert token_span([(0, 0), *offsets], start, stop) == Span(span.start + 1, span.stop + 1)
