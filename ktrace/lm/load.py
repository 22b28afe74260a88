"""Load a causal language model with its tokenizer, and prove its module paths."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from ktrace.config import ModelConfig
from ktrace.errors import KtraceError
from ktrace.lm.architecture import Architecture, known_paths
from ktrace.lm.devices import chosen_device, dtype_there, first_line
from ktrace.lm.hooks import module_at
from ktrace.lm.made_up import LEAST_TOKENS
from ktrace.lm.memory import within_memory
from ktrace.lm.model import Config, LanguageModel
from ktrace.lm.paths import LAYER, ModulePaths
from ktrace.lm.premises import require_premises
from ktrace.lm.probe import prove
from ktrace.lm.quantization import is_placed_when_loaded, quantizer, require_quantization
from ktrace.lm.report import own_report
from ktrace.lm.source import ModelSource
from ktrace.lm.tokens import Tokenizer, require_offsets
from ktrace.lm.told import Told, untold
from ktrace.lm.use import attend_eagerly, prepare

log = logging.getLogger(__name__)

# An assertion is how torch says that it was built without a device.
_LOADING_ERRORS = (
    *(OSError, ValueError, RuntimeError, ImportError, AssertionError, SafetensorError),
    TypeError,  # how torch says that a device has no numbers of a dtype
)


def load_language_model(
    source: ModelSource, config: ModelConfig, told: Told = untold
) -> LanguageModel:
    """Load weights and tokenizer from a folder or the hub.

    Args:
        source: what `find_model` found.
        config: how to load it; its `name`, `path` and `window` are not read.
        told: learns how many weights are there.

    Raises:
        KtraceError: unknown architecture, unreadable or incomplete weights, a device that is not
            there, a tokenizer without offsets, or a module path that the probe refutes.
    """
    where = f"model.path={source.location}"
    architecture = _architecture(source, config, where)
    architecture.require_decoder()
    paths = (
        ModulePaths(**asdict(config.modules))
        if config.modules is not None
        else architecture.paths()
    )
    # Whatever can be refused is, before the weights are read.
    if isinstance(config.device_map, Mapping):
        _check_map(config.device_map, architecture, paths)
    tokenizer = load_tokenizer(source, origin_of(source, config), where)
    device = None if config.device_map is not None else chosen_device(config)
    require_quantization(config, architecture)
    with own_report(told):
        model = _load_weights(source, config, architecture, device)
    if device is not None:
        model = _placed(model, device, config.attention)
    return language_model(model, tokenizer, paths, of_family=config.modules is None)


def origin_of(source: ModelSource, config: ModelConfig) -> dict[str, object]:
    """What transformers needs to read any file of a model: which state of it, and whose code."""
    return {"revision": source.revision, "trust_remote_code": config.trust_remote_code}


def _architecture(source: ModelSource, config: ModelConfig, where: str) -> Architecture:
    """The checkpoint's `config.json`, as transformers reads it."""
    try:
        read = AutoConfig.from_pretrained(source.location, **origin_of(source, config))
        return Architecture(read, where, config.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        hint = ""
        if "trust_remote_code" in str(error):
            hint = " (model.trust_remote_code=true runs it; read it first)"
        message = f"{where}: config.json cannot be used: {first_line(error)}{hint}"
        raise KtraceError(message) from error


def _load_weights(
    source: ModelSource,
    config: ModelConfig,
    architecture: Architecture,
    device: torch.device | None,
) -> PreTrainedModel:
    where = architecture.where
    asked = where if config.device_map is None else f"{where} model.device_map={config.device_map}"
    device_map = config.device_map
    if is_placed_when_loaded(config, architecture):
        device_map = device_map or {"": str(device)}
    try:
        with within_memory("while the model is loaded"):
            # Typed as if it returned the model alone.
            model, report = architecture.loader.from_pretrained(
                source.location,
                config=_with_fused_activation(architecture.config),
                dtype=config.dtype.value,
                device_map=device_map,
                attn_implementation=config.attention,
                quantization_config=quantizer(config.quantization, config.dtype),
                use_safetensors=None if config.allow_pickle else True,
                output_loading_info=True,
                **origin_of(source, config),
            )
    except _LOADING_ERRORS as error:
        raise KtraceError(f"{asked}: the model cannot be loaded: {first_line(error)}") from error
    # transformers fills what a checkpoint lacks with random numbers, and only warns.
    if report["missing_keys"]:
        raise KtraceError(f"{where}: the checkpoint lacks weights: {_some(report['missing_keys'])}")
    if report["unexpected_keys"]:
        log.warning(
            "%s: weights that the model has no place for are ignored: %s",
            where,
            _some(report["unexpected_keys"]),
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise KtraceError(f"{where}: an adapter was applied, which is no part of its identity")
    loaded: PreTrainedModel = model
    return loaded


@within_memory("while the model is loaded")
def _placed(model: PreTrainedModel, device: torch.device, attention: str | None) -> PreTrainedModel:
    with dtype_there(str(device), str(model.dtype).removeprefix("torch.")):
        moved: PreTrainedModel = cast(Any, model).to(device)
    if attention is None:
        attend_eagerly(moved)
    return moved


def _with_fused_activation(config: Config) -> Config:
    """Name torch's own kernel where a config names GPT-2's formula, spelt out in eight steps.

    It is the same function, tanh(...) included; on a CPU it takes a seventh of the time.
    """
    text = config.get_text_config()
    for key in ("activation_function", "hidden_act"):
        if getattr(text, key, None) == "gelu_new":
            setattr(text, key, "gelu_pytorch_tanh")
    return config


def _some(names: Iterable[str]) -> str:
    first = sorted(names)[:3]
    more = len(set(names)) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def language_model(
    model: PreTrainedModel,
    tokenizer: Tokenizer = None,
    paths: ModulePaths | None = None,
    *,
    of_family: bool | None = None,
) -> LanguageModel:
    """Take a model in memory that nobody else uses, and prove its sites.

    It is changed for good (`prepare`); of someone else's model see `ktrace.lm.given`.

    Args:
        model: as transformers made it.
        tokenizer: its tokenizer, where prompts are text.
        paths: where its sites are; None for those of its architecture.
        of_family: whether the paths are those of a known architecture, whose sites have been looked
            up in its source; None for that where no paths are given.

    Raises:
        KtraceError: see `proven_model`.
    """
    prepare(model)
    model.requires_grad_(False)
    return proven_model(model, tokenizer, paths, of_family=of_family)


@within_memory("with prompts of a few tokens")
def proven_model(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    paths: ModulePaths | None,
    *,
    of_family: bool | None = None,
) -> LanguageModel:
    """Prove a prepared model's sites; arguments are those of `language_model`.

    Raises:
        KtraceError: unknown architecture, a model that does not read from left to right, a module
            path that is refuted, or given and not proven, or a tokenizer of another model.
    """
    config: Config = model.config
    name = type(model).__name__
    Architecture(config, name).require_decoder()
    of_family = paths is None if of_family is None else of_family
    paths = paths or known_paths(config, name, lambda: model, name)
    n_layers = _n_layers(model, paths)
    paths = paths.on(model, n_layers)
    lm = LanguageModel(model, tokenizer, paths, n_layers, d_embedding=0)
    _require_room_for_probes(lm)
    lm = replace(lm, d_embedding=prove(model, paths, n_layers))
    require_premises(model, paths, n_layers, of_family=of_family)
    if tokenizer is not None:
        _require_embeddings(lm)
    return lm


def _require_embeddings(lm: LanguageModel) -> None:
    """A tokenizer whose vocabulary goes on where embeddings end belongs to another model.

    Tokens that were added to it are not counted: some models have tokens for images that a model of
    text alone has no embeddings for.

    Raises:
        KtraceError: it does.
    """
    n_tokens = int(lm.tokenizer.vocab_size)
    if n_tokens > lm.n_embeddings:
        raise KtraceError(
            f"{type(lm.tokenizer).__name__} has {n_tokens} tokens, and {type(lm.model).__name__} "
            f"embeddings for {lm.n_embeddings}: tokenizer and weights do not belong together"
        )


def _require_room_for_probes(lm: LanguageModel) -> None:
    """Proofs take prompts of six tokens, some of which differ.

    Raises:
        KtraceError: the vocabulary, or the longest prompt, is too small for that.
    """
    name, least = type(lm.model).__name__, LEAST_TOKENS
    weight = getattr(module_at(lm.model, lm.paths.embedding), "weight", None)
    if weight is not None and lm.n_embeddings < least:
        raise KtraceError(
            f"{name} has {lm.n_embeddings} token embeddings: ktrace needs {least} to prove it"
        )
    if lm.max_positions is not None and lm.max_positions < least:
        raise KtraceError(
            f"{name} reads {lm.max_positions} tokens at the most: ktrace needs {least} to prove it"
        )


def _n_layers(model: PreTrainedModel, paths: ModulePaths) -> int:
    """How many blocks there are: as the config says, where it does not count parts of them."""
    config: Config = model.config
    named = int(config.get_text_config().num_hidden_layers)
    blocks, _, number = paths.block.rpartition(".")
    there = dict(model.named_modules()).get(blocks)
    if number == LAYER and isinstance(there, nn.ModuleList):
        return min(named, len(there))  # LongCat-Flash counts two layers a block
    return named


def _check_map(
    device_map: Mapping[str, object], architecture: Architecture, paths: ModulePaths
) -> None:
    """Refuse what transformers would pass over, or fail on in the middle of a run.

    Raises:
        KtraceError: a module that is not there, or an embedding that is nowhere in memory.
    """
    model: Any = architecture.skeleton()
    modules, parameters = model.named_modules(), model.named_parameters()
    known = {name for names in (modules, parameters) for name, _ in names}
    unknown = [name for name in device_map if name not in known]
    if unknown:
        raise KtraceError(
            f"model.device_map: {type(model).__name__} has no module {unknown[0]!r}; its first are "
            f"{', '.join(name for name, _ in model.named_children())}"
        )
    # Token ids are made where the embedding is, and the head may be the same matrix.
    head = model.get_output_embeddings()
    ends = {paths.embedding, *(name for name, module in model.named_modules() if module is head)}
    for name, place in device_map.items():
        held = [end for end in sorted(ends) if not name or f"{end}.".startswith(f"{name}.")]
        if place == "disk" and held:
            raise KtraceError(
                f"model.device_map: {name!r} is on disk, and with it {held[0]}: embedding and head "
                "must be in memory, blocks may be on disk"
            )


def load_tokenizer(source: ModelSource, origin: dict[str, object], where: str) -> Tokenizer:
    """A model's tokenizer.

    Raises:
        KtraceError: it has none, or one without offsets.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, **origin)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise KtraceError(
            f"{where}: no tokenizer can be loaded, it needs a tokenizer.json ({first_line(error)})"
        ) from error
    require_offsets(tokenizer, where)
    return tokenizer
