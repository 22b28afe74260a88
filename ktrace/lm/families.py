"""Where an architecture keeps the sites that ktrace reads and edits: data, not code.

A path holds `[LAYER_NUM]` where the layer's number belongs. Every path is proven on the loaded
model before use (ktrace/lm/probe.py), so a wrong line here is an error message, never a wrong
number.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ktrace.errors import KtraceError

LAYER = "[LAYER_NUM]"


@dataclass(frozen=True)
class ModulePaths:
    """Dotted module paths, as `model.get_submodule` takes them.

    Attributes:
        embedding: token embedding; its output receives the noise.
        block: a decoder layer; its output is the hidden state.
        attn: the attention of a layer; its output is what is added to the residual stream. None
            where the architecture has no such point.
        mlp: the MLP of a layer, likewise.
        mlp_input: where the MLP's work begins, if that is another module than `mlp`: what an engine
            may call on some positions only.
    """

    embedding: str
    block: str
    attn: str | None = None
    mlp: str | None = None
    mlp_input: str | None = None

    def sites(self, layer: int) -> dict[str, str]:
        """Paths of one layer's sites: `hidden`, `attn`, `mlp`, as far as there are such."""
        templates = {"hidden": self.block, "attn": self.attn, "mlp": self.mlp}
        return {site: self.at(path, layer) for site, path in templates.items() if path}

    @staticmethod
    def at(path: str, layer: int) -> str:
        """A path with the layer's number in it."""
        return path.replace(LAYER, str(layer))

    def require(self, *sites: str) -> None:
        """Refuse sites that the architecture does not have.

        Raises:
            KtraceError: naming the site and what there is.
        """
        have = self.sites(0)
        for site in sites:
            if site not in have:
                raise KtraceError(
                    f"this model has no site {site!r}: mediators that restore or sever it have no "
                    f"meaning; its sites are {', '.join(have)}"
                )


def _layout(
    embedding: str,
    blocks: str,
    attn: str | None = None,
    mlp: str | None = None,
    mlp_input: str | None = None,
) -> ModulePaths:
    block = f"{blocks}.{LAYER}"
    inner = (f"{block}.{path}" if path else None for path in (attn, mlp, mlp_input))
    return ModulePaths(embedding, block, *inner)


_GPT2 = _layout("transformer.wte", "transformer.h", "attn", "mlp")
_LLAMA = _layout("model.embed_tokens", "model.layers", "self_attn", "mlp")
# What attention and MLP give is normalised before it is added: the norms' outputs are the sites.
_POST_NORM = _layout(
    "model.embed_tokens",
    "model.layers",
    "post_attention_layernorm",
    "post_feedforward_layernorm",
    "mlp",
)

# Keyed by `config.architectures[0]` of a checkpoint, or the class that transformers makes of it.
FAMILIES: Mapping[str, ModulePaths] = {
    # Attention and MLP modules return the residual with their output: their last projections.
    "BloomForCausalLM": _layout(
        "transformer.word_embeddings",
        "transformer.h",
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        "mlp.dense_h_to_4h",
    ),
    "CodeGenForCausalLM": _GPT2,
    "Cohere2ForCausalLM": _LLAMA,
    "CohereForCausalLM": _LLAMA,
    # The first layers' `mlp` is dense, the others' is the mixture with its shared experts.
    "DeepseekV3ForCausalLM": _LLAMA,
    "Exaone4ForCausalLM": _POST_NORM,
    "FalconForCausalLM": _layout(
        "transformer.word_embeddings", "transformer.h", "self_attention", "mlp"
    ),
    "GPT2LMHeadModel": _GPT2,
    "GPTJForCausalLM": _GPT2,
    "GPTNeoForCausalLM": _GPT2,
    "GPTNeoXForCausalLM": _layout("gpt_neox.embed_in", "gpt_neox.layers", "attention", "mlp"),
    "Gemma2ForCausalLM": _POST_NORM,
    "Gemma3ForCausalLM": _POST_NORM,
    "GemmaForCausalLM": _LLAMA,
    "GlmForCausalLM": _LLAMA,
    "GptOssForCausalLM": _LLAMA,
    # The block multiplies both outputs with `residual_multiplier`, a constant, before adding them;
    # no module's output is the product.
    "GraniteForCausalLM": _LLAMA,
    "Llama4ForCausalLM": _layout("model.embed_tokens", "model.layers", "self_attn", "feed_forward"),
    "LlamaForCausalLM": _LLAMA,
    # One mixer a layer, neither attention nor MLP.
    "MambaForCausalLM": _layout("backbone.embeddings", "backbone.layers"),
    "MinistralForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "MixtralForCausalLM": _LLAMA,
    # The MLP module returns the residual with its output: its last projection.
    "MptForCausalLM": _layout(
        "transformer.wte", "transformer.blocks", "attn", "ffn.down_proj", "ffn.up_proj"
    ),
    "NemotronForCausalLM": _LLAMA,
    # There is no MLP module: the block itself calls its two projections.
    "OPTForCausalLM": _layout(
        "model.decoder.embed_tokens", "model.decoder.layers", "self_attn", "fc2", "fc1"
    ),
    "Olmo2ForCausalLM": _POST_NORM,
    "OlmoForCausalLM": _LLAMA,
    "Phi3ForCausalLM": _LLAMA,
    "PhiForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": _LLAMA,
    "Qwen2MoeForCausalLM": _LLAMA,
    "Qwen3ForCausalLM": _LLAMA,
    "Qwen3MoeForCausalLM": _LLAMA,
    "SmolLM3ForCausalLM": _LLAMA,
    "StableLmForCausalLM": _LLAMA,
    "Starcoder2ForCausalLM": _LLAMA,
}
