"""The role of each position in its prompt (the rows of the published figures)."""

from ktrace.facts.span import Span

# The scheme `rome`. Coarser schemes are groupings of these (ktrace/analysis/roles.py).
ROLES = (
    "first subject",
    "middle subject",
    "last subject",
    "first subsequent",
    "further",
    "last",
)


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
    roles += ["first subject"] + ["middle subject"] * (stop - start - 1)
    roles[stop - 1] = "last subject"
    roles += ["first subsequent"] + ["further"] * (n_positions - stop)
    roles = roles[:n_positions]
    roles[-1] = "last"
    return tuple(roles)
