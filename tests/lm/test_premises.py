"""Each thing that tracing takes for granted of a model is refused where it is not so."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

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
        lambda states: states + 0.05 * states.mean(dim=0, keepdim=True),
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


def test_a_layers_number_is_in_the_message() -> None:
    assert LAYER not in refusal(mlp_gives(micro_llama(), lambda states: states.roll(1, dims=1)))


def test_rows_that_see_each_other_in_the_head() -> None:
    model = micro_llama()
    norm = model.model.norm
    original = norm.forward
    norm.forward = lambda states: original(states - 0.5 * states.mean(dim=0, keepdim=True))
    assert "hangs on what else is in the batch" in refusal(model)


@pytest.mark.parametrize(
    ("architecture", "sites", "said"),
    [
        (
            "BloomForCausalLM",
            {"attn": "self_attention", "mlp": None},
            "give model.modules.mlp, too",
        ),
        ("LlamaForCausalLM", {"attn": "self_attn", "mlp": None}, "give model.modules.mlp, too"),
        (
            "LlamaForCausalLM",
            {"attn": "post_attention_layernorm"},
            "does not come out of its block",
        ),
        (
            "LlamaForCausalLM",
            {"mlp": "input_layernorm"},
            "the block's output is no sum of its input",
        ),
        ("LlamaForCausalLM", {"attn": "mlp.down_proj"}, "does not come out of its block"),
        ("OpenAIGPTLMHeadModel", {}, "the block's output is no sum of its input and"),
    ],
)
def test_paths_of_a_user_are_proven_or_refused(
    architecture: str, sites: dict[str, str | None], said: str
) -> None:
    paths = FAMILIES[architecture]
    given = {site: path and f"{paths.block}.{path}" for site, path in sites.items()}
    without = {"mlp_input": None} if "mlp" in sites else {}
    model = tiny_model(architecture)
    language_model(model)
    message = refusal(model, replace(paths, **given, **without))
    assert message.startswith("module path '")
    assert said in message


def test_an_mlp_alone_can_be_proven() -> None:
    """It is the last to be added: nothing that it changes comes after it in its block."""
    paths = FAMILIES["LlamaForCausalLM"]
    assert language_model(micro_llama(), paths=replace(paths, attn=None)).paths.attn is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_numbers_are_called_so(dtype: torch.dtype) -> None:
    model = mlp_gives(micro_llama(), lambda states: states * 1e38 * 1e38).to(dtype)
    assert refusal(model).endswith(
        f"gives no numbers (NaN or infinity) for a made-up prompt with model.dtype="
        f"{str(dtype).removeprefix('torch.')}: take another"
    )


@pytest.mark.parametrize("n_tokens", [2, 5])
def test_models_too_small_to_be_proven(n_tokens: int) -> None:
    assert refusal(micro_llama(vocabulary=n_tokens)) == (
        f"LlamaForCausalLM has {n_tokens} token embeddings: ktrace needs 6 to prove it"
    )
    model = AutoModelForCausalLM.from_config(GPT2Config(n_positions=n_tokens, n_embd=8, n_head=2))
    assert refusal(model) == (
        f"GPT2LMHeadModel reads {n_tokens} tokens at the most: ktrace needs 6 to prove it"
    )


def test_the_smallest_models_are_proven() -> None:
    language_model(micro_llama(1, vocabulary=6))
