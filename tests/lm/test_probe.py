"""Each thing that the probe proves is shown to fail where it is not so."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, RwkvConfig

from ktrace.errors import KtraceError
from ktrace.lm.families import FAMILIES, LAYER, ModulePaths
from ktrace.lm.head import logits_from
from ktrace.lm.hooks import hooked
from ktrace.lm.load import language_model
from ktrace.lm.probe import prove
from tests.support.families import tiny_model
from tests.support.models import micro_llama, sharpened

N_LAYERS = 2
PATHS = FAMILIES["LlamaForCausalLM"]
BLOCK = PATHS.block


@pytest.fixture
def model() -> Any:
    return micro_llama(N_LAYERS).eval()


def refusal(model: Any, paths: ModulePaths = PATHS, n_layers: int = N_LAYERS) -> str:
    with pytest.raises(KtraceError) as raised:
        prove(model, paths, n_layers)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any("forward" in m.__dict__ for m in model.modules() if m is not patched(model))
    return str(raised.value)


def patched(model: Any) -> nn.Module | None:
    return getattr(model, "patched", [None])[0]


def patch(model: Any, module: Any, forward: Callable[..., Any]) -> None:
    """Give one module another forward; `original` is its first argument."""
    original = module.forward
    module.forward = lambda *args, **kwargs: forward(original, *args, **kwargs)
    model.patched = [module]  # in a list: not as a submodule


def test_right_paths_are_proven(model: Any) -> None:
    assert prove(model, PATHS, N_LAYERS) == 32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_in_every_dtype(model: Any, dtype: torch.dtype) -> None:
    assert prove(model.to(dtype), PATHS, N_LAYERS) == 32


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        (replace(PATHS, embedding="model.wte"), "'model.wte': LlamaForCausalLM.model has no 'wte'"),
        (replace(PATHS, block=f"model.h.{LAYER}"), "has no 'h'"),
        (replace(PATHS, attn=f"{BLOCK}.attention"), "model.layers.0 has no 'attention'"),
        (replace(PATHS, mlp=f"{BLOCK}.mlp.dense"), "model.layers.0.mlp has no 'dense'"),
        (replace(PATHS, mlp_input=f"{BLOCK}.ffn"), "model.layers.0 has no 'ffn'"),
    ],
)
def test_a_path_that_leads_nowhere(model: Any, paths: ModulePaths, named: str) -> None:
    assert named in refusal(model, paths)


def test_more_layers_than_there_are(model: Any) -> None:
    assert "'model.layers.2': LlamaForCausalLM.model.layers has no '2'" in refusal(model, PATHS, 3)


@pytest.mark.parametrize("site", ["block", "attn", "mlp", "mlp_input"])
def test_a_path_without_the_layers_number(model: Any, site: str) -> None:
    path = str(getattr(PATHS, site) or f"{BLOCK}.mlp").replace(LAYER, "0")
    message = refusal(model, replace(PATHS, **{site: path}))
    assert message.startswith(f"module path {path!r} is given for more than one layer")
    assert LAYER in message


def test_two_sites_at_one_module(model: Any) -> None:
    message = refusal(model, replace(PATHS, attn=PATHS.mlp))
    assert message == "module path 'model.layers.0.mlp' is given for more than one site"


def test_a_module_that_never_runs(model: Any) -> None:
    model.model.layers[1].spare = nn.Linear(32, 32)
    model.model.layers[0].spare = nn.Linear(32, 32)
    message = refusal(model, replace(PATHS, mlp=f"{BLOCK}.spare"))
    assert message == "module path 'model.layers.0.spare': ran 0 times in a pass, not once"


def test_a_module_that_runs_twice(model: Any) -> None:
    def twice(original: Callable[..., Any], states: torch.Tensor) -> Any:
        original(states)
        return original(states)

    patch(model, model.model.layers[1].mlp, twice)
    message = refusal(model, replace(PATHS, mlp=f"{BLOCK}.mlp.down_proj"))
    assert message == "module path 'model.layers.1.mlp.down_proj': ran 2 times in a pass, not once"


def test_a_module_shared_by_layers(model: Any) -> None:
    model.model.layers[1].mlp = model.model.layers[0].mlp
    message = refusal(model)
    assert message == "module path 'model.layers.0.mlp': ran 2 times in a pass, not once"


def test_a_wrong_shape(model: Any) -> None:
    # One axis more: a norm of each head's queries.
    for layer in model.model.layers:
        q_proj = layer.self_attn.q_proj
        layer.self_attn.q_proj = nn.Sequential(q_proj, nn.Unflatten(-1, (4, 8)), nn.Flatten(2))
    message = refusal(model, replace(PATHS, attn=f"{BLOCK}.self_attn.q_proj.1"))
    assert message == (
        "module path 'model.layers.0.self_attn.q_proj.1': its output has shape (8, 4, 4, 8), "
        "not (batch, position, d_model) = (8, 4, d_model)"
    )


@pytest.mark.parametrize("path", ["mlp.up_proj", "mlp.gate_proj", "self_attn.k_proj"])
def test_an_output_within_a_module(model: Any, path: str) -> None:
    """It runs once and moves the logits, but nothing of it is added to the residual stream."""
    site = "attn" if "attn" in path else "mlp"
    message = refusal(model, replace(PATHS, **{site: f"{BLOCK}.{path}"}))
    width = 16 if site == "attn" else 48
    assert message == (
        f"module path 'model.layers.0.{path}': its output is {width} wide, and the blocks' is 32: "
        "it cannot be what is added to the residual stream"
    )


def test_an_embedding_may_be_narrower_than_the_blocks() -> None:
    """OPT-350m projects it before the first block, and back after the last."""
    model = tiny_model("OPTForCausalLM", word_embed_proj_dim=16, do_layer_norm_before=False)
    assert prove(model.eval(), FAMILIES["OPTForCausalLM"], 4) == 16


def test_an_output_that_is_no_tensor(model: Any) -> None:
    message = refusal(model, replace(PATHS, embedding="model"))
    assert message == "module path 'model': its output is BaseModelOutputWithPast, not a tensor"


def test_an_output_that_is_ignored(model: Any) -> None:
    mlp = model.model.layers[0].mlp

    def ignoring(original: Callable[..., Any], states: torch.Tensor) -> Any:
        return original(states) * 0

    patch(model, mlp, ignoring)
    message = refusal(model, replace(PATHS, mlp=f"{BLOCK}.mlp.down_proj"))
    assert message == (
        "module path 'model.layers.0.mlp.down_proj': editing its output does not move the logits"
    )


def test_an_output_that_is_not_used_as_it_is(model: Any) -> None:
    """Replacing a state by itself must change nothing, whatever else looks at its identity."""
    mlp, given = model.model.layers[0].mlp, []
    mlp.down_proj.register_forward_hook(lambda module, args, output: given.append(output))
    hook = next(iter(mlp.down_proj._forward_hooks))

    def picky(original: Callable[..., Any], states: torch.Tensor) -> Any:
        output = original(states)
        return output if output is given[-1] else -output

    patch(model, mlp, picky)
    with pytest.raises(KtraceError, match="replacing every site by itself changed the logits"):
        prove(model, replace(PATHS, mlp=f"{BLOCK}.mlp.down_proj"), N_LAYERS)
    del mlp.down_proj._forward_hooks[hook]


def test_a_way_around_the_last_block(model: Any) -> None:
    """Then restoring the last layer at the last position would not be the clean run."""
    kept: list[torch.Tensor] = []
    model.model.embed_tokens.register_forward_hook(lambda m, args, output: kept.append(output))
    model.model.norm.register_forward_pre_hook(lambda m, args: (args[0] + kept[-1],))
    with pytest.raises(KtraceError, match=r"'model.layers.1'.*not those made of its output"):
        prove(model, PATHS, N_LAYERS)


def test_fewer_layers_than_there_are() -> None:
    message = refusal(micro_llama(3).eval(), PATHS, 2)
    assert message.startswith("module path 'model.layers.1': the model's logits are not those made")


@pytest.mark.parametrize("bias", [False, True])
def test_logits_are_rebuilt_from_the_last_hidden_state(model: Any, bias: bool) -> None:
    if bias:
        model.lm_head.bias = torch.nn.Parameter(torch.randn(model.config.vocab_size))
    lm = language_model(model)
    kept: list[torch.Tensor] = []
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    with torch.inference_mode():
        with hooked(lm.model, {lm.paths.sites(N_LAYERS - 1)["hidden"]: kept.append}):
            expected = lm.model(input_ids=ids).logits[:, -1]
        blocks = list(model.model.layers)
        how: Any = {"in_tuples": 0, "device": lm.device}
        found = logits_from(lm.model, blocks, kept[0][:, -1], **how)
        other = logits_from(lm.model, blocks, kept[0][:, 0], **how)
    torch.testing.assert_close(found, expected)
    assert (other - expected).abs().max() > 0.1
    assert not any("forward" in m.__dict__ for m in model.modules())


def test_a_model_without_attention_and_mlp(model: Any) -> None:
    paths = ModulePaths(PATHS.embedding, PATHS.block)
    assert prove(model, paths, N_LAYERS) == 32
    assert paths.sites(1) == {"hidden": "model.layers.1"}
    paths.require("hidden")
    with pytest.raises(KtraceError, match=r"no site 'mlp'.*its sites are hidden$"):
        paths.require("hidden", "mlp")


def test_blocks_that_return_more_than_two_things() -> None:
    """RWKV's models take three from each block, also when logits are made of the last states."""
    config = RwkvConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, context_length=32)
    model = sharpened(AutoModelForCausalLM.from_config(config)).eval()
    paths = ModulePaths("rwkv.embeddings", f"rwkv.blocks.{LAYER}")
    assert prove(model, paths, 2) == 32
