"""From a folder to a proven model, and what is refused on the way."""

import json
import logging
import shutil
import sys
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
from ktrace.lm import load, quantization
from ktrace.lm.families import FAMILIES
from ktrace.lm.load import language_model, load_language_model
from ktrace.lm.paths import LAYER, ModulePaths
from ktrace.lm.source import find_model
from ktrace.terms import MEDIATOR_NAMES
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.suffix.engine import SuffixEngine
from tests.support.configs import configured
from tests.support.families import mediators_of, tiny_model
from tests.support.models import known_case, micro_llama, sharpened
from tests.support.places import ROOT
from tests.tracing.agreement import NOISE, largest_difference, made, scores


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


@pytest.mark.skipif(sys.platform != "linux", reason="it tells what is mapped by its files")
def test_processes_of_a_machine_share_a_checkpoints_pages(model_folder: Path) -> None:
    """In the checkpoint's own dtype weights are its file, mapped: no process has a copy."""

    def are_mapped(**options: Any) -> set[bool]:
        lm = loaded(model_folder, device="cpu", **options)
        lines = Path("/proc/self/maps").read_text().splitlines()
        mapped = [
            range(*(int(end, 16) for end in line.split()[0].split("-")))
            for line in lines
            if line.endswith(f"{model_folder.name}/model.safetensors")
        ]
        places = [weight.data_ptr() for weight in lm.model.parameters()]
        return {any(place in pages for pages in mapped) for place in places}

    assert are_mapped() == {True}
    assert are_mapped(dtype="float64") == {False}


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
    change_config(copied, architectures=["AlbertForMaskedLM"], model_type="albert")
    message = refusal(copied)
    assert message.startswith(f"model.path={copied}: architecture AlbertForMaskedLM is not known.")
    assert "LlamaForCausalLM" in message
    assert "model.modules.block" in message


@pytest.mark.parametrize(
    ("architecture", "model_type", "reason"),
    [
        ("BertForMaskedLM", "bert", "BertLMHeadModel cannot be traced: it is an encoder"),
        ("Gemma3nForCausalLM", "gemma3n_text", "keep several residual streams"),
        ("XLMWithLMHeadModel", "xlm", "it has no module for a block"),
    ],
)
def test_an_architecture_without_sites_is_refused_with_its_reason(
    copied: Path, architecture: str, model_type: str, reason: str
) -> None:
    (copied / "config.json").write_text(
        json.dumps({"architectures": [architecture], "model_type": model_type})
    )
    assert reason in refusal(copied)


@pytest.mark.parametrize(
    "modules", [None, {"embedding": "shared", "block": "decoder.block.[LAYER_NUM]"}]
)
@pytest.mark.parametrize("kind", ["T5", "Bart", "Pegasus"])
def test_an_encoder_decoder_is_refused_with_that_as_the_reason(
    copied: Path, kind: str, modules: dict[str, str] | None
) -> None:
    config = getattr(transformers, f"{kind}Config")()
    config.architectures = [f"{kind}ForConditionalGeneration"]
    config.save_pretrained(copied)
    assert refusal(copied, modules=modules) == (
        f"model.path={copied}: {kind}ForConditionalGeneration is an encoder-decoder: ktrace traces "
        "models that read the prompt with the layers that answer it"
    )


def test_module_paths_that_are_given_go_before_the_table(copied: Path) -> None:
    modules = {"embedding": "model.embed_tokens", "block": "model.layers.[LAYER_NUM]"}
    lm = loaded(copied, modules=modules, device="cpu")
    assert lm.paths == ModulePaths("model.embed_tokens", "model.layers.[LAYER_NUM]")
    change_config(copied, architectures=["Fancy"], auto_map={"AutoModelForCausalLM": "fancy.Fancy"})
    assert loaded(copied, modules=modules, device="cpu").paths == lm.paths


@pytest.mark.parametrize("is_decoder", [True, False])
def test_a_model_that_reads_both_ways_is_refused(is_decoder: bool) -> None:
    """Else positions before the subject would have effects."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(
        vocab_size=96, intermediate_size=48, is_decoder=is_decoder, **sizes
    )
    model = sharpened(transformers.BertLMHeadModel(config))
    paths = ModulePaths("bert.embeddings.word_embeddings", f"bert.encoder.layer.{LAYER}")
    if is_decoder:
        assert language_model(model, paths=paths).n_layers == 2
        return
    with pytest.raises(KtraceError, match="BertLMHeadModel reads later tokens, too"):
        language_model(model, paths=paths)


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


ROTARY = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
QWEN_IMAGES = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
QWEN_TOKENS = {
    "image_token_id": 410,
    "video_token_id": 411,
    "vision_start_token_id": 412,
    "vision_end_token_id": 413,
}
# Config class of a model that reads images, its parts, and the text model's class.
SEEING: dict[str, tuple[Any, dict[str, Any], str]] = {
    "gemma3": (
        transformers.Gemma3Config,
        {"text_config": TEXT, "vision_config": IMAGES, "image_token_index": 410},
        "Gemma3ForCausalLM",
    ),
    "mistral3": (
        transformers.Mistral3Config,
        {
            "text_config": {**TEXT, "model_type": "mistral"},
            "vision_config": {**IMAGES, "model_type": "pixtral", "head_dim": 8},
            "image_token_index": 410,
        },
        "MistralForCausalLM",
    ),
    "qwen2.5-vl": (
        transformers.Qwen2_5_VLConfig,
        {
            "text_config": {**TEXT, "rope_parameters": ROTARY},
            "vision_config": {**QWEN_IMAGES, "out_hidden_size": 32},
            **QWEN_TOKENS,
        },
        "Qwen2ForCausalLM",
    ),
    "qwen3-vl": (
        transformers.Qwen3VLConfig,
        {
            "text_config": {**TEXT, "rope_parameters": ROTARY},
            "vision_config": {
                **QWEN_IMAGES,
                "out_hidden_size": 32,
                "deepstack_visual_indexes": [0],
                "num_position_embeddings": 16,
            },
            **QWEN_TOKENS,
        },
        "Qwen3ForCausalLM",
    ),
}


@pytest.mark.parametrize("name", SEEING)
def test_a_model_that_sees_is_traced_as_text(copied: Path, name: str) -> None:
    """Of these transformers builds the whole: the text model's paths lie deeper."""
    kind, parts, text_class = SEEING[name]
    model = transformers.AutoModelForImageTextToText.from_config(kind(**parts))
    lm = loaded(published(copied, sharpened(model)), device="cpu")
    assert type(lm.model) is type(model)
    assert torch.equal(lm.embedding_weight, model.get_input_embeddings().weight)
    alone = FAMILIES[text_class]
    assert lm.paths == alone.within("model.language_model")
    assert lm.paths.sites(1)["hidden"] == "model.language_model.layers.1"
    assert (lm.n_layers, lm.d_embedding, lm.max_positions is not None) == (2, 32, True)
    engine = made(lm)
    assert isinstance(engine, SuffixEngine)
    case, mediators = known_case(lm, 1, 6, 2, 4), mediators_of(lm)
    expected = scores(ReferenceEngine(lm, NOISE), [case], mediators)
    assert len(expected) == len(MEDIATOR_NAMES)
    assert largest_difference(scores(engine, [case], mediators), expected) <= 1e-5
    # In memory as from a folder.
    assert language_model(lm.model).paths == lm.paths


def test_a_device_map_names_modules_of_the_model_that_sees(copied: Path) -> None:
    kind, parts, _ = SEEING["gemma3"]
    model = transformers.AutoModelForImageTextToText.from_config(kind(**parts))
    published(copied, sharpened(model))
    assert loaded(copied, device_map={"": "cpu"}).n_layers == 2
    assert "Gemma3ForConditionalGeneration has no module 'model.layers'" in refusal(
        copied, device_map={"model.layers": "cpu"}
    )
    assert "'model.language_model' is on disk, and with it" in refusal(
        copied, device_map={"": "cpu", "model.language_model": "disk"}
    )


def test_a_model_that_sees_and_reads_both_ways_is_refused(copied: Path) -> None:
    """PaliGemma's prompt is a prefix, which its layers read as a whole."""
    config = transformers.PaliGemmaConfig(
        text_config=transformers.GemmaConfig(**TEXT),
        vision_config=transformers.SiglipVisionConfig(**IMAGES),
        image_token_index=410,
    )
    published(copied, sharpened(transformers.PaliGemmaForConditionalGeneration(config)))
    assert "PaliGemmaForConditionalGeneration reads a prompt from both sides" in refusal(copied)


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
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)  # not read in vain
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
        self.model = micro_llama(1, vocabulary=420)
        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", self.take)

    def take(self, *args: Any, **options: Any) -> Any:
        self.options = options
        return self.model, {"missing_keys": [], "unexpected_keys": []}


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
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    assert refusal(model_folder, quantization="int8") == (
        "model.quantization=int8 needs bitsandbytes and accelerate: pip install 'ktrace[large]'"
    )


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_quantization_passes_through(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, bits: str
) -> None:
    asked = Asked(monkeypatch)
    monkeypatch.setattr(quantization, "find_spec", lambda name: name)
    loaded(model_folder, quantization=bits, dtype="bfloat16", device="cpu")
    config = asked.options["quantization_config"]
    assert (config.load_in_8bit, config.load_in_4bit) == (bits == "int8", bits == "int4")
    assert asked.options["device_map"] == {"": "cpu"}
    if bits == "int4":
        assert config.bnb_4bit_compute_dtype is torch.bfloat16


def test_an_adapter_that_was_applied_all_the_same_is_refused(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What pins a model's content knows nothing of it."""
    asked = Asked(monkeypatch)
    asked.model._hf_peft_config_loaded = True
    assert "an adapter was applied" in refusal(model_folder, device="cpu")


TINY = ROOT / "data" / "tiny"  # wide enough for blocks of rounded weights


@pytest.fixture(scope="module")
def stored_int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(TINY, tmp_path_factory.mktemp("int8") / "tiny")
    loaded(TINY, quantization="int8", device="cpu").model.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["load_in_8bit"]
    return folder


def multiplies_exactly(model: Any) -> bool:
    """Whether a row's product is the same, whatever large numbers stand beside it."""
    product = model.model.layers[1].mlp.up_proj
    calm = torch.randn(5, product.in_features, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        alone, beside = product(calm), product(torch.cat([calm, 50 * calm]))[: len(calm)]
    return torch.allclose(alone, beside, rtol=1e-6, atol=1e-6)


def test_weights_that_are_stored_rounded_are_multiplied_exactly(stored_int8: Path) -> None:
    """As those that are rounded when they are loaded; nothing in the run's config says so."""
    lm = loaded(stored_int8, device="cpu")
    assert multiplies_exactly(lm.model)
    asked = loaded(TINY, quantization="int8", device="cpu")
    ids = torch.arange(1, 7)[None]
    with torch.inference_mode():
        assert torch.equal(lm.model(ids).logits, asked.model(ids).logits)


def test_a_model_in_memory_multiplies_its_rounded_weights_exactly(stored_int8: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(stored_int8, device_map={"": "cpu"})
    assert not multiplies_exactly(model)
    assert multiplies_exactly(language_model(model).model)


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_weights_that_are_stored_rounded_are_not_rounded_again(
    stored_int8: Path, bits: str
) -> None:
    """transformers would keep what is stored, whatever is asked."""
    assert refusal(stored_int8, quantization=bits) == (
        f"model.quantization={bits}: the weights of model.path={stored_int8} are stored quantized "
        "(bitsandbytes), and are taken as they are: leave model.quantization out"
    )


def test_stored_rounded_weights_without_their_packages(
    stored_int8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    assert refusal(stored_int8) == (
        f"model.path={stored_int8} is stored quantized and needs bitsandbytes and accelerate: "
        "pip install 'ktrace[large]'"
    )


def test_a_model_in_memory_is_proven_too() -> None:
    model = micro_llama(1)
    model.__class__ = type("FancyForCausalLM", (type(model),), {})
    with pytest.raises(KtraceError, match="FancyForCausalLM: architecture FancyForCausalLM"):
        language_model(model)
