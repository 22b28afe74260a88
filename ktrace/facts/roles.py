"""The role of each position in its prompt (the rows of the published figures)."""

from ktrace.facts.span import Span
from ktrace.terms import ROLES

_FIRST, _MIDDLE, _LAST_SUBJECT, _SUBSEQUENT, _FURTHER, _LAST = ROLES


def role_of_positions(span: Span, n_positions: int) -> tuple[str | None, ...]:
    """One role for each position, shape `(n_positions,)`; None before the subject.

    Every position has at most one role, so no effect is counted twice. Where two would fit:
    the only token of a subject is its last one (it holds the whole subject); the prompt's last
    position is `last`, even if the subject ends there, because the answer is read from it.

    Raises:
        ValueError: the span does not lie inside the prompt.
    """
    start, stop = span
    if not 0 <= start < stop <= n_positions:
        raise ValueError(f"span {start}..{stop} does not lie inside {n_positions} positions")
    roles: list[str | None] = [None] * start
    roles += [_FIRST] + [_MIDDLE] * (stop - start - 1)
    roles[stop - 1] = _LAST_SUBJECT
    roles += [_SUBSEQUENT] + [_FURTHER] * (n_positions - stop)
    roles = roles[:n_positions]
    roles[-1] = _LAST
    return tuple(roles)
