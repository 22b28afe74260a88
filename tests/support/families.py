"""A tiny sharpened random model of every family."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
import transformers

from ktrace.errors import KtraceError
from ktrace.lm.model import LanguageModel
from ktrace.terms import PUBLISHED_MEDIATORS, Direction
from ktrace.tracing.checks import require_mediators
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
# One expert, whose weight is then 1: some routers compute in float32 always, and their rounding
# would show in float64.
_ONE_EXPERT = {"num_experts_per_tok": 1, "moe_intermediate_size": 24}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
# Queries, keys and values through narrow states.
_LATENT = {
    "num_key_value_heads": 4,
    "head_dim": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_ONE_ROUTED = {**_ONE_EXPERT, "n_routed_experts": 4, "n_group": 2, "topk_group": 1}
_DENSE_AND_EXPERTS = {"mlp_layer_types": ["dense", "sparse"] * 2}
_MAMBA: dict[str, Any] = {**_COMMON, "hidden_size": 32, "num_hidden_layers": 4, "state_size": 8}
_LINEAR_AND_FULL = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_SHARED_EXPERT = {"num_experts": 4, "shared_expert_intermediate_size": 24}
_MAMBA_HEADS = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8}

# Config class, and what it takes beside the size.
TINY_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "AXK1ForCausalLM": ("AXK1Config", {**_LLAMA, **_LATENT, **_ONE_ROUTED, **_DENSE_AND_EXPERTS}),
    "AXK2ForCausalLM": (
        "AXK2Config",
        {
            **_LLAMA,
            **_LATENT,
            **_ONE_ROUTED,
            **_DENSE_AND_EXPERTS,
            "gated_norm_rank": 8,
            "index_head_dim": 8,
            "index_n_heads": 2,
        },
    ),
    "AfmoeForCausalLM": (
        "AfmoeConfig",
        {**_HEADS, **_LOCAL_AND_FULL, **_ONE_EXPERT, "num_experts": 4},
    ),
    "ApertusForCausalLM": ("ApertusConfig", _LLAMA),
    "ArceeForCausalLM": ("ArceeConfig", _LLAMA),
    "AriaTextForCausalLM": ("AriaTextConfig", {**_LLAMA, "moe_num_experts": 4}),
    "BailingHybridForCausalLM": (
        "BailingHybridConfig",
        {
            **_LLAMA,
            **_LATENT,
            **_ONE_EXPERT,
            "num_local_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        },
    ),
    "BambaForCausalLM": ("BambaConfig", {**_LLAMA, **_MAMBA_HEADS, "attn_layer_indices": [1, 3]}),
    "BeamForCausalLM": (
        "BeamConfig",
        {
            **_HEADS,
            **_LOCAL_AND_FULL,
            **_ONE_EXPERT,
            **_DENSE_AND_EXPERTS,
            "num_experts": 4,
            "moe_intermediate_size": 32,
            "n_group": 1,
            "topk_group": 1,
            "final_logit_softcapping": None,  # it is taken in float32 always
        },
    ),
    "BioGptForCausalLM": ("BioGptConfig", _LLAMA),
    "BitNetForCausalLM": ("BitNetConfig", _LLAMA),
    "BloomForCausalLM": ("BloomConfig", {**_COMMON, "hidden_size": 32, "n_layer": 4, "n_head": 4}),
    "CTRLLMHeadModel": ("CTRLConfig", {**_GPT, "dff": 48}),
    "CodeGenForCausalLM": ("CodeGenConfig", {**_GPT, "rotary_dim": 4}),
    "Cohere2ForCausalLM": ("Cohere2Config", {**_LLAMA, **_LOCAL_AND_FULL, "logit_scale": 1.0}),
    "Cohere2MoeForCausalLM": (
        "Cohere2MoeConfig",
        {**_HEADS, **_LOCAL_AND_FULL, "logit_scale": 1.0, "num_experts": 4},
    ),
    "CohereCompassForCausalLM": (
        "CohereCompassTextConfig",
        {
            **_LLAMA,
            **_LOCAL_AND_FULL,
            "logit_scale": 1.0,
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": 10000.0}
                for kind in ("sliding_attention", "full_attention")
            },
        },
    ),
    "CohereForCausalLM": ("CohereConfig", {**_LLAMA, "logit_scale": 1.0}),
    "CwmForCausalLM": ("CwmConfig", {**_HEADS, **_LOCAL_AND_FULL}),
    "DbrxForCausalLM": (
        "DbrxConfig",
        {
            **_COMMON,
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 4,
            "max_seq_len": 32,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
            "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "DeepseekV2ForCausalLM": (
        "DeepseekV2Config",
        {
            **_LLAMA,
            **_LATENT,
            **_ONE_EXPERT,
            "n_routed_experts": 1,
            "first_k_dense_replace": 2,
            "qk_rope_head_dim": 16,
            "head_dim": 16,
        },
    ),
    "DeepseekV32ForCausalLM": (
        "DeepseekV32Config",
        {
            **_LLAMA,
            **_LATENT,
            **_ONE_ROUTED,
            **_DENSE_AND_EXPERTS,
            "index_head_dim": 8,
            "index_n_heads": 2,
            "index_topk": 4,
        },
    ),
    "DeepseekV3ForCausalLM": (
        "DeepseekV3Config",
        {**_LLAMA, **_LATENT, **_ONE_ROUTED, "first_k_dense_replace": 2},
    ),
    "DiffLlamaForCausalLM": ("DiffLlamaConfig", _LLAMA),
    "DogeForCausalLM": ("DogeConfig", _LLAMA),
    "Dots1ForCausalLM": (
        "Dots1Config",
        {
            **_LLAMA,
            **_LOCAL_AND_FULL,
            **_ONE_EXPERT,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
        },
    ),
    "Dots3NoteForCausalLM": (
        "Dots3NoteTextConfig",
        {**_LLAMA, **_LATENT, **_ONE_EXPERT, "n_routed_experts": 4},
    ),
    "Emu3ForCausalLM": ("Emu3Config", {"text_config": _LLAMA}),
    "Ernie4_5ForCausalLM": ("Ernie4_5Config", _HEADS),
    "Ernie4_5_MoeForCausalLM": (
        "Ernie4_5_MoeConfig",
        {**_LLAMA, "moe_intermediate_size": 24, "moe_k": 1, "moe_num_experts": 4},
    ),
    "Exaone4ForCausalLM": ("Exaone4Config", {**_LLAMA, **_LOCAL_AND_FULL}),
    "ExaoneMoeForCausalLM": (
        "ExaoneMoeConfig",
        {**_LLAMA, **_LOCAL_AND_FULL, **_ONE_EXPERT, "num_experts": 4},
    ),
    "FalconForCausalLM": ("FalconConfig", _LLAMA),
    "FalconH1ForCausalLM": ("FalconH1Config", {**_LLAMA, **_MAMBA_HEADS, "mamba_d_ssm": 64}),
    "FalconMambaForCausalLM": ("FalconMambaConfig", _MAMBA),
    "FlexOlmoForCausalLM": (
        "FlexOlmoConfig",
        {**_LLAMA, "num_experts": 4, "num_experts_per_tok": 2},
    ),
    "FlintForCausalLM": (
        "FlintConfig",
        {**_HEADS, **_LOCAL_AND_FULL, **_ONE_EXPERT, **_SHARED_EXPERT, "mlp_only_layers": [0, 2]},
    ),
    "GPT2LMHeadModel": ("GPT2Config", _GPT),
    "GPTBigCodeForCausalLM": ("GPTBigCodeConfig", _GPT),
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
    "GPTNeoXJapaneseForCausalLM": (
        "GPTNeoXJapaneseConfig",
        {
            **_COMMON,
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_multiple_size": 2,
        },
    ),
    "Gemma2ForCausalLM": ("Gemma2Config", {**_HEADS, **_LOCAL_AND_FULL}),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", {**_HEADS, **_LOCAL_AND_FULL}),
    "Gemma4ForCausalLM": (
        "Gemma4TextConfig",
        {
            **_HEADS,
            **_LOCAL_AND_FULL,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 0,
        },
    ),
    "Gemma4UnifiedForCausalLM": (
        "Gemma4UnifiedTextConfig",
        {**_HEADS, **_LOCAL_AND_FULL, "global_head_dim": 16},
    ),
    "GemmaForCausalLM": ("GemmaConfig", _HEADS),
    "Glm4ForCausalLM": ("Glm4Config", _HEADS),
    "Glm4MoeForCausalLM": ("Glm4MoeConfig", {**_HEADS, **_ONE_ROUTED}),
    "Glm4MoeLiteForCausalLM": (
        "Glm4MoeLiteConfig",
        {**_LLAMA, **_LATENT, **_ONE_ROUTED, **_DENSE_AND_EXPERTS},
    ),
    "GlmForCausalLM": ("GlmConfig", _HEADS),
    "GlmMoeDsaForCausalLM": (
        "GlmMoeDsaConfig",
        {
            **_LLAMA,
            **_LATENT,
            **_ONE_ROUTED,
            **_DENSE_AND_EXPERTS,
            "index_head_dim": 8,
            "index_n_heads": 2,
            "index_topk": 4,
        },
    ),
    "GptOssForCausalLM": (
        "GptOssConfig",
        {**_HEADS, **_LOCAL_AND_FULL, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "GraniteForCausalLM": ("GraniteConfig", {**_LLAMA, "residual_multiplier": 0.5}),
    "GraniteMoeForCausalLM": ("GraniteMoeConfig", {**_LLAMA, **_LOCAL_EXPERTS}),
    "GraniteMoeHybridForCausalLM": (
        "GraniteMoeHybridConfig",
        {
            **_LLAMA,
            **_MAMBA_HEADS,
            "num_local_experts": 0,
            "shared_intermediate_size": 48,
            "layer_types": ["mamba", "attention"] * 2,
        },
    ),
    "GraniteMoeSWAForCausalLM": (
        "GraniteMoeSWAConfig",
        {**_LLAMA, **_LOCAL_EXPERTS, **_LOCAL_AND_FULL},
    ),
    "GraniteMoeSharedForCausalLM": (
        "GraniteMoeSharedConfig",
        {**_LLAMA, **_LOCAL_EXPERTS, "shared_intermediate_size": 24},
    ),
    "GraniteSWAForCausalLM": ("GraniteSWAConfig", {**_LLAMA, **_LOCAL_AND_FULL}),
    "HYV3ForCausalLM": ("HYV3Config", {**_HEADS, **_ONE_EXPERT, "num_experts": 4}),
    "HeliumForCausalLM": ("HeliumConfig", _HEADS),
    "HunYuanDenseV1ForCausalLM": ("HunYuanDenseV1Config", _HEADS),
    "HunYuanMoEV1ForCausalLM": ("HunYuanMoEV1Config", {**_HEADS, "num_experts": 4, "moe_topk": 1}),
    "HyperCLOVAXForCausalLM": ("HyperCLOVAXConfig", _LLAMA),
    "InklingForCausalLM": (
        "InklingTextConfig",
        {
            **_HEADS,
            **_ONE_EXPERT,
            **_DENSE_AND_EXPERTS,
            "n_routed_experts": 4,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "swa_head_dim": 8,
            "d_rel": 4,
            "rel_extent": 8,
            "sliding_window_size": 3,
            "local_layer_ids": [0, 2],
            "logits_mup_width_multiplier": 1.0,
        },
    ),
    "Jais2ForCausalLM": ("Jais2Config", _LLAMA),
    "JambaForCausalLM": (
        "JambaConfig",
        {
            **_LLAMA,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
        },
    ),
    "JetMoeForCausalLM": (
        "JetMoeConfig",
        {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 1, "kv_channels": 8},
    ),
    "KimiLinearForCausalLM": (
        "KimiLinearConfig",
        {
            **_LLAMA,
            **_LATENT,
            **_ONE_EXPERT,
            "num_local_experts": 4,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        },
    ),
    "Kolibri1ForCausalLM": (
        "Kolibri1Config",
        {**_HEADS, **_LOCAL_AND_FULL, **_ONE_EXPERT, **_SHARED_EXPERT, "norm_topk_prob": True},
    ),
    "LagunaForCausalLM": (
        "LagunaConfig",
        {**_HEADS, **_LOCAL_AND_FULL, **_ONE_EXPERT, **_SHARED_EXPERT, "gating": "per-element"},
    ),
    "Lfm2ForCausalLM": ("Lfm2Config", {**_LLAMA, "layer_types": ["conv", "full_attention"] * 2}),
    "Lfm2MoeForCausalLM": (
        "Lfm2MoeConfig",
        {**_LLAMA, **_ONE_EXPERT, "num_experts": 4, "layer_types": ["conv", "full_attention"] * 2},
    ),
    "Lfm3ForCausalLM": ("Lfm3Config", {**_LLAMA, "layer_types": ["conv", "full_attention"] * 2}),
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
    "LongcatFlashForCausalLM": (
        "LongcatFlashConfig",
        {
            **_COMMON,
            **_LATENT,
            "hidden_size": 32,
            "num_layers": 4,
            "num_attention_heads": 4,
            "ffn_hidden_size": 48,
            "expert_ffn_hidden_size": 24,
            "n_routed_experts": 4,
            "zero_expert_num": 2,
            "moe_topk": 2,
        },
    ),
    "Mamba2ForCausalLM": ("Mamba2Config", {**_MAMBA, "num_heads": 8, "head_dim": 8, "n_groups": 1}),
    "MambaForCausalLM": ("MambaConfig", _MAMBA),
    "MellumForCausalLM": (
        "MellumConfig",
        {**_HEADS, **_LOCAL_AND_FULL, **_EXPERTS, "num_experts": 4},
    ),
    "MiMoV2FlashForCausalLM": (
        "MiMoV2FlashConfig",
        {**_HEADS, **_LOCAL_AND_FULL, **_ONE_EXPERT, "v_head_dim": 8, "n_routed_experts": 4},
    ),
    "MiniCPM3ForCausalLM": (
        "MiniCPM3Config",
        {**_LLAMA, **_LATENT, "scale_emb": 2.0, "dim_model_base": 32},
    ),
    "MiniMaxForCausalLM": (
        "MiniMaxConfig",
        {**_HEADS, **_LOCAL_EXPERTS, "layer_types": ["linear_attention", "full_attention"] * 2},
    ),
    "MiniMaxM2ForCausalLM": (
        "MiniMaxM2Config",
        {**_HEADS, "num_local_experts": 4, "num_experts_per_tok": 1},
    ),
    "MiniMaxM3VLForCausalLM": (
        "MiniMaxM3VLTextConfig",
        {
            **_HEADS,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "dense_intermediate_size": 48,
            "shared_intermediate_size": 24,
            "rotary_dim": 4,
            "index_head_dim": 8,
            "index_n_heads": 2,
            "index_block_size": 2,
            "index_topk_blocks": 2,
        },
    ),
    "Ministral3ForCausalLM": ("Ministral3Config", _HEADS),
    "MinistralForCausalLM": ("MinistralConfig", {**_HEADS, **_LOCAL_AND_FULL}),
    "MistralForCausalLM": ("MistralConfig", {**_LLAMA, "sliding_window": _WINDOW}),
    "MixtralForCausalLM": (
        "MixtralConfig",
        {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "ModernBertDecoderForCausalLM": (
        "ModernBertDecoderConfig",
        {
            **_COMMON,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "local_attention": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "MoshiForCausalLM": (
        "MoshiConfig",
        {
            **_COMMON,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
        },
    ),
    "MptForCausalLM": (
        "MptConfig",
        {**_COMMON, "d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 32},
    ),
    "NanoChatForCausalLM": ("NanoChatConfig", _LLAMA),
    "NemotronForCausalLM": ("NemotronConfig", _HEADS),
    "NemotronHForCausalLM": (
        "NemotronHConfig",
        {
            **_HEADS,
            "layers_block_type": ["mamba", "attention", "mlp", "attention"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 1,
        },
    ),
    "OpenAIGPTLMHeadModel": ("OpenAIGPTConfig", _GPT),
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
    "Olmo3ForCausalLM": ("Olmo3Config", {**_LLAMA, **_LOCAL_AND_FULL}),
    "OlmoForCausalLM": ("OlmoConfig", _LLAMA),
    "OlmoHybridForCausalLM": ("OlmoHybridConfig", {**_LLAMA, **_LINEAR_AND_FULL}),
    "OlmoeForCausalLM": ("OlmoeConfig", {**_LLAMA, "num_experts": 4, "num_experts_per_tok": 2}),
    "Phi3ForCausalLM": ("Phi3Config", _LLAMA),
    "Phi4MultimodalForCausalLM": (
        "Phi4MultimodalConfig",
        {
            **_LLAMA,
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 28,
                "crop_size": 28,
            },
            "audio_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_blocks": 1,
                "num_attention_heads": 2,
                "ext_pw_out_channel": 16,
                "depthwise_separable_out_channel": 16,
                "nemo_conv_channels": 16,
            },
        },
    ),
    "PhiForCausalLM": ("PhiConfig", _LLAMA),
    "PhimoeForCausalLM": ("PhimoeConfig", {**_LLAMA, **_LOCAL_EXPERTS}),
    "Qwen2ForCausalLM": ("Qwen2Config", _LLAMA),
    "Qwen2MoeForCausalLM": (
        "Qwen2MoeConfig",
        {**_LLAMA, **_EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 24},
    ),
    "Qwen3ForCausalLM": ("Qwen3Config", _HEADS),
    "Qwen3MoeForCausalLM": ("Qwen3MoeConfig", {**_HEADS, **_EXPERTS, "num_experts": 4}),
    "Qwen3NextForCausalLM": (
        "Qwen3NextConfig",
        {**_HEADS, **_LINEAR_AND_FULL, **_EXPERTS, **_SHARED_EXPERT},
    ),
    "Qwen3_5ForCausalLM": ("Qwen3_5TextConfig", {**_HEADS, **_LINEAR_AND_FULL}),
    "Qwen3_5MoeForCausalLM": (
        "Qwen3_5MoeTextConfig",
        {**_HEADS, **_LINEAR_AND_FULL, **_EXPERTS, **_SHARED_EXPERT},
    ),
    "RecurrentGemmaForCausalLM": (
        "RecurrentGemmaConfig",
        {
            **_LLAMA,
            "block_types": ["recurrent", "attention"],
            "attention_window_size": 4,
            "lru_width": 32,
        },
    ),
    "SeedOssForCausalLM": ("SeedOssConfig", _HEADS),
    "SmolLM3ForCausalLM": ("SmolLM3Config", {**_LLAMA, "no_rope_layers": [1, 0, 1, 0]}),
    "SolarOpenForCausalLM": ("SolarOpenConfig", {**_HEADS, **_ONE_ROUTED}),
    "StableLmForCausalLM": ("StableLmConfig", _LLAMA),
    "Starcoder2ForCausalLM": ("Starcoder2Config", _LLAMA),
    "VaultGemmaForCausalLM": ("VaultGemmaConfig", {**_HEADS, **_LOCAL_AND_FULL}),
    "YoutuForCausalLM": ("YoutuConfig", {**_LLAMA, **_LATENT}),
    "Zamba2ForCausalLM": (
        "Zamba2Config",
        {
            **_COMMON,
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "hybrid"] * 2,
            "n_mamba_heads": 8,
            "mamba_d_state": 8,
            "intermediate_size": 48,
            "num_attention_heads": 4,
        },
    ),
    "ZambaForCausalLM": (
        "ZambaConfig",
        {
            **_COMMON,
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "hybrid"] * 2,
            "mamba_d_state": 8,
            "intermediate_size": 48,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
        },
    ),
    "ZayaForCausalLM": (
        "ZayaConfig",
        {**_HEADS, **_ONE_EXPERT, "num_experts": 4, "router_hidden_size": 8},
    ),
    "xLSTMForCausalLM": (
        "xLSTMConfig",
        {**_COMMON, "hidden_size": 32, "num_hidden_layers": 4, "num_heads": 4},
    ),
}

# What the suffix engine cannot replay, and what layers of these keep instead of keys and values of
# each position; the reference engine serves them.
_STATE = "a recurrent state, not keys and values of each position"
_INDEX = "keys and values of each position, and an index to choose among them"
NOT_REPLAYED = {
    "AXK2ForCausalLM": _INDEX,
    "BailingHybridForCausalLM": _STATE,
    "BambaForCausalLM": _STATE,
    "DeepseekV32ForCausalLM": _INDEX,
    "Dots3NoteForCausalLM": _INDEX,
    "FalconH1ForCausalLM": _STATE,
    "FalconMambaForCausalLM": _STATE,
    "GlmMoeDsaForCausalLM": _INDEX,
    "GraniteMoeHybridForCausalLM": _STATE,
    "InklingForCausalLM": _STATE,
    "JambaForCausalLM": _STATE,
    "KimiLinearForCausalLM": _STATE,
    "Lfm2ForCausalLM": _STATE,
    "Lfm2MoeForCausalLM": _STATE,
    "Lfm3ForCausalLM": _STATE,
    "LongcatFlashForCausalLM": "keys and values of two attentions a layer",
    "Mamba2ForCausalLM": _STATE,
    "MambaForCausalLM": _STATE,
    "MiniMaxForCausalLM": _STATE,
    "NemotronHForCausalLM": _STATE,
    "OlmoHybridForCausalLM": _STATE,
    "OpenAIGPTLMHeadModel": "nothing: it has no cache",
    "Qwen3NextForCausalLM": _STATE,
    "Qwen3_5ForCausalLM": _STATE,
    "Qwen3_5MoeForCausalLM": _STATE,
    "RecurrentGemmaForCausalLM": _STATE,
    "Zamba2ForCausalLM": _STATE,
    "ZambaForCausalLM": _STATE,
    "ZayaForCausalLM": _STATE,
    "xLSTMForCausalLM": _STATE,
}
REPLAYED = sorted(TINY_FAMILIES.keys() - NOT_REPLAYED.keys())

# Seed and scale of `sharpened`, where the usual ones leave some mediator's effects small, or blow
# rounding up to the tolerance of the tests.
_SHARPENING = {
    "AXK1ForCausalLM": (0, 1.8),
    "BambaForCausalLM": (1, 2.0),
    "BitNetForCausalLM": (2, 2.0),
    "Cohere2ForCausalLM": (0, 1.8),
    "Cohere2MoeForCausalLM": (1, 2.0),
    "DbrxForCausalLM": (3, 1.8),
    "DiffLlamaForCausalLM": (1, 1.8),
    "Ernie4_5ForCausalLM": (0, 1.8),
    "Ernie4_5_MoeForCausalLM": (1, 2.0),
    "FalconForCausalLM": (1, 2.0),
    "GraniteMoeForCausalLM": (0, 1.8),
    "GraniteMoeHybridForCausalLM": (1, 2.0),
    "GraniteMoeSWAForCausalLM": (1, 2.0),
    "GraniteSWAForCausalLM": (1, 2.0),
    "HYV3ForCausalLM": (1, 2.0),
    "Lfm3ForCausalLM": (1, 2.0),
    "Llama4ForCausalLM": (1, 3.0),
    "MellumForCausalLM": (1, 2.0),
    "MixtralForCausalLM": (0, 1.8),
    "ModernBertDecoderForCausalLM": (1, 2.0),
    "MptForCausalLM": (1, 2.0),
    "NanoChatForCausalLM": (1, 2.0),
    "OlmoForCausalLM": (0, 1.8),
    "OlmoHybridForCausalLM": (1, 2.0),
    "Phi3ForCausalLM": (0, 1.8),
    "Qwen3_5ForCausalLM": (0, 1.8),
    "RecurrentGemmaForCausalLM": (1, 1.8),
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
    "gemma4, experts": (
        "Gemma4ForCausalLM",
        {
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 1,
            "moe_intermediate_size": 48,
        },
    ),
    "gemma4, inputs of each layer": (
        "Gemma4ForCausalLM",
        {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 96},
    ),
    "gpt-bigcode, keys of each head": ("GPTBigCodeForCausalLM", {"multi_query": False}),
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
    "granite-moe, no shared expert": (
        "GraniteMoeSharedForCausalLM",
        {"shared_intermediate_size": 0},
    ),
    "hyperclovax, no norms after": ("HyperCLOVAXForCausalLM", {"use_post_norm": False}),
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


def both_directions(mediators: Sequence[Mediator]) -> list[Mediator]:
    """Some mediators, and those of them that may noise, too."""
    may = [mediator for mediator in mediators if not (mediator.severs or mediator.cuts)]
    return [*mediators, *(replace(mediator, direction=Direction.noise) for mediator in may)]


def mediators_of(lm: LanguageModel, window: int = 3) -> list[Mediator]:
    """The mediators that have a meaning for a model."""
    have = {site for layer in range(lm.n_layers) for site in lm.paths.sites(layer)}
    mediators = [make_mediator(name, window) for name in PUBLISHED_MEDIATORS]
    whole = [m for m in mediators if m.site in have and (m.severs is None or m.severs in have)]
    return [*whole, *parts_of_attention(lm, window)]


def parts_of_attention(lm: LanguageModel, window: int) -> list[Mediator]:
    """Heads and edges, as far as they can be proven."""
    found = []
    for mediator in (make_mediator("head", 1), make_mediator("knockout", window)):
        with suppress(KtraceError):
            require_mediators(lm, [mediator])
            found.append(mediator)
    return found
