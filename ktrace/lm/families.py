"""Where an architecture keeps the sites that ktrace reads and edits: data, not code.

Every path is proven on the loaded model before use (ktrace/lm/probe.py), so a wrong line here is an
error message, never a wrong number.
"""

from collections.abc import Mapping
from dataclasses import replace

from ktrace.lm.paths import LAYER, LayerKind, ModulePaths

__all__ = ["FAMILIES", "LAYER", "TEXT_CLASSES", "ModulePaths"]


_O_PROJ = "self_attn.o_proj"


def _layout(
    embedding: str,
    blocks: str,
    attn: str | None = None,
    mlp: str | None = None,
    mlp_input: str | None = None,
    heads: str | None = None,
) -> ModulePaths:
    block = f"{blocks}.{LAYER}"
    inner = (f"{block}.{path}" if path else None for path in (attn, mlp, heads, mlp_input))
    return ModulePaths(embedding, block, *inner)  # type: ignore[arg-type]  # four


def _at_llama(
    attn: str | None = None,
    mlp: str | None = None,
    mlp_input: str | None = None,
    heads: str | None = _O_PROJ,
) -> ModulePaths:
    """Embedding and blocks lie where Llama has them; so do the heads."""
    heads = heads if attn else None
    return _layout("model.embed_tokens", "model.layers", attn, mlp, mlp_input, heads)


def _kinds(*kinds: LayerKind, embedding: str = "model.embed_tokens") -> ModulePaths:
    """The same, and layers differ."""
    return replace(_layout(embedding, "model.layers"), kinds=kinds)


def _gpt2(heads: str) -> ModulePaths:
    """Sites lie where GPT-2 has them, and the heads somewhere else."""
    return _layout("transformer.wte", "transformer.h", "attn", "mlp", heads=heads)


_GPT2 = _gpt2("attn.c_proj")
_LLAMA = _at_llama("self_attn", "mlp")
# What attention and MLP give is normalised before it is added: the norms' outputs are the sites.
_POST_NORM = _at_llama("post_attention_layernorm", "post_feedforward_layernorm", "mlp")
_GLM4 = _at_llama("post_self_attn_layernorm", "post_mlp_layernorm", "mlp")
# The block itself calls the MLP's two projections.
_OPT = ("self_attn", "fc2", "fc1", "self_attn.out_proj")
# One mixer a layer, neither attention nor MLP.
_MAMBA = _layout("backbone.embeddings", "backbone.layers")
# Two experts' modules, routed and shared, whose sum the block itself takes: no site.
_SHARED_BESIDE = LayerKind(
    ("self_attn", "block_sparse_moe", "shared_mlp"), "self_attn", heads=_O_PROJ
)
# Layers with attention among layers with a recurrence in its place.
_HYBRID = _kinds(
    LayerKind(("self_attn",), "self_attn", "mlp", _O_PROJ), LayerKind(("mlp",), mlp="mlp")
)


def _hybrid_feed_forward(heads: str) -> ModulePaths:
    """The same, with another name for the MLP."""
    return _kinds(
        LayerKind(("self_attn",), "self_attn", "feed_forward", heads),
        LayerKind(("feed_forward",), mlp="feed_forward"),
    )


def _one_path(attention: str) -> ModulePaths:
    """A hybrid whose attention and recurrence lie at one path; the former by its class."""
    return _kinds(
        LayerKind((f"self_attn:{attention}",), "self_attn", "mlp", _O_PROJ),
        LayerKind(("mlp",), mlp="mlp"),
    )


# Keyed by `config.architectures[0]` of a checkpoint, or the class that transformers makes of it.
FAMILIES: Mapping[str, ModulePaths] = {
    "AXK1ForCausalLM": _LLAMA,
    "AXK2ForCausalLM": _LLAMA,
    "AfmoeForCausalLM": _at_llama("post_attention_layernorm", "post_mlp_layernorm", "mlp"),
    "ApertusForCausalLM": _LLAMA,
    "ArceeForCausalLM": _LLAMA,
    "AriaTextForCausalLM": _LLAMA,
    "BailingHybridForCausalLM": _one_path("BailingHybridAttention"),
    "BambaForCausalLM": _hybrid_feed_forward(_O_PROJ),
    # The block multiplies outputs and stream with constants of its depth, as Granite's does.
    "BeamForCausalLM": _POST_NORM,
    "BioGptForCausalLM": _layout("biogpt.embed_tokens", "biogpt.layers", *_OPT),
    "BitNetForCausalLM": _LLAMA,
    # Attention and MLP modules return the residual with their output: their last projections.
    "BloomForCausalLM": _layout(
        "transformer.word_embeddings",
        "transformer.h",
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        "mlp.dense_h_to_4h",
        "self_attention.dense",
    ),
    "CTRLLMHeadModel": _layout(
        "transformer.w",
        "transformer.h",
        "multi_head_attention",
        "ffn",
        heads="multi_head_attention.dense",
    ),
    "CodeGenForCausalLM": _gpt2("attn.out_proj"),
    "Cohere2ForCausalLM": _LLAMA,
    "Cohere2MoeForCausalLM": _LLAMA,
    "CohereCompassForCausalLM": _LLAMA,
    "CohereForCausalLM": _LLAMA,
    "CwmForCausalLM": _LLAMA,
    "DbrxForCausalLM": _layout(
        "transformer.wte",
        "transformer.blocks",
        "norm_attn_norm.attn",
        "ffn",
        heads="norm_attn_norm.attn.out_proj",
    ),
    "DeepseekV2ForCausalLM": _LLAMA,
    "DeepseekV32ForCausalLM": _LLAMA,
    # The first layers' `mlp` is dense, the others' is the mixture with its shared experts.
    "DeepseekV3ForCausalLM": _LLAMA,
    # What two heads give is subtracted and normalised together: no head has an output of its own.
    "DiffLlamaForCausalLM": _at_llama("self_attn", "mlp", heads=None),
    "DogeForCausalLM": _LLAMA,
    "Dots1ForCausalLM": _LLAMA,
    "Dots3NoteForCausalLM": _LLAMA,
    "Emu3ForCausalLM": _LLAMA,
    "Ernie4_5ForCausalLM": _LLAMA,
    "Ernie4_5_MoeForCausalLM": _LLAMA,
    "Exaone4ForCausalLM": _POST_NORM,
    "ExaoneMoeForCausalLM": _LLAMA,
    "FalconForCausalLM": _layout(
        "transformer.word_embeddings",
        "transformer.h",
        "self_attention",
        "mlp",
        heads="self_attention.dense",
    ),
    # Attention and recurrence side by side; their outputs are multiplied with constants.
    "FalconH1ForCausalLM": _at_llama("self_attn", "feed_forward"),
    "FalconMambaForCausalLM": _MAMBA,
    "FlexOlmoForCausalLM": _POST_NORM,
    "FlintForCausalLM": _LLAMA,
    "GPT2LMHeadModel": _GPT2,
    "GPTBigCodeForCausalLM": _GPT2,
    "GPTJForCausalLM": _gpt2("attn.out_proj"),
    "GPTNeoForCausalLM": _gpt2("attn.attention.out_proj"),
    "GPTNeoXForCausalLM": _layout(
        "gpt_neox.embed_in", "gpt_neox.layers", "attention", "mlp", heads="attention.dense"
    ),
    # The last layer adds a bias to what its attention gives; no module's output is the sum.
    "GPTNeoXJapaneseForCausalLM": _layout(
        "gpt_neox_japanese.embed_in",
        "gpt_neox_japanese.layers",
        "attention",
        "mlp",
        heads="attention.dense",
    ),
    "Gemma2ForCausalLM": _POST_NORM,
    "Gemma3ForCausalLM": _POST_NORM,
    # With experts, the MLP's work begins in two modules: none is named.
    "Gemma4ForCausalLM": _at_llama("post_attention_layernorm", "post_feedforward_layernorm"),
    "Gemma4UnifiedForCausalLM": _POST_NORM,
    "GemmaForCausalLM": _LLAMA,
    "Glm4ForCausalLM": _GLM4,
    "Glm4MoeForCausalLM": _LLAMA,
    "Glm4MoeLiteForCausalLM": _LLAMA,
    "GlmForCausalLM": _LLAMA,
    "GlmMoeDsaForCausalLM": _LLAMA,
    "GptOssForCausalLM": _LLAMA,
    # The block multiplies both outputs with `residual_multiplier`, a constant, before adding them;
    # no module's output is the product.
    "GraniteForCausalLM": _LLAMA,
    "GraniteMoeForCausalLM": _at_llama("self_attn", "block_sparse_moe"),
    "GraniteMoeHybridForCausalLM": _kinds(
        _SHARED_BESIDE,
        LayerKind(("self_attn",), "self_attn", "shared_mlp", _O_PROJ),
        LayerKind(("block_sparse_moe",)),
        LayerKind(("shared_mlp",), mlp="shared_mlp"),
    ),
    "GraniteMoeSWAForCausalLM": _kinds(
        _SHARED_BESIDE, LayerKind(("self_attn",), "self_attn", "block_sparse_moe", _O_PROJ)
    ),
    "GraniteMoeSharedForCausalLM": _kinds(
        _SHARED_BESIDE, LayerKind(("self_attn",), "self_attn", "block_sparse_moe", _O_PROJ)
    ),
    "GraniteSWAForCausalLM": _LLAMA,
    "HYV3ForCausalLM": _LLAMA,
    "HeliumForCausalLM": _LLAMA,
    "HunYuanDenseV1ForCausalLM": _LLAMA,
    "HunYuanMoEV1ForCausalLM": _LLAMA,
    # A constant `residual_multiplier`, as in Granite.
    "HyperCLOVAXForCausalLM": _at_llama("post_norm1", "post_norm2", "mlp"),
    # What attention and MLP give passes a short convolution over the positions before it is added:
    # there is no MLP that hangs on its position alone.
    "InklingForCausalLM": _at_llama("attn_sconv", heads=None),
    "Jais2ForCausalLM": _LLAMA,
    "JambaForCausalLM": _hybrid_feed_forward(_O_PROJ),
    # Each token's experts of attention have output projections of their own: no heads.
    "JetMoeForCausalLM": _at_llama("self_attention", "mlp", heads=None),
    "KimiLinearForCausalLM": _one_path("KimiLinearAttention"),
    "Kolibri1ForCausalLM": _GLM4,
    "LagunaForCausalLM": _LLAMA,
    "Lfm2ForCausalLM": _hybrid_feed_forward("self_attn.out_proj"),
    "Lfm2MoeForCausalLM": _hybrid_feed_forward("self_attn.out_proj"),
    "Lfm3ForCausalLM": _kinds(
        LayerKind(("self_attn",), "post_operator_norm", "post_ffn_norm", _O_PROJ),
        LayerKind(("feed_forward",), mlp="post_ffn_norm"),
    ),
    "Llama4ForCausalLM": _at_llama("self_attn", "feed_forward"),
    "LlamaForCausalLM": _LLAMA,
    # Two of each in a layer: neither is the layer's attention, or its MLP.
    "LongcatFlashForCausalLM": _at_llama(),
    "Mamba2ForCausalLM": _MAMBA,
    "MambaForCausalLM": _MAMBA,
    "MellumForCausalLM": _LLAMA,
    "MiMoV2FlashForCausalLM": _LLAMA,
    # A constant scale, as in Granite.
    "MiniCPM3ForCausalLM": _LLAMA,
    # Constant factors, as in Granite.
    "MiniMaxForCausalLM": _one_path("MiniMaxAttention"),
    "MiniMaxM2ForCausalLM": _LLAMA,
    "MiniMaxM3VLForCausalLM": _LLAMA,
    "Ministral3ForCausalLM": _LLAMA,
    "MinistralForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "MixtralForCausalLM": _LLAMA,
    "ModernBertDecoderForCausalLM": _layout(
        "model.embeddings.tok_embeddings", "model.layers", "attn", "mlp", heads="attn.Wo"
    ),
    "MoshiForCausalLM": _LLAMA,
    # The MLP module returns the residual with its output: its last projection.
    "MptForCausalLM": _layout(
        "transformer.wte",
        "transformer.blocks",
        "attn",
        "ffn.down_proj",
        "ffn.up_proj",
        "attn.out_proj",
    ),
    "NanoChatForCausalLM": _LLAMA,
    "NemotronForCausalLM": _LLAMA,
    # One mixer a layer: attention, MLP or experts, or a recurrence.
    "NemotronHForCausalLM": _kinds(
        LayerKind(("mixer:NemotronHAttention",), attn="mixer", heads="mixer.o_proj"),
        LayerKind(("mixer:NemotronHMLP",), mlp="mixer"),
        LayerKind(("mixer:NemotronHMoE",), mlp="mixer"),
        embedding="model.embeddings",
    ),
    # The block gives its states in a list; they are what its last norm gives.
    "OpenAIGPTLMHeadModel": ModulePaths(
        "transformer.tokens_embed",
        f"transformer.h.{LAYER}.ln_2",
        f"transformer.h.{LAYER}.attn.c_proj",
        f"transformer.h.{LAYER}.mlp",
        f"transformer.h.{LAYER}.attn.c_proj",
    ),
    "OPTForCausalLM": _layout("model.decoder.embed_tokens", "model.decoder.layers", *_OPT),
    "Olmo2ForCausalLM": _POST_NORM,
    "Olmo3ForCausalLM": _POST_NORM,
    "OlmoForCausalLM": _LLAMA,
    # Layers with attention normalise after it, as OLMo-2; the others before their recurrence.
    "OlmoHybridForCausalLM": _kinds(
        LayerKind(
            ("self_attn",), "post_attention_layernorm", "post_feedforward_layernorm", _O_PROJ
        ),
        LayerKind(("mlp",), mlp="mlp"),
    ),
    "OlmoeForCausalLM": _LLAMA,
    "Phi3ForCausalLM": _LLAMA,
    "Phi4MultimodalForCausalLM": _LLAMA,
    "PhiForCausalLM": _at_llama("self_attn", "mlp", heads="self_attn.dense"),
    "PhimoeForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": _LLAMA,
    "Qwen2MoeForCausalLM": _LLAMA,
    "Qwen3ForCausalLM": _LLAMA,
    "Qwen3MoeForCausalLM": _LLAMA,
    "Qwen3NextForCausalLM": _HYBRID,
    "Qwen3_5ForCausalLM": _HYBRID,
    "Qwen3_5MoeForCausalLM": _HYBRID,
    "RecurrentGemmaForCausalLM": _kinds(
        LayerKind(
            ("temporal_block:RecurrentGemmaAttention",),
            "temporal_block",
            "mlp_block",
            "temporal_block.o_proj",
        ),
        LayerKind(("mlp_block",), mlp="mlp_block"),
    ),
    "SeedOssForCausalLM": _LLAMA,
    "SmolLM3ForCausalLM": _LLAMA,
    "SolarOpenForCausalLM": _LLAMA,
    "StableLmForCausalLM": _LLAMA,
    "Starcoder2ForCausalLM": _LLAMA,
    "VaultGemmaForCausalLM": _LLAMA,
    "YoutuForCausalLM": _LLAMA,
    # What a shared block of attention and MLP gives is an input of the layer's recurrence, and is
    # not added to the residual stream.
    "Zamba2ForCausalLM": _at_llama(),
    "ZambaForCausalLM": _at_llama(),
    # Learnt scales of stream and outputs.
    "ZayaForCausalLM": _LLAMA,
    "xLSTMForCausalLM": _layout("backbone.embeddings", "backbone.blocks"),
}

# Text models that transformers builds within others only, by `model_type`: a class with their
# modules.
TEXT_CLASSES: Mapping[str, str] = {
    "persimmon": "LlamaForCausalLM",
    "qwen2_5_vl_text": "Qwen2ForCausalLM",
    "qwen2_vl_text": "Qwen2ForCausalLM",
    "qwen3_vl_moe_text": "Qwen3MoeForCausalLM",
    "qwen3_vl_text": "Qwen3ForCausalLM",
}
