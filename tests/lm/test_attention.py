"""Heads and edges are proven on the loaded model, or refused in a line."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from ktrace.errors import KtraceError
from ktrace.lm.attention import require_edges, require_heads
from ktrace.lm.families import FAMILIES
from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from tests.support.families import tiny_model
from tests.support.models import micro_llama

Require = Callable[[LanguageModel], None]


def refusal(require: Require, lm: LanguageModel) -> str:
    with pytest.raises(KtraceError) as raised:
        require(lm)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_heads_and_edges_of_a_llama_are_proven(dtype: torch.dtype) -> None:
    lm = language_model(micro_llama().to(dtype))
    require_heads(lm)
    require_edges(lm)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


def with_heads_at(path: str) -> LanguageModel:
    return language_model(micro_llama(), paths=replace(FAMILIES["LlamaForCausalLM"], heads=path))


@pytest.mark.parametrize(
    "projection",
    [
        "self_attn.q_proj",  # what it is called with is what the attention reads
        "self_attn.v_proj",
        "mlp.down_proj",  # the output projection of another module
        "mlp.up_proj",
    ],
)
def test_a_path_that_is_no_output_projection(projection: str) -> None:
    lm = with_heads_at(f"model.layers.[LAYER_NUM].{projection}")
    message = refusal(require_heads, lm)
    assert message.startswith(f"module path 'model.layers.0.{projection}")
    assert "is not the output projection of that attention" in message or "not all that" in message


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n_heads", [2, 3, 1])
def test_heads_that_are_more_than_one(
    n_heads: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice over several heads, or over parts of them, mixes by no two weights."""
    lm = language_model(micro_llama().to(dtype))
    monkeypatch.setattr(LanguageModel, "n_heads", lambda self, layer: n_heads)
    message = refusal(require_heads, lm)
    projection = "module path 'model.layers.0.self_attn.o_proj@input'"
    if n_heads == 3:
        assert message == (
            f"{projection}: it is called with 32 numbers, which are no 3 heads "
            "(num_attention_heads of the config)"
        )
    else:
        assert message.startswith(f"{projection}: numbers 0 to {32 // n_heads - 1} of what it is")
        assert message.endswith(f"it has no {n_heads} heads side by side")


def test_heads_that_lie_otherwise() -> None:
    """Features of all heads in turns: what a reshape without its transpose gives."""
    model = micro_llama()
    order = torch.arange(32).view(4, 8).T.flatten()
    for layer in model.model.layers:
        projection = layer.self_attn.o_proj
        layer.self_attn.o_proj = InTurns(projection, order)
    message = refusal(require_heads, with_paths(model, "self_attn.o_proj.inner"))
    assert message.endswith("it has no 4 heads side by side")
    # Before they are put in turns they lie side by side.
    require_heads(with_paths(model, "self_attn.o_proj"))


class InTurns(torch.nn.Module):
    """A projection whose weights, and what it is called with, are in another order."""

    def __init__(self, projection: torch.nn.Linear, order: torch.Tensor) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(len(order), projection.out_features, bias=False)
        self.inner.weight.data = projection.weight.data[:, order]
        self.order = order

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(states[..., self.order])
        return found


def with_paths(model: Any, heads: str) -> LanguageModel:
    paths = replace(FAMILIES["LlamaForCausalLM"], heads=f"model.layers.[LAYER_NUM].{heads}")
    return language_model(model, paths=paths)


@contextmanager
def masks(model: Any, change: Callable[[Any], Any], layer: int = 1) -> Iterator[LanguageModel]:
    """A model one of whose attentions is called with another mask than its block."""
    lm = language_model(model)
    attention = model.model.layers[layer].self_attn
    original = attention.forward

    def forward(*args: Any, attention_mask: Any = None, **options: Any) -> Any:
        return original(*args, attention_mask=change(attention_mask), **options)

    attention.forward = forward
    yield lm


def all_queries_are_cut(mask: Any) -> Any:
    """What one query does not see, later ones do not either."""
    if mask is None:
        return None
    hidden = mask[..., -1:, :] != mask[..., -1:, -1:]
    return torch.where(hidden, mask[..., -1:, :], mask)


def test_a_model_that_takes_no_notice_of_its_masks() -> None:
    """In one layer: what is hidden is seen; in all of them, nothing is changed either."""
    with masks(micro_llama(), lambda mask: None) as lm:
        message = refusal(require_edges, lm)
    assert message.startswith("module path 'model.layers.1': its attention still sees what a mask")


def test_a_mask_that_changes_other_queries() -> None:
    with masks(micro_llama(), all_queries_are_cut) as lm:
        message = refusal(require_edges, lm)
    assert message.endswith("or a mask changes other queries: no edge can be cut")


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("OpenAIGPTLMHeadModel", "its blocks take no mask, so no edge can be cut"),
        ("ZayaForCausalLM", "no edge can be cut"),
        ("InklingForCausalLM", "no edge can be cut"),
        ("MambaForCausalLM", "this model has no site 'attn'"),
    ],
)
def test_families_whose_edges_cannot_be_cut(architecture: str, words: str) -> None:
    assert words in refusal(require_edges, language_model(tiny_model(architecture)))


@pytest.mark.parametrize(
    "architecture",
    [
        "DiffLlamaForCausalLM",
        "InklingForCausalLM",
        "JetMoeForCausalLM",
        "MambaForCausalLM",
    ],
)
def test_families_without_heads_to_restore(architecture: str) -> None:
    message = refusal(require_heads, language_model(tiny_model(architecture)))
    assert "this model has no site 'head'" in message


@pytest.mark.parametrize("architecture", ["OpenAIGPTLMHeadModel", "ZayaForCausalLM"])
def test_heads_need_no_mask(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What their projection is called with is all that attention gives, and is cut into heads."""
    lm = language_model(tiny_model(architecture))
    require_heads(lm)
    monkeypatch.setattr(LanguageModel, "n_heads", lambda self, layer: 5)
    assert "which are no 5 heads" in refusal(require_heads, lm)


def test_a_model_with_paths_of_its_own_and_none_of_heads() -> None:
    lm = language_model(micro_llama(), paths=replace(FAMILIES["LlamaForCausalLM"], heads=None))
    assert "this model has no site 'head'" in refusal(require_heads, lm)
    require_edges(lm)
