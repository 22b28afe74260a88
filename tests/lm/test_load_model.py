"""From a folder to a proven model, and what is refused on the way."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, PhiConfig
from transformers.activations import ACT2FN

from ktrace.config import ModelConfig
from ktrace.errors import KtraceError
from ktrace.lm import load
from ktrace.lm.families import FAMILIES
from ktrace.lm.load import language_model, load_language_model
from ktrace.lm.source import find_model
from tests.support.configs import configured
from tests.support.families import tiny_model
from tests.support.models import micro_llama, sharpened


@pytest.fixture
def copied(model_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model_folder, tmp_path / "copied")


def loaded(folder: Path, **options: Any) -> load.LanguageModel:
    source = find_model(str(folder), allow_pickle=options.get("allow_pickle", False))
    named = {"name": "test", "path": str(folder), "dtype": "auto", "modules": None}
    return load_language_model(source, configured(ModelConfig, **(named | options)))


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(KtraceError) as raised:
        loaded(folder, **options)
    message = str(raised.value)
    assert "\n" not in message
    return message


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_round_trip(model_folder: Path) -> None:
    lm = loaded(model_folder, device="cpu")
    stored = load_file(model_folder / "model.safetensors")
    assert torch.equal(lm.embedding_weight, stored["model.embed_tokens.weight"])
    assert (lm.n_layers, lm.d_embedding, lm.device.type) == (3, 32, "cpu")
    assert lm.tokenizer("Cape")["input_ids"]
    assert not lm.model.training
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("auto", torch.float32),
        ("float32", torch.float32),
        ("float64", torch.float64),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
    ],
)
def test_dtype(model_folder: Path, dtype: str, expected: torch.dtype) -> None:
    assert loaded(model_folder, dtype=dtype, device="cpu").model.dtype is expected


def test_auto_is_the_checkpoints_own_dtype(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    halved = {name: value.to(torch.bfloat16) for name, value in weights.items()}
    save_file(halved, copied / "model.safetensors", metadata={"format": "pt"})
    change_config(copied, dtype="bfloat16")
    assert loaded(copied, device="cpu").model.dtype is torch.bfloat16


def test_missing_weights_are_refused(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert refusal(copied) == (
        f"model.path={copied}: the checkpoint lacks weights: model.layers.1.mlp.down_proj.weight"
    )


def test_weights_without_a_place_are_named(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A config with fewer layers than the weights have: the model runs, but it is another one."""
    with caplog.at_level(logging.WARNING, logger="ktrace"):
        loaded(copied, device="cpu")
        assert caplog.messages == []
        change_config(copied, num_hidden_layers=2)
        assert loaded(copied, device="cpu").n_layers == 2
    [message] = caplog.messages
    assert message == (
        f"model.path={copied}: weights that the model has no place for are ignored: "
        "model.layers.2.input_layernorm.weight, model.layers.2.mlp.down_proj.weight, "
        "model.layers.2.mlp.gate_proj.weight and 6 more"
    )


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 64])
def test_garbage_for_weights(copied: Path, content: bytes) -> None:
    (copied / "model.safetensors").write_bytes(content)
    assert f"model.path={copied}: the model cannot be loaded: " in refusal(copied)


def test_a_truncated_file_of_weights(copied: Path) -> None:
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert f"model.path={copied}: the model cannot be loaded: " in refusal(copied)


def test_an_unknown_architecture(copied: Path) -> None:
    change_config(copied, architectures=["BertLMHeadModel"], model_type="bert")
    message = refusal(copied)
    assert message.startswith(f"model.path={copied}: architecture BertLMHeadModel is not known.")
    assert "LlamaForCausalLM" in message
    assert "model.modules.block" in message


# As `mosaicml/mpt-7b` has it, but for the sizes. It names the class of the code beside it.
MPT = {
    "architectures": ["MPTForCausalLM"],
    "attn_config": {
        "alibi": True,
        "alibi_bias_max": 8,
        "attn_impl": "torch",
        "attn_pdrop": 0,
        "attn_type": "multihead_attention",
        "attn_uses_sequence_id": False,
        "clip_qkv": None,
        "prefix_lm": False,
        "qk_ln": False,
        "softmax_scale": None,
    },
    "auto_map": {
        "AutoConfig": "configuration_mpt.MPTConfig",
        "AutoModelForCausalLM": "modeling_mpt.MPTForCausalLM",
    },
    "d_model": 32,
    "emb_pdrop": 0,
    "embedding_fraction": 1.0,
    "expansion_ratio": 4,
    "init_device": "cpu",
    "learned_pos_emb": True,
    "logit_scale": None,
    "max_seq_len": 64,
    "model_type": "mpt",
    "n_heads": 4,
    "n_layers": 2,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
    "resid_pdrop": 0,
    "tokenizer_name": "EleutherAI/gpt-neox-20b",
    "torch_dtype": "float32",
    "use_cache": False,
    "verbose": 0,
}


def published(copied: Path, model: Any, config: dict[str, Any] | None = None) -> Path:
    """A folder with a model's weights, and a config.json in place of its own if one is given."""
    (copied / "model.safetensors").unlink()
    model.save_pretrained(copied)
    if config is not None:
        (copied / "config.json").write_text(json.dumps(config))
    return copied


def test_a_checkpoint_that_names_the_class_of_its_own_code(copied: Path) -> None:
    config = {**MPT, "vocab_size": json.loads((copied / "config.json").read_text())["vocab_size"]}
    model = transformers.MptForCausalLM(
        transformers.MptConfig(
            d_model=32, n_heads=4, n_layers=2, max_seq_len=64, vocab_size=config["vocab_size"]
        )
    )
    lm = loaded(published(copied, sharpened(model), config), device="cpu")
    assert type(lm.model) is transformers.MptForCausalLM
    assert lm.paths == FAMILIES["MptForCausalLM"]


# Sizes of the text model and of the images' in a checkpoint that reads both.
TEXT = {
    "vocab_size": 420,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
IMAGES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def test_the_text_model_of_a_checkpoint_that_sees(copied: Path) -> None:
    """Llama-4 is published with its image tower; transformers builds the text model alone."""
    text = {**TEXT, "intermediate_size_mlp": 48, "num_local_experts": 4}
    config = transformers.Llama4Config(text_config=text, vision_config=IMAGES)
    published(copied, sharpened(transformers.Llama4ForConditionalGeneration(config)))
    named = json.loads((copied / "config.json").read_text())["architectures"]
    assert named == ["Llama4ForConditionalGeneration"]
    lm = loaded(copied, device="cpu")
    assert type(lm.model) is transformers.Llama4ForCausalLM
    assert lm.paths == FAMILIES["Llama4ForCausalLM"]


def test_a_checkpoint_whose_image_tower_stays_is_refused(copied: Path) -> None:
    """Of Gemma-3 transformers builds the whole, whose paths are others than the text model's."""
    config = transformers.Gemma3Config(text_config=TEXT, vision_config=IMAGES)
    published(copied, transformers.Gemma3ForConditionalGeneration(config))
    assert "architecture Gemma3ForConditionalGeneration is not known" in refusal(copied)


def test_code_that_may_run_is_not_taken_for_transformers_own(copied: Path) -> None:
    """What a class beside the weights calls its modules is its own affair."""
    change_config(copied, architectures=["Fancy"])
    assert loaded(copied, device="cpu").paths == FAMILIES["LlamaForCausalLM"]
    change_config(copied, auto_map={"AutoModelForCausalLM": "fancy.Fancy"})
    assert "architecture Fancy is not known" in refusal(copied, trust_remote_code=True)


def test_an_unknown_type_of_model(copied: Path) -> None:
    change_config(copied, model_type="fancy")
    assert f"model.path={copied}: config.json cannot be used: " in refusal(copied)


def test_code_beside_the_weights_runs_only_when_allowed(copied: Path, tmp_path: Path) -> None:
    change_config(copied, model_type="fancy", auto_map={"AutoConfig": "fancy.FancyConfig"})
    mark = tmp_path / "it-ran"
    (copied / "fancy.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig\n"
        f"Path({str(mark)!r}).touch()\n"
        "class FancyConfig(LlamaConfig):\n"
        "    model_type = 'fancy'\n"
    )
    assert "model.trust_remote_code=true" in refusal(copied)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gpu", "is no device; auto, cpu, cuda"),
        ("cuda:-1", "is no device; auto, cpu, cuda"),
        ("", "is no device; auto, cpu, cuda"),
        ("meta", "holds no numbers; auto, cpu, cuda"),
        ("cuda:77", "is not here ("),
        ("fpga", "is not here (this torch was built without it); auto, cpu, cuda"),
        ("privateuseone", "is not here (this torch was built without it); auto, cpu, cuda"),
    ],
)
def test_a_device_that_cannot_be_used(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", None)  # not read in vain
    message = refusal(model_folder, device=name)
    assert message.startswith(f"model.device={name!r} {reason}")
    assert len(message) < 250


def test_what_a_model_can_read(llama: load.LanguageModel) -> None:
    config: Any = llama.model.config
    assert llama.n_embeddings == config.vocab_size
    assert llama.max_positions == config.max_position_embeddings
    mpt = language_model(tiny_model("MptForCausalLM"))
    assert mpt.max_positions == mpt.model.config.max_seq_len == 32
    assert language_model(tiny_model("BloomForCausalLM")).max_positions is None


def test_no_fast_tokenizer(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        is_fast = False

    monkeypatch.setattr(load.AutoTokenizer, "from_pretrained", lambda *args, **kwargs: Slow())
    message = refusal(copied)
    assert message == (
        f"model.path={copied}: Slow gives no character offsets (it has no tokenizer.json); "
        "subjects cannot be found with it"
    )


def test_no_tokenizer(copied: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copied / name).unlink()
    assert f"model.path={copied}: no tokenizer can be loaded" in refusal(copied)


class Asked:
    """Stands in for `AutoModelForCausalLM.from_pretrained`, and keeps what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.options: dict[str, Any] = {}
        monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", self.take)

    def take(self, *args: Any, **options: Any) -> Any:
        self.options = options
        return micro_llama(1), {"missing_keys": [], "unexpected_keys": []}


def test_device_map_passes_through(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    for device_map in ("auto", {"": "cpu"}):
        loaded(model_folder, device_map=device_map)
        assert asked.options["device_map"] == device_map
    assert asked.options["use_safetensors"] is True
    assert asked.options["trust_remote_code"] is False


def test_a_misspelt_module_in_a_device_map(model_folder: Path) -> None:
    """transformers would leave the weights wherever it likes."""
    refused = refusal(model_folder, device_map={"model": "cpu", "model.layer.1": "cpu"})
    assert refused == (
        "model.device_map: LlamaForCausalLM has no module 'model.layer.1'; its first are model, "
        "lm_head"
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dtype": "float32"}, "eager"),
        ({"dtype": "auto"}, "eager"),  # of a checkpoint in float32
        ({"dtype": "float64"}, "sdpa"),
        ({"dtype": "float32", "attention": "sdpa"}, "sdpa"),
        ({"dtype": "float64", "attention": "eager"}, "eager"),
    ],
)
def test_attention_is_plain_in_float32_on_a_cpu_unless_asked(
    model_folder: Path, options: dict[str, str], expected: str
) -> None:
    lm = loaded(model_folder, device="cpu", **options)
    assert lm.model.config._attn_implementation == expected


@pytest.mark.parametrize(
    ("kind", "key", "named", "loads"),
    [
        (GPT2Config, "activation_function", "gelu_new", "gelu_pytorch_tanh"),
        (GPT2Config, "activation_function", "gelu", "gelu"),
        (PhiConfig, "hidden_act", "gelu_new", "gelu_pytorch_tanh"),
    ],
)
def test_a_fused_kernel_stands_for_the_same_function(
    copied: Path, kind: Any, key: str, named: str, loads: str
) -> None:
    sizes = {"vocab_size": 500, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 48}
    config = kind(num_attention_heads=4, **sizes, **{key: named})
    AutoModelForCausalLM.from_config(config).save_pretrained(copied)
    lm = loaded(copied, device="cpu")
    assert getattr(lm.model.config, key) == loads
    states = torch.linspace(-9, 9, 10001)
    torch.testing.assert_close(ACT2FN[loads](states), ACT2FN[named](states), rtol=1e-5, atol=1e-6)


def test_attention_passes_through(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    loaded(model_folder, attention="flash_attention_2")
    assert asked.options["attn_implementation"] == "flash_attention_2"


def test_unknown_attention(model_folder: Path) -> None:
    assert "the model cannot be loaded: " in refusal(model_folder, attention="bogus")


@pytest.mark.parametrize("allow", [False, True])
def test_pickled_weights_only_when_allowed(copied: Path, allow: bool) -> None:
    weights = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    torch.save(weights, copied / "pytorch_model.bin")
    if not allow:
        assert "has no weights: no *.safetensors in it" in refusal(copied)
        return
    lm = loaded(copied, allow_pickle=True, device="cpu")
    assert torch.equal(lm.embedding_weight, weights["model.embed_tokens.weight"])


def test_quantization_without_its_packages(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "find_spec", lambda name: None)
    assert refusal(model_folder, quantization="int8") == (
        "model.quantization=int8 needs bitsandbytes and accelerate: pip install 'ktrace[large]'"
    )


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_quantization_passes_through(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, bits: str
) -> None:
    asked = Asked(monkeypatch)
    monkeypatch.setattr(load, "find_spec", lambda name: name)
    loaded(model_folder, quantization=bits, dtype="bfloat16", device="cpu")
    config = asked.options["quantization_config"]
    assert (config.load_in_8bit, config.load_in_4bit) == (bits == "int8", bits == "int4")
    assert asked.options["device_map"] == {"": "cpu"}
    if bits == "int4":
        assert config.bnb_4bit_compute_dtype is torch.bfloat16


def test_a_model_in_memory_is_proven_too() -> None:
    model = micro_llama(1)
    model.__class__ = type("FancyForCausalLM", (type(model),), {})
    with pytest.raises(KtraceError, match="FancyForCausalLM: architecture FancyForCausalLM"):
        language_model(model)
