"""Each thing that tracing takes for granted of a model is refused where it is not so."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from ktrace.errors import KtraceError
from ktrace.lm.families import FAMILIES
from ktrace.lm.load import language_model
from ktrace.lm.paths import LAYER, ModulePaths
from tests.support.families import tiny_model
from tests.support.models import micro_llama


def refusal(model: Any, paths: ModulePaths | None = None) -> str:
    with pytest.raises(KtraceError) as raised:
        language_model(model, paths=paths)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return str(raised.value)


def mlp_gives(model: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The model, with what one MLP gives changed."""
    mlp = model.model.layers[1].mlp
    original = mlp.forward
    mlp.forward = lambda states: change(original(states))
    return model


@pytest.mark.parametrize(
    "change",
    [
        lambda states: states + states.mean(dim=0, keepdim=True),  # the batch's mean
        lambda states: states[:1].expand_as(states),  # the first row's for all
        lambda states: states - states.amax(),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_see_each_other(change: Any, dtype: torch.dtype) -> None:
    message = refusal(mlp_gives(micro_llama(), change).to(dtype))
    assert message.startswith("LlamaForCausalLM: what it makes of a prompt hangs on what else is")


def test_positions_that_see_later_ones() -> None:
    model = mlp_gives(micro_llama(), lambda states: states + states.mean(dim=1, keepdim=True))
    assert "reads later tokens, too" in refusal(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("site", "module"), [("mlp", "mlp"), ("attn", "self_attention")], ids=["mlp", "attention"]
)
def test_a_module_that_returns_the_residual_with_its_output(
    dtype: torch.dtype, site: str, module: str
) -> None:
    """BLOOM's do. Restoring one would restore the stream."""
    paths = FAMILIES["BloomForCausalLM"]
    wrong = {site: f"{paths.block}.{module}"} | ({"mlp_input": None} if site == "mlp" else {})
    model = tiny_model("BloomForCausalLM").to(dtype)
    language_model(model)
    message = refusal(model, replace(paths, **wrong))
    assert message.startswith("module path 'transformer.h.0': its output is what ")
    assert f"transformer.h.0.{module}" in message
    assert "they hold the residual stream" in message


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "GPTJForCausalLM"])
def test_attention_and_mlp_in_each_others_place(architecture: str) -> None:
    """One after the other, and side by side."""
    paths = FAMILIES[architecture]
    message = refusal(tiny_model(architecture), replace(paths, attn=paths.mlp, mlp=paths.attn))
    assert "it is no MLP" in message or "it is no attention" in message


def test_an_mlp_that_looks_back() -> None:
    """As RWKV's does: what is restored at a position would not be that position's alone."""

    def shifted(states: torch.Tensor) -> torch.Tensor:
        return states + torch.nn.functional.pad(states, (0, 0, 1, 0))[:, :-1]

    model = mlp_gives(micro_llama(), shifted)
    paths = FAMILIES["LlamaForCausalLM"]
    message = refusal(model)
    expected = f"module path {paths.at(str(paths.mlp), 1)!r}: what it gives at a position hangs"
    assert message.startswith(expected)
    language_model(model, paths=replace(paths, mlp=f"{paths.block}.mlp.down_proj"))


def test_a_layers_number_is_in_the_message() -> None:
    assert LAYER not in refusal(mlp_gives(micro_llama(), lambda states: states.roll(1, dims=1)))
