"""Each position has the role that the published figures give it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktrace.facts import Span, role_of_positions
from ktrace.terms import ROLES


@pytest.mark.parametrize(
    ("span", "n_positions", "expected"),
    [
        pytest.param(
            Span(2, 6),
            10,
            (
                None,
                None,
                "first subject",
                "middle subject",
                "middle subject",
                "last subject",
                "first subsequent",
                "further",
                "further",
                "last",
            ),
            id="all-six",
        ),
        pytest.param(
            Span(0, 2),
            4,
            ("first subject", "last subject", "first subsequent", "last"),
            id="two-tokens-and-no-further",
        ),
        pytest.param(
            Span(1, 2),
            5,
            (None, "last subject", "first subsequent", "further", "last"),
            id="single-token",
        ),
        pytest.param(
            Span(0, 2), 3, ("first subject", "last subject", "last"), id="one-token-after-it"
        ),
        pytest.param(
            Span(1, 4), 4, (None, "first subject", "middle subject", "last"), id="subject-ends-it"
        ),
        pytest.param(Span(1, 2), 2, (None, "last"), id="single-token-ends-it"),
        pytest.param(Span(0, 1), 1, ("last",), id="nothing-else"),
    ],
)
def test_roles(span: Span, n_positions: int, expected: tuple[str | None, ...]) -> None:
    assert role_of_positions(span, n_positions) == expected


@pytest.mark.parametrize("span", [Span(2, 2), Span(3, 2), Span(-1, 2), Span(2, 6)])
def test_a_span_outside_the_prompt_is_an_error(span: Span) -> None:
    with pytest.raises(ValueError, match="does not lie inside 5 positions"):
        role_of_positions(span, 5)


@settings(derandomize=True, deadline=None)
@given(st.data())
def test_every_position_from_the_subject_on_has_one_role(data: st.DataObject) -> None:
    n_positions = data.draw(st.integers(1, 30))
    start = data.draw(st.integers(0, n_positions - 1))
    stop = data.draw(st.integers(start + 1, n_positions))
    roles = role_of_positions(Span(start, stop), n_positions)
    assert len(roles) == n_positions
    assert set(roles[:start]) <= {None}
    assert set(roles[start:]) <= set(ROLES)
    # They never go back: a heatmap's rows are in the order of the prompt.
    order = [ROLES.index(role) for role in roles[start:] if role is not None]
    assert order == sorted(order)
    assert roles[-1] == "last"
    for once in ("first subject", "last subject", "first subsequent", "last"):
        assert roles.count(once) <= 1
    subject_roles = ("first subject", "middle subject", "last subject")
    assert not set(roles[stop:]) & set(subject_roles)
    if stop < n_positions:
        assert roles[stop - 1] == "last subject"
