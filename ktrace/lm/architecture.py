"""Which class transformers makes of a checkpoint, and where that class keeps its sites.

No weights are read here: what can be refused by its config is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from ktrace.errors import KtraceError
from ktrace.lm.families import FAMILIES, TEXT_CLASSES
from ktrace.lm.model import Config
from ktrace.lm.paths import LAYER, ModulePaths
from ktrace.lm.refused import REFUSED

# transformers types its loaders as if they took and gave less than they do.
Loader = Any

_TEXT: Mapping[str, str] = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
_IMAGES_TOO: Mapping[str, str] = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


@dataclass(frozen=True)
class Architecture:
    """What a checkpoint's config says of its class.

    Attributes:
        config: as transformers reads it.
        where: the config key that gave the checkpoint, for messages.
        trust_remote_code: whether a class beside the weights may run.
    """

    config: Config
    where: str
    trust_remote_code: bool = False

    @property
    def has_own_code(self) -> bool:
        """Whether a class beside the weights is built, whose modules are its own affair."""
        beside = getattr(self.config, "auto_map", None) or {}
        return self.trust_remote_code and "AutoModelForCausalLM" in beside

    @property
    def reads_images(self) -> bool:
        """Whether transformers has no class for the text model alone."""
        model_type = self.config.model_type
        return not self.has_own_code and model_type in _IMAGES_TOO.keys() - _TEXT.keys()

    @property
    def loader(self) -> Loader:
        """What of transformers loads it."""
        return AutoModelForImageTextToText if self.reads_images else AutoModelForCausalLM

    @property
    def built(self) -> str | None:
        """The class that transformers makes of it, whatever class it names; None for another's."""
        if self.has_own_code:
            return None
        return (_IMAGES_TOO if self.reads_images else _TEXT).get(self.config.model_type)

    def skeleton(self) -> PreTrainedModel:
        """The model without its numbers."""
        with torch.device("meta"):
            model: PreTrainedModel = self.loader.from_config(
                self.config, trust_remote_code=self.trust_remote_code
            )
        return model

    def require_decoder(self) -> None:
        """Refuse a model that does not read the prompt from left to right, and then answers.

        Raises:
            KtraceError: it is an encoder-decoder, or says that it reads from both sides.
        """
        name = next(iter(self.config.architectures or ()), self.config.model_type)
        if getattr(self.config, "is_encoder_decoder", False):
            raise KtraceError(
                f"{self.where}: {name} is an encoder-decoder: ktrace traces models that read the "
                "prompt with the layers that answer it"
            )
        # By PaliGemma's, transformers' kernels differ in what they make of it.
        text = self.config.get_text_config()
        if getattr(text, "use_bidirectional_attention", None) in (True, "all"):
            raise KtraceError(
                f"{self.where}: {name} reads a prompt from both sides (its config's "
                "use_bidirectional_attention): ktrace traces models that read from left to right"
            )

    def paths(self) -> ModulePaths:
        """See `known_paths`."""
        return known_paths(self.config, self.built, self.skeleton, self.where)


def known_paths(
    config: Config, built: str | None, model: Callable[[], nn.Module], where: str
) -> ModulePaths:
    """The module paths of a known architecture.

    Args:
        config: of a checkpoint or a model.
        built: the class that transformers makes of it; None where that is another's class.
        model: the model, with or without its numbers. Asked only where a text model lies within a
            model that reads more than text: there its paths are found.
        where: what gave the config, for messages.

    Raises:
        KtraceError: the architecture is unknown, or known to have no sites.
    """
    # Some checkpoints name another class than the one built: MPT that of its own code, Llama-4 the
    # one that reads images, too.
    names = [*(config.architectures or ())[:1], *([built] if built else ())]
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name]
    within = _text_class(config) if built else None
    for name in (*names, within):
        if name in REFUSED:
            raise KtraceError(f"{where}: {name} cannot be traced: {REFUSED[name]}")
    if within is not None and within in FAMILIES:
        found = _found_within(model(), FAMILIES[within])
        if found is not None:
            return found
    unknown = names[0] if names else f"of model_type={config.model_type}"
    raise KtraceError(
        f"{where}: architecture {unknown} is not known. Known: {', '.join(sorted(FAMILIES))}. "
        "For another, give its module paths, in quotes: "
        f"'model.modules.block=\"model.layers.{LAYER}\"', and embedding, attn, mlp likewise"
    )


def _text_class(config: Config) -> str | None:
    """The class that the text model within a model that reads more would have by itself."""
    text = config.get_text_config()
    if text is config:
        return None
    return TEXT_CLASSES.get(text.model_type) or _TEXT.get(text.model_type)


def _found_within(model: nn.Module, paths: ModulePaths) -> ModulePaths | None:
    """A text model's paths, in the model that holds it; None where nothing has its modules."""
    modules = dict(model.named_modules())
    for prefix in modules:
        moved = paths.within(prefix)
        if moved.embedding in modules and moved.sites(0)["hidden"] in modules:
            return moved
    return None
