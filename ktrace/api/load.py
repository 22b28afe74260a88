"""`ktrace.load_model`: a model from files, or one that is in memory."""

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, replace

from torch import nn

from ktrace.api.asked import arguments_named
from ktrace.config import ModelConfig
from ktrace.config.compose import choices, composed
from ktrace.errors import KtraceError
from ktrace.lm.given import given_model, name_of
from ktrace.lm.load import load_language_model
from ktrace.lm.model import LanguageModel, usual_window
from ktrace.lm.paths import ModulePaths
from ktrace.lm.source import find_model
from ktrace.lm.tokens import Tokenizer

# Keys `model.*` that a model in memory leaves open; it brings its dtype, device and so on.
_OPEN = ("name", "window", "modules")


def load_model(
    model: str | os.PathLike[str] | nn.Module,
    tokenizer: Tokenizer | None = None,
    **overrides: object,
) -> LanguageModel:
    """Take a model and its tokenizer, from files or from memory, and prove its module paths.

    Args:
        model: a preset (`tiny`, `gpt2_xl`, ...; see docs/models.md), a folder or a hub id. A folder
            that is called like a preset is written `./name`. Or a model of transformers that is in
            memory, on any device, in any mode, also with adapters of peft: it is left as it was,
            and traced as it is at each call (docs/models.md).
        tokenizer: of a model in memory; files bring their own.
        **overrides: keys `model.*` of the config, such as `dtype="bfloat16"`, `device="cuda:1"`,
            `revision="main"`, `window=5`, or `modules={"embedding": ..., "block": ..., ...}`. For a
            model in memory `name`, `window` and `modules`; its name is the last part of what it was
            loaded from, else its class, and its window 10, of fewer than 24 layers about a fifth.

    Returns:
        The model, for `ktrace.trace` and `ktrace.trace_many`.

    Raises:
        KtraceError: an unknown override, or a model that cannot be had, loaded or traced.

    Examples:
        >>> import ktrace
        >>> ktrace.load_model("tiny", device="cpu")
        LanguageModel('tiny': LlamaForCausalLM, 6 layers, 128 wide, float32 on cpu)

        A model in memory:

        >>> from transformers import AutoModelForCausalLM, AutoTokenizer
        >>> folder = ktrace.load_model("tiny").model.config._name_or_path
        >>> model = AutoModelForCausalLM.from_pretrained(folder)
        >>> ktrace.load_model(model, AutoTokenizer.from_pretrained(folder), name="mine").name
        'mine'
    """
    if not isinstance(model, str | os.PathLike):
        return _in_memory(model, tokenizer, overrides)
    if tokenizer is not None:
        raise KtraceError(
            f"model={os.fspath(model)!r:.100} is read from files, which bring their tokenizer: "
            "leave tokenizer out, or give a model of transformers"
        )
    return _from_files(model, overrides)


def _from_files(model: str | os.PathLike[str], overrides: Mapping[str, object]) -> LanguageModel:
    preset = isinstance(model, str) and model in choices("model") and model != "auto"
    given = overrides if preset else {"path": os.fspath(model), **overrides}
    config = composed([f"model={model if preset else 'auto'}"], {"model": given}).model
    source = find_model(config.path, config.revision, allow_pickle=config.allow_pickle)
    lm = load_language_model(source, config)
    return replace(lm, name=config.name, window=config.window)


def _in_memory(model: object, tokenizer: object, overrides: Mapping[str, object]) -> LanguageModel:
    if isinstance(model, LanguageModel):
        raise KtraceError(f"model={model!r} is loaded already: give it to ktrace.trace as it is")
    for key in overrides:
        if key in (entry.name for entry in fields(ModelConfig)) and key not in _OPEN:
            raise KtraceError(
                f"{key}={overrides[key]!r:.60} has no meaning for a model in memory, which is "
                f"taken as it is: choose from {', '.join(_OPEN)}"
            )
    found = re.sub(r"[^A-Za-z0-9._+-]+", "-", name_of(model)).lstrip("._+-")
    named = {"path": type(model).__name__, "name": found or type(model).__name__, **overrides}
    with arguments_named("model", *_OPEN):
        config = composed(["model=auto"], {"model": named}).model
    paths = None if config.modules is None else ModulePaths(**asdict(config.modules))
    lm = given_model(model, tokenizer, paths)
    window = config.window if "window" in overrides else usual_window(lm.n_layers)
    return replace(lm, name=config.name, window=window)
