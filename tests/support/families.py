"""A tiny sharpened random model of every family."""

from typing import Any

import torch
import transformers

from ktrace.lm.model import LanguageModel
from ktrace.terms import MEDIATOR_NAMES
from ktrace.tracing.mediators import Mediator, make_mediator
from tests.support.models import VOCABULARY, sharpened

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_LLAMA: dict[str, Any] = {
    **_COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_HEADS = {**_LLAMA, "head_dim": 8}
_GPT: dict[str, Any] = {**_COMMON, "n_embd": 32, "n_layer": 4, "n_head": 4}
# Shorter than the prompts, so that local masks matter.
_WINDOW = 3
_LOCAL_AND_FULL = {
    "sliding_window": _WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}

# Config class, and what it takes beside the size.
TINY_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "BloomForCausalLM": ("BloomConfig", {**_COMMON, "hidden_size": 32, "n_layer": 4, "n_head": 4}),
    "CodeGenForCausalLM": ("CodeGenConfig", {**_GPT, "rotary_dim": 4}),
    "Cohere2ForCausalLM": ("Cohere2Config", {**_LLAMA, **_LOCAL_AND_FULL, "logit_scale": 1.0}),
    "CohereForCausalLM": ("CohereConfig", {**_LLAMA, "logit_scale": 1.0}),
    "DeepseekV3ForCausalLM": (
        "DeepseekV3Config",
        {
            **_LLAMA,
            # One expert, whose weight is then 1: the router computes in float32 always, and its
            # rounding would show in float64.
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 24,
            "num_key_value_heads": 4,
            "first_k_dense_replace": 2,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
    "Exaone4ForCausalLM": ("Exaone4Config", {**_LLAMA, **_LOCAL_AND_FULL}),
    "FalconForCausalLM": ("FalconConfig", _LLAMA),
    "GPT2LMHeadModel": ("GPT2Config", _GPT),
    "GPTJForCausalLM": ("GPTJConfig", {**_GPT, "rotary_dim": 4}),
    "GPTNeoForCausalLM": (
        "GPTNeoConfig",
        {
            **_COMMON,
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": _WINDOW,
        },
    ),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", _LLAMA),
    "Gemma2ForCausalLM": ("Gemma2Config", {**_HEADS, **_LOCAL_AND_FULL}),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", {**_HEADS, **_LOCAL_AND_FULL}),
    "GemmaForCausalLM": ("GemmaConfig", _HEADS),
    "GlmForCausalLM": ("GlmConfig", _HEADS),
    "GptOssForCausalLM": (
        "GptOssConfig",
        {**_HEADS, **_LOCAL_AND_FULL, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "GraniteForCausalLM": ("GraniteConfig", {**_LLAMA, "residual_multiplier": 0.5}),
    "Llama4ForCausalLM": (
        "Llama4TextConfig",
        {
            **_HEADS,
            "intermediate_size_mlp": 48,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
            "no_rope_layers": [1, 1, 1, 0],
            "attention_chunk_size": 4,
            "floor_scale": 2,
        },
    ),
    "LlamaForCausalLM": ("LlamaConfig", _LLAMA),
    "MambaForCausalLM": (
        "MambaConfig",
        {**_COMMON, "hidden_size": 32, "num_hidden_layers": 4, "state_size": 8},
    ),
    "MinistralForCausalLM": ("MinistralConfig", {**_HEADS, **_LOCAL_AND_FULL}),
    "MistralForCausalLM": ("MistralConfig", {**_LLAMA, "sliding_window": _WINDOW}),
    "MixtralForCausalLM": (
        "MixtralConfig",
        {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "MptForCausalLM": (
        "MptConfig",
        {**_COMMON, "d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 32},
    ),
    "NemotronForCausalLM": ("NemotronConfig", _HEADS),
    "OPTForCausalLM": (
        "OPTConfig",
        {
            **_COMMON,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 32,
        },
    ),
    "Olmo2ForCausalLM": ("Olmo2Config", _LLAMA),
    "OlmoForCausalLM": ("OlmoConfig", _LLAMA),
    "Phi3ForCausalLM": ("Phi3Config", _LLAMA),
    "PhiForCausalLM": ("PhiConfig", _LLAMA),
    "Qwen2ForCausalLM": ("Qwen2Config", _LLAMA),
    "Qwen2MoeForCausalLM": (
        "Qwen2MoeConfig",
        {**_LLAMA, **_EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 24},
    ),
    "Qwen3ForCausalLM": ("Qwen3Config", _HEADS),
    "Qwen3MoeForCausalLM": ("Qwen3MoeConfig", {**_HEADS, **_EXPERTS, "num_experts": 4}),
    "SmolLM3ForCausalLM": ("SmolLM3Config", {**_LLAMA, "no_rope_layers": [1, 0, 1, 0]}),
    "StableLmForCausalLM": ("StableLmConfig", _LLAMA),
    "Starcoder2ForCausalLM": ("Starcoder2Config", _LLAMA),
}

# What the suffix engine cannot replay, and why; the reference engine serves these.
NOT_REPLAYED = {
    "MambaForCausalLM": "a recurrent state, not keys and values of each position",
}
REPLAYED = sorted(TINY_FAMILIES.keys() - NOT_REPLAYED.keys())

# Seed and scale of `sharpened`, where the usual ones leave some mediator's effects small, or blow
# rounding up to the tolerance of the tests.
_SHARPENING = {
    "Cohere2ForCausalLM": (0, 1.8),
    "FalconForCausalLM": (1, 2.0),
    "Llama4ForCausalLM": (1, 3.0),
    "MixtralForCausalLM": (0, 1.8),
    "MptForCausalLM": (1, 2.0),
    "OlmoForCausalLM": (0, 1.8),
    "Phi3ForCausalLM": (0, 1.8),
    "SmolLM3ForCausalLM": (0, 1.8),
}

# What a family's config can also ask for, where it changes a block's arguments or its sums.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom, residual after the norm": (
        "BloomForCausalLM",
        {"apply_residual_connection_post_layernorm": True},
    ),
    "cohere, normalised queries": ("CohereForCausalLM", {"use_qk_norm": True}),
    "deepseek, full queries": ("DeepseekV3ForCausalLM", {"q_lora_rank": None}),
    "falcon, alibi": ("FalconForCausalLM", {"alibi": True}),
    "falcon, alibi, one after the other": (
        "FalconForCausalLM",
        {"alibi": True, "parallel_attn": False, "multi_query": False},
    ),
    "falcon, new architecture": (
        "FalconForCausalLM",
        {"new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "gpt-neox, one after the other": ("GPTNeoXForCausalLM", {"use_parallel_residual": False}),
    "granite, every multiplier": (
        "GraniteForCausalLM",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.25,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
    ),
    "opt, norm after the sum, narrow embedding": (
        "OPTForCausalLM",
        {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
    ),
    "qwen2, sliding windows": (
        "Qwen2ForCausalLM",
        {**_LOCAL_AND_FULL, "use_sliding_window": True},
    ),
    "stablelm, side by side": (
        "StableLmForCausalLM",
        {"use_parallel_residual": True, "qk_layernorm": True},
    ),
}


def tiny_model(architecture: str, attention: str | None = None, **changes: Any) -> Any:
    """A model of four layers whose effects are large; None leaves attention to transformers."""
    name, sizes = TINY_FAMILIES[architecture]
    config = getattr(transformers, name)(**{**sizes, **changes})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    assert type(model).__name__ == architecture
    return sharpened(model, *_SHARPENING.get(architecture, ()))


def mediators_of(lm: LanguageModel, window: int = 3) -> list[Mediator]:
    """The mediators that have a meaning for a model."""
    have = lm.paths.sites(0)
    mediators = [make_mediator(name, window) for name in MEDIATOR_NAMES]
    return [m for m in mediators if m.site in have and (m.severs is None or m.severs in have)]
