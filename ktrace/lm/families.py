"""Where an architecture keeps the sites that ktrace reads and edits: data, not code.

Every path is proven on the loaded model before use (ktrace/lm/probe.py), so a wrong line here is an
error message, never a wrong number.
"""

from collections.abc import Mapping

from ktrace.lm.paths import LAYER, LayerKind, ModulePaths

__all__ = ["FAMILIES", "LAYER", "TEXT_CLASSES", "ModulePaths"]


def _layout(
    embedding: str,
    blocks: str,
    attn: str | None = None,
    mlp: str | None = None,
    mlp_input: str | None = None,
    kinds: tuple[LayerKind, ...] = (),
) -> ModulePaths:
    block = f"{blocks}.{LAYER}"
    inner = [f"{block}.{path}" if path else None for path in (attn, mlp, mlp_input)]
    return ModulePaths(embedding, block, inner[0], inner[1], inner[2], kinds)


def _at_llama(
    attn: str | None = None, mlp: str | None = None, mlp_input: str | None = None
) -> ModulePaths:
    """Embedding and blocks lie where Llama has them."""
    return _layout("model.embed_tokens", "model.layers", attn, mlp, mlp_input)


def _kinds(*kinds: LayerKind) -> ModulePaths:
    """The same, and layers differ."""
    return _layout("model.embed_tokens", "model.layers", kinds=kinds)


_GPT2 = _layout("transformer.wte", "transformer.h", "attn", "mlp")
_LLAMA = _at_llama("self_attn", "mlp")
# What attention and MLP give is normalised before it is added: the norms' outputs are the sites.
_POST_NORM = _at_llama("post_attention_layernorm", "post_feedforward_layernorm", "mlp")
_GLM4 = _at_llama("post_self_attn_layernorm", "post_mlp_layernorm", "mlp")
# The block itself calls the MLP's two projections.
_OPT = ("self_attn", "fc2", "fc1")
# One mixer a layer, neither attention nor MLP.
_MAMBA = _layout("backbone.embeddings", "backbone.layers")
# Two experts' modules, routed and shared, whose sum the block itself takes: no site.
_SHARED_BESIDE = LayerKind(("self_attn", "block_sparse_moe", "shared_mlp"), "self_attn")
# Layers with attention among layers with a recurrence in its place.
_HYBRID = _kinds(LayerKind(("self_attn",), "self_attn", "mlp"), LayerKind(("mlp",), mlp="mlp"))
_HYBRID_FEED_FORWARD = _kinds(
    LayerKind(("self_attn",), "self_attn", "feed_forward"),
    LayerKind(("feed_forward",), mlp="feed_forward"),
)


def _one_path(attention: str) -> ModulePaths:
    """A hybrid whose attention and recurrence lie at one path; the former by its class."""
    return _kinds(
        LayerKind((f"self_attn:{attention}",), "self_attn", "mlp"), LayerKind(("mlp",), mlp="mlp")
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
    "BambaForCausalLM": _HYBRID_FEED_FORWARD,
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
    ),
    "CTRLLMHeadModel": _layout("transformer.w", "transformer.h", "multi_head_attention", "ffn"),
    "CodeGenForCausalLM": _GPT2,
    "Cohere2ForCausalLM": _LLAMA,
    "Cohere2MoeForCausalLM": _LLAMA,
    "CohereCompassForCausalLM": _LLAMA,
    "CohereForCausalLM": _LLAMA,
    "CwmForCausalLM": _LLAMA,
    "DbrxForCausalLM": _layout(
        "transformer.wte", "transformer.blocks", "norm_attn_norm.attn", "ffn"
    ),
    "DeepseekV2ForCausalLM": _LLAMA,
    "DeepseekV32ForCausalLM": _LLAMA,
    # The first layers' `mlp` is dense, the others' is the mixture with its shared experts.
    "DeepseekV3ForCausalLM": _LLAMA,
    "DiffLlamaForCausalLM": _LLAMA,
    "DogeForCausalLM": _LLAMA,
    "Dots1ForCausalLM": _LLAMA,
    "Dots3NoteForCausalLM": _LLAMA,
    "Emu3ForCausalLM": _LLAMA,
    "Ernie4_5ForCausalLM": _LLAMA,
    "Ernie4_5_MoeForCausalLM": _LLAMA,
    "Exaone4ForCausalLM": _POST_NORM,
    "ExaoneMoeForCausalLM": _LLAMA,
    "FalconForCausalLM": _layout(
        "transformer.word_embeddings", "transformer.h", "self_attention", "mlp"
    ),
    # Attention and recurrence side by side; their outputs are multiplied with constants.
    "FalconH1ForCausalLM": _at_llama("self_attn", "feed_forward"),
    "FalconMambaForCausalLM": _MAMBA,
    "FlexOlmoForCausalLM": _POST_NORM,
    "FlintForCausalLM": _LLAMA,
    "GPT2LMHeadModel": _GPT2,
    "GPTBigCodeForCausalLM": _GPT2,
    "GPTJForCausalLM": _GPT2,
    "GPTNeoForCausalLM": _GPT2,
    "GPTNeoXForCausalLM": _layout("gpt_neox.embed_in", "gpt_neox.layers", "attention", "mlp"),
    # The last layer adds a bias to what its attention gives; no module's output is the sum.
    "GPTNeoXJapaneseForCausalLM": _layout(
        "gpt_neox_japanese.embed_in", "gpt_neox_japanese.layers", "attention", "mlp"
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
        LayerKind(("self_attn",), "self_attn", "shared_mlp"),
        LayerKind(("block_sparse_moe",)),
        LayerKind(("shared_mlp",), mlp="shared_mlp"),
    ),
    "GraniteMoeSWAForCausalLM": _kinds(
        _SHARED_BESIDE, LayerKind(("self_attn",), "self_attn", "block_sparse_moe")
    ),
    "GraniteMoeSharedForCausalLM": _kinds(
        _SHARED_BESIDE, LayerKind(("self_attn",), "self_attn", "block_sparse_moe")
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
    "InklingForCausalLM": _at_llama("attn_sconv"),
    "Jais2ForCausalLM": _LLAMA,
    "JambaForCausalLM": _HYBRID_FEED_FORWARD,
    "JetMoeForCausalLM": _at_llama("self_attention", "mlp"),
    "KimiLinearForCausalLM": _one_path("KimiLinearAttention"),
    "Kolibri1ForCausalLM": _GLM4,
    "LagunaForCausalLM": _LLAMA,
    "Lfm2ForCausalLM": _HYBRID_FEED_FORWARD,
    "Lfm2MoeForCausalLM": _HYBRID_FEED_FORWARD,
    "Lfm3ForCausalLM": _kinds(
        LayerKind(("self_attn",), "post_operator_norm", "post_ffn_norm"),
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
        "model.embeddings.tok_embeddings", "model.layers", "attn", "mlp"
    ),
    "MoshiForCausalLM": _LLAMA,
    # The MLP module returns the residual with its output: its last projection.
    "MptForCausalLM": _layout(
        "transformer.wte", "transformer.blocks", "attn", "ffn.down_proj", "ffn.up_proj"
    ),
    "NanoChatForCausalLM": _LLAMA,
    "NemotronForCausalLM": _LLAMA,
    # One mixer a layer: attention, MLP or experts, or a recurrence.
    "NemotronHForCausalLM": _layout(
        "model.embeddings",
        "model.layers",
        kinds=(
            LayerKind(("mixer:NemotronHAttention",), attn="mixer"),
            LayerKind(("mixer:NemotronHMLP",), mlp="mixer"),
            LayerKind(("mixer:NemotronHMoE",), mlp="mixer"),
        ),
    ),
    # The block gives its states in a list; they are what its last norm gives.
    "OpenAIGPTLMHeadModel": ModulePaths(
        "transformer.tokens_embed",
        f"transformer.h.{LAYER}.ln_2",
        f"transformer.h.{LAYER}.attn.c_proj",
        f"transformer.h.{LAYER}.mlp",
    ),
    "OPTForCausalLM": _layout("model.decoder.embed_tokens", "model.decoder.layers", *_OPT),
    "Olmo2ForCausalLM": _POST_NORM,
    "Olmo3ForCausalLM": _POST_NORM,
    "OlmoForCausalLM": _LLAMA,
    # Layers with attention normalise after it, as OLMo-2; the others before their recurrence.
    "OlmoHybridForCausalLM": _kinds(
        LayerKind(("self_attn",), "post_attention_layernorm", "post_feedforward_layernorm"),
        LayerKind(("mlp",), mlp="mlp"),
    ),
    "OlmoeForCausalLM": _LLAMA,
    "Phi3ForCausalLM": _LLAMA,
    "Phi4MultimodalForCausalLM": _LLAMA,
    "PhiForCausalLM": _LLAMA,
    "PhimoeForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": _LLAMA,
    "Qwen2MoeForCausalLM": _LLAMA,
    "Qwen3ForCausalLM": _LLAMA,
    "Qwen3MoeForCausalLM": _LLAMA,
    "Qwen3NextForCausalLM": _HYBRID,
    "Qwen3_5ForCausalLM": _HYBRID,
    "Qwen3_5MoeForCausalLM": _HYBRID,
    "RecurrentGemmaForCausalLM": _kinds(
        LayerKind(("temporal_block:RecurrentGemmaAttention",), "temporal_block", "mlp_block"),
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
