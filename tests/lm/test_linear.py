"""oneDNN's linear are the model's own to rounding, and its layers are put back."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from ktrace.lm import linear as linear_module
from ktrace.lm.linear import onednn_products
from tests.support.families import tiny_model
from tests.support.models import micro_llama

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)


# Small layers too.
any_width = partial(onednn_products, least_weights=0)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the states that oneDNN multiplied."""
    product = linear_module._operator()
    assert product is not None
    shapes: list[tuple[int, ...]] = []

    def noted(states: torch.Tensor, weight: torch.Tensor, bias: Any) -> torch.Tensor:
        shapes.append(tuple(states.shape))
        return product(states, weight, bias)

    monkeypatch.setattr(linear_module, "_operator", lambda: noted)
    return shapes


def replaced(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in module.__dict__]


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "GPT2LMHeadModel"])
@torch.inference_mode()
def test_a_model_says_the_same(architecture: str, called: list[tuple[int, ...]]) -> None:
    model = tiny_model(architecture).eval()
    ids = torch.arange(1, 22).view(3, 7)
    expected = model(input_ids=ids).logits
    assert not called
    with any_width(model):
        found = model(input_ids=ids).logits
        assert "lm_head" in replaced(model)
    assert len(called) == sum(type(m).__name__ in ("Linear", "Conv1D") for m in model.modules())
    torch.testing.assert_close(found, expected)
    assert not replaced(model)
    assert torch.equal(model(input_ids=ids).logits, expected)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(0,), (1,), (16,), (3, 7), (5, 0), (2, 3, 4)])
@torch.inference_mode()
def test_any_number_of_states(
    shape: tuple[int, ...], bias: bool, called: list[tuple[int, ...]]
) -> None:
    linear = nn.Linear(12, 20, bias=bias)
    # Every second: strided, as last positions are.
    states = torch.randn(*shape, 24)[..., ::2]
    with any_width(linear):
        found = linear(states)
    assert len(called) == 1
    torch.testing.assert_close(found, linear(states))


def test_numbers_of_states_have_few_sizes() -> None:
    """oneDNN keeps kernels for each."""
    sizes = [linear_module._rounded_up(n) for n in range(1, 4097)]
    assert all(n <= size for n, size in enumerate(sizes, start=1))
    assert all(size <= max(16, n * 17 / 16 + 1, n + 15) for n, size in enumerate(sizes, start=1))
    assert len(set(sizes)) <= 16 * 5
    assert sorted(set(sizes)) == sorted({linear_module._rounded_up(size) for size in sizes})


@torch.inference_mode()
def test_other_layers_keep_their_own(called: list[tuple[int, ...]]) -> None:
    class Special(nn.Linear):
        pass

    own = nn.Linear(4, 4)
    own.__dict__["forward"] = lambda states: states + 1
    others = nn.ModuleList([own, Special(4, 4), nn.Linear(4, 4, dtype=torch.float64)])
    with any_width(others):
        assert torch.equal(own(torch.zeros(2, 4)), torch.ones(2, 4))
        assert replaced(others) == ["0"]
    assert "forward" in own.__dict__
    assert not called


@pytest.mark.parametrize("bias", [torch.arange(16.0)[::2], torch.ones(8, dtype=torch.float64)])
def test_a_bias_that_onednn_would_misread(bias: torch.Tensor) -> None:
    linear = nn.Linear(4, 8)
    linear.bias = nn.Parameter(bias)
    with any_width(linear):
        assert not replaced(linear)


def test_layers_are_put_back_after_an_error() -> None:
    model = micro_llama(1)
    with pytest.raises(ZeroDivisionError), any_width(model):
        raise ZeroDivisionError
    assert not replaced(model)


def test_small_layers_are_not_worth_it() -> None:
    layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(512, 512)])
    with onednn_products(layers):
        assert replaced(layers) == ["1"]


def test_a_torch_without_it_multiplies_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    linear = nn.Linear(4, 4)
    with any_width(linear):
        assert not replaced(linear)


@torch.inference_mode()
def test_switching_onednn_off_is_heeded() -> None:
    linear = nn.Linear(4, 4)
    with torch.backends.mkldnn.flags(enabled=False), any_width(linear):
        assert not replaced(linear)
