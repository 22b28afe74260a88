"""From the subject's characters to its tokens."""

from collections.abc import Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """Half-open range of token positions, `start <= position < stop`."""

    start: int
    stop: int


def token_span(offsets: Sequence[tuple[int, int]], start: int, stop: int) -> Span:
    """Tokens that hold any character of `[start, stop)`.

    Only character offsets are trusted: whitespace words and re-tokenised subjects go wrong on
    punctuation, possessives and merged tokens. A token that reaches beyond the subject (a subject
    that is part of a longer word) belongs to it. Special tokens have empty offsets and never do.

    Args:
        offsets: `(first character, one past the last)` for each token, shape `(n_positions, 2)`.
        start: first character of the subject.
        stop: one past its last character.

    Raises:
        ValueError: no token holds any of the characters.
    """
    inside = [
        position
        for position, (first, last) in enumerate(offsets)
        if first < last and first < stop and last > start
    ]
    if not inside:
        raise ValueError(f"no token covers the characters {start} to {stop}")
    return Span(inside[0], inside[-1] + 1)
