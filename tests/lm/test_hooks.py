"""Hooks see what a module gives, change it if they say so, and are gone afterwards."""

from typing import Any

import pytest
import torch
from torch import nn

from ktrace.errors import KtraceError
from ktrace.lm.hooks import hooked, module_at


class Tupled(nn.Module):
    """Returns its states with something else."""

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, str]:
        return states * 2, "weights"


class Flattening(nn.Module):
    """Calls its projection without a positions axis, as OPT's blocks do."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Identity()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.projection(states.flatten(0, 1)).view(states.shape)


class Micro(nn.Module):
    """Three modules, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Identity()
        self.inner = nn.ModuleList([Tupled(), Flattening()])

    def forward(self, states: torch.Tensor) -> Any:
        states, rest = self.inner[0](self.first(states))
        assert rest == "weights"
        return self.inner[1](states)


STATES = torch.arange(2 * 3 * 4.0).view(2, 3, 4)


def hooks_left(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


def test_an_edit_replaces_the_output() -> None:
    model = Micro()
    with hooked(model, {"first": lambda output: output + 1}):
        assert hooks_left(model)
        assert torch.equal(model(STATES), (STATES + 1) * 2)
    assert torch.equal(model(STATES), STATES * 2)
    assert not hooks_left(model)


def test_an_edit_that_returns_none_only_watches() -> None:
    seen: list[torch.Tensor] = []
    model = Micro()
    with hooked(model, {"first": seen.append}):
        assert torch.equal(model(STATES), STATES * 2)
    assert torch.equal(seen[0], STATES)


def test_of_a_tuple_the_first_element_is_edited_and_the_rest_kept() -> None:
    model = Micro()
    with hooked(model, {"inner.0": lambda output: output + 1}):
        assert torch.equal(model(STATES), STATES * 2 + 1)


def test_a_flattened_output_is_shown_with_both_axes() -> None:
    model, shapes = Micro(), []

    def edit(output: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(output.shape))
        edited = output.clone()
        edited[1, 2] = 0
        return edited

    with hooked(model, {"inner.1.projection": edit}):
        found = model(STATES)
    assert shapes == [(2, 3, 4)]
    expected = STATES * 2
    expected[1, 2] = 0
    assert torch.equal(found, expected)
    assert not hooks_left(model)


def test_hooks_run_after_those_that_were_there_before() -> None:
    model, order = Micro(), []
    handle = model.first.register_forward_hook(lambda *args: order.append("outer"))
    with (
        hooked(model, {"first": lambda output: order.append("a")}),
        hooked(model, {"first": lambda output: order.append("b")}),
    ):
        model(STATES)
    assert order == ["outer", "a", "b"]
    assert len(model.first._forward_hooks) == 1  # only ours are removed
    handle.remove()


def test_all_are_removed_after_an_exception() -> None:
    model = Micro()

    def broken(output: torch.Tensor) -> None:
        raise ValueError("in the edit")

    with (
        pytest.raises(ValueError, match="in the edit"),
        hooked(model, {"first": lambda output: None, "inner.1.projection": broken}),
    ):
        model(STATES)
    assert not hooks_left(model)
    with pytest.raises(ValueError, match="in the body"), hooked(model, {"first": lambda o: None}):
        raise ValueError("in the body")
    assert not hooks_left(model)


def test_a_bad_path_leaks_nothing() -> None:
    model = Micro()
    edits = {"first": lambda output: None, "inner.2.projection": lambda output: None}
    message = "module path 'inner.2.projection': Micro.inner has no '2', it has 0, 1"
    with pytest.raises(KtraceError) as raised, hooked(model, edits):
        raise AssertionError("must not be entered")
    assert str(raised.value) == message
    assert not hooks_left(model)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("last", "Micro has no 'last', it has first, inner"),
        ("first.weight", "Micro.first has no 'weight', it has nothing"),
        ("", "Micro has no '', it has first, inner"),
    ],
)
def test_a_path_that_leads_nowhere_says_where_it_ends(path: str, message: str) -> None:
    with pytest.raises(KtraceError) as raised:
        module_at(Micro(), path)
    assert str(raised.value) == f"module path {path!r}: {message}"
