"""From the subject's characters to its tokens."""

from collections.abc import Container, Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """Half-open range of token positions, `start <= position < stop`."""

    start: int
    stop: int


def changed_span(ids: Sequence[int], other: Sequence[int]) -> Span:
    """From the first token of a prompt that another prompt has not in its place to the last one.

    Args:
        ids: token ids, `(n_positions,)`.
        other: those of the other prompt. Where it is longer or shorter, what lies between the
            common beginning and the common end counts as changed; where it is the same, the last
            token.
    """
    most = min(len(ids), len(other))
    start = next((n for n in range(most) if ids[n] != other[n]), most)
    same_end = range(most - start)
    end = next((n for n in same_end if ids[-1 - n] != other[-1 - n]), len(same_end))
    start = min(start, len(ids) - 1)
    return Span(start, max(len(ids) - end, start + 1))


def token_span(
    offsets: Sequence[tuple[int, int]], start: int, stop: int, blank: Container[int] = ()
) -> Span:
    """From the first token that holds any character of `[start, stop)` to the last.

    Only character offsets are trusted: whitespace words and re-tokenised subjects go wrong on
    punctuation, possessives and merged tokens. A token that reaches beyond the subject (a subject
    that is part of a longer word) belongs to it. Special tokens have empty offsets and never do,
    nor do tokens that hold nothing but blanks of it: the word behind it may begin with its last
    one.

    Args:
        offsets: `(first character, one past the last)` for each token, shape `(n_positions, 2)`.
        start: first character of the subject.
        stop: one past its last character.
        blank: places of characters of which nothing shows (`ktrace.facts.text.blanks`).

    Raises:
        ValueError: no token holds any of the characters.
    """
    inside = [
        position
        for position, (first, last) in enumerate(offsets)
        if any(place not in blank for place in range(max(first, start), min(last, stop)))
    ]
    if not inside:
        raise ValueError(f"no token covers the characters {start} to {stop}")
    return Span(inside[0], inside[-1] + 1)
