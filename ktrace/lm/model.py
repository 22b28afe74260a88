"""A loaded language model whose sites have been proven."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedModel

from ktrace.lm.families import ModulePaths
from ktrace.lm.placement import devices_of, input_device
from ktrace.lm.tokens import Tokenizer
from ktrace.terms import HEAD

Config = Any  # of transformers: its attributes differ from family to family

# What torch and transformers give without a type, or with one that leaves out what is used of it.
Untyped: TypeAlias = Any


# Layers together, of how many: MLP and attention in GPT-2 XL (Meng et al. 2022).
PUBLISHED_WINDOW, PUBLISHED_LAYERS = 10, 48
_DEEP = 24  # layers from which on the published window is taken as it is


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model whose sites have been proven.

    Attributes:
        model: of transformers; ktrace prepares it, or borrows it (`ktrace.lm.use`).
        tokenizer: None where the caller works with token ids only.
        paths: where its sites are.
        n_layers: number of blocks.
        d_embedding: width of the embedding's output, which receives the noise.
        name: for tables and titles.
        window: layers that `mlp` and `attn` restore together, unless another window is given.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    paths: ModulePaths
    n_layers: int
    d_embedding: int
    name: str = "model"
    window: int = PUBLISHED_WINDOW

    def __repr__(self) -> str:
        """One line: a module's own would fill a notebook."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        places = ", ".join(sorted(map(str, devices_of(self.model))))
        adapters = self._adapters()
        kind = type(self.model).__name__ + (f" with {', '.join(adapters)}" if adapters else "")
        width = getattr(self._text_config, "hidden_size", self.d_embedding)
        return (
            f"LanguageModel({self.name!r}: {kind}, {self.n_layers} layers, "
            f"{width} wide, {dtype} on {places})"
        )

    def _adapters(self) -> list[str]:
        """Names of the adapters of peft that change what its layers give, as it is now."""
        found = {
            f"adapter {name!r}"
            for module in self.model.modules()
            # Of a whole model of transformers it is a method.
            if getattr(module, "disable_adapters", None) is False
            for name in getattr(module, "active_adapters", ())
        }
        return sorted(found)

    @property
    def device(self) -> torch.device:
        """Where token ids must be."""
        return input_device(self.model, self.paths.embedding)

    @property
    def accelerators(self) -> set[torch.device]:
        """Devices beside the CPU on which the model computes: several where it is spread."""
        return {device for device in devices_of(self.model) if device.type != "cpu"}

    @property
    def embedding_weight(self) -> torch.Tensor:
        """The token embedding matrix, `(vocabulary, d_embedding)`."""
        weight = self.model.get_submodule(self.paths.embedding).weight
        assert isinstance(weight, torch.Tensor)
        return weight

    @property
    def n_embeddings(self) -> int:
        """One more than the largest token id that the model can read."""
        return int(self.embedding_weight.shape[0])

    @property
    def blocks(self) -> list[nn.Module]:
        """The decoder layers, in their order."""
        paths = (self.paths.sites(layer)["hidden"] for layer in range(self.n_layers))
        return [self.model.get_submodule(path) for path in paths]

    @property
    def d_inner(self) -> int:
        """Width of an MLP's inner states; where the config names none, the usual four times."""
        return int(getattr(self._text_config, "intermediate_size", None) or 4 * self.d_embedding)

    @property
    def max_positions(self) -> int | None:
        """Most tokens that a prompt may have; None where the config names no limit."""
        return longest_prompt(self._text_config)

    def n_heads(self, layer: int) -> int:
        """Heads of a layer's attention: those of its queries, where groups share keys."""
        config = self._text_config
        if getattr(config, "is_heterogeneous", False):  # layers have configs of their own
            config = config.per_layer_config[layer]
        return int(config.num_attention_heads)

    @property
    def most_heads(self) -> int:
        """Of any layer whose heads can be told."""
        layers = self.paths.layers_with(HEAD, self.n_layers)
        return max((self.n_heads(layer) for layer in layers), default=0)

    @property
    def _text_config(self) -> Config:
        config: Config = self.model.config
        return config.get_text_config()


def as_narrow_as_published(n_layers: int) -> int:
    """The window that is the published share of so many layers: about a fifth."""
    return max(1, int(n_layers * PUBLISHED_WINDOW / PUBLISHED_LAYERS + 0.5))


def usual_window(n_layers: int) -> int:
    """As presets have it: the published one, of fewer than 24 layers the published share."""
    return PUBLISHED_WINDOW if n_layers >= _DEEP else as_narrow_as_published(n_layers)


def longest_prompt(text_config: Config) -> int | None:
    """See `LanguageModel.max_positions`."""
    # MPT's name for it is the second.
    names = ("max_position_embeddings", "max_seq_len")
    limit = next((n for n in (getattr(text_config, name, None) for name in names) if n), None)
    return None if limit is None else int(limit)
