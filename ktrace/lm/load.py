"""Load a causal language model with its tokenizer, and prove its module paths."""

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from ktrace.config import Dtype, ModelConfig, Quantization
from ktrace.errors import KtraceError
from ktrace.lm.families import FAMILIES, LAYER, ModulePaths
from ktrace.lm.linear import multiply_exactly
from ktrace.lm.model import Config, LanguageModel
from ktrace.lm.probe import prove
from ktrace.lm.source import ModelSource
from ktrace.lm.tokens import Tokenizer

log = logging.getLogger(__name__)

# transformers types these as if they took and gave less than they do.
_AUTO_MODEL: Any = AutoModelForCausalLM
_TRANSFORMERS_LOG: Any = transformers_logging
_QUANTIZED: Any = BitsAndBytesConfig

# An assertion is how torch says that it was built without a device.
_LOADING_ERRORS = (OSError, ValueError, RuntimeError, ImportError, AssertionError, SafetensorError)


def load_language_model(source: ModelSource, config: ModelConfig) -> LanguageModel:
    """Load weights and tokenizer from a folder or the hub.

    Args:
        source: what `find_model` found.
        config: how to load it; its `name`, `path` and `window` are not read.

    Raises:
        KtraceError: unknown architecture, unreadable or incomplete weights, a device that is not
            there, a tokenizer without offsets, or a module path that the probe refutes.
    """
    where = f"model.path={source.location}"
    architecture = _architecture(source, config, where)
    paths = (
        ModulePaths(**asdict(config.modules))
        if config.modules
        else _known_paths(architecture, _built(architecture, config), where)
    )
    # Whatever can be refused is, before the weights are read.
    if isinstance(config.device_map, Mapping):
        _check_map(config.device_map, architecture, paths, config.trust_remote_code)
    tokenizer = _load_tokenizer(source, _origin(source, config), where)
    device = None if config.device_map is not None else _device(config.device)
    if config.quantization is not None:
        _require_packages(config.quantization)
    model = _load_weights(source, config, architecture, device)
    if device is not None:
        model = _placed(model, device, config.attention)
    if config.quantization is Quantization.int8:
        multiply_exactly(model)
    return language_model(model, tokenizer, paths)


def _origin(source: ModelSource, config: ModelConfig) -> dict[str, object]:
    return {"revision": source.revision, "trust_remote_code": config.trust_remote_code}


def _architecture(source: ModelSource, config: ModelConfig, where: str) -> Config:
    """The checkpoint's `config.json`, as transformers reads it."""
    try:
        return AutoConfig.from_pretrained(source.location, **_origin(source, config))
    except (OSError, ValueError, KeyError, ImportError) as error:
        hint = ""
        if "trust_remote_code" in str(error):
            hint = " (model.trust_remote_code=true runs it; read it first)"
        message = f"{where}: config.json cannot be used: {_first_line(error)}{hint}"
        raise KtraceError(message) from error


def _load_weights(
    source: ModelSource, config: ModelConfig, architecture: Config, device: torch.device | None
) -> PreTrainedModel:
    where = f"model.path={source.location}"
    asked = where if config.device_map is None else f"{where} model.device_map={config.device_map}"
    device_map = config.device_map
    if config.quantization is not None:
        # Quantized weights cannot be moved afterwards.
        device_map = device_map or {"": str(device)}
    try:
        with _own_report():
            # Typed as if it returned the model alone.
            model, report = _AUTO_MODEL.from_pretrained(
                source.location,
                config=_with_fused_activation(architecture),
                dtype=config.dtype.value,
                device_map=device_map,
                attn_implementation=config.attention,
                quantization_config=_bits(config.quantization, config.dtype),
                use_safetensors=None if config.allow_pickle else True,
                output_loading_info=True,
                **_origin(source, config),
            )
    except _LOADING_ERRORS as error:
        raise KtraceError(f"{asked}: the model cannot be loaded: {_first_line(error)}") from error
    # transformers fills what a checkpoint lacks with random numbers, and only warns.
    if report["missing_keys"]:
        raise KtraceError(f"{where}: the checkpoint lacks weights: {_some(report['missing_keys'])}")
    if report["unexpected_keys"]:
        log.warning(
            "%s: weights that the model has no place for are ignored: %s",
            where,
            _some(report["unexpected_keys"]),
        )
    loaded: PreTrainedModel = model
    return loaded


def _placed(model: PreTrainedModel, device: torch.device, attention: str | None) -> PreTrainedModel:
    moved: PreTrainedModel = cast(Any, model).to(device)
    if attention is None and moved.device.type == "cpu" and moved.dtype == torch.float32:
        # Torch's fused kernel is made for long sequences; with as few tokens as facts have, plain
        # products are up to four times as fast. In float64 they would take softmax in float32.
        moved.set_attn_implementation("eager")
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


@contextmanager
def _own_report() -> Iterator[None]:
    """Keep transformers' table of weights and, away from a terminal, its bars off stderr."""
    library = _TRANSFORMERS_LOG
    if not sys.stderr.isatty():
        library.disable_progress_bar()
    verbosity = library.get_verbosity()
    library.set_verbosity_error()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)


def _some(names: Iterable[str]) -> str:
    first = sorted(names)[:3]
    more = len(set(names)) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def language_model(
    model: PreTrainedModel, tokenizer: Tokenizer = None, paths: ModulePaths | None = None
) -> LanguageModel:
    """Take a model that is already in memory, and prove its sites.

    Raises:
        KtraceError: unknown architecture, or a module path that the probe refutes.
    """
    config: Config = model.config
    name = type(model).__name__
    paths = paths or _known_paths(config, name, name)
    n_layers = int(config.get_text_config().num_hidden_layers)
    model.train(False).requires_grad_(False)
    if model.dtype == torch.float64 and getattr(config, "_experts_implementation", None):
        # Mixtures of experts take products of many small matrices that torch has up to float32.
        model.set_experts_implementation("eager")
    return LanguageModel(model, tokenizer, paths, n_layers, prove(model, paths, n_layers))


def _built(architecture: Config, config: ModelConfig) -> str | None:
    """The class that transformers makes of a checkpoint, whatever class this names."""
    beside = getattr(architecture, "auto_map", None) or {}
    if config.trust_remote_code and "AutoModelForCausalLM" in beside:
        return None  # a class beside the weights
    built: str | None = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(architecture.model_type)
    return built


def _known_paths(config: Config, built: str | None, where: str) -> ModulePaths:
    # Some checkpoints name another class than the one built: MPT that of its own code, Llama-4 the
    # one that reads images, too.
    names = [*(config.architectures or ())[:1], *([built] if built else ())]
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name]
    unknown = names[0] if names else f"of model_type={config.model_type}"
    raise KtraceError(
        f"{where}: architecture {unknown} is not known. Known: {', '.join(sorted(FAMILIES))}. "
        "For another, give its module paths, in quotes: "
        f"'model.modules.block=\"model.layers.{LAYER}\"', and embedding, attn, mlp likewise"
    )


def _check_map(
    device_map: Mapping[str, object], config: Config, paths: ModulePaths, trust_remote_code: bool
) -> None:
    """Refuse what transformers would pass over, or fail on in the middle of a run.

    Raises:
        KtraceError: a module that is not there, or an embedding that is nowhere in memory.
    """
    with torch.device("meta"):
        model = _AUTO_MODEL.from_config(config, trust_remote_code=trust_remote_code)
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


def _require_packages(quantization: Quantization) -> None:
    lacking = [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]
    if lacking:
        raise KtraceError(
            f"model.quantization={quantization.value} needs {' and '.join(lacking)}: "
            "pip install 'ktrace[large]'"
        )


def _bits(quantization: Quantization | None, dtype: Dtype) -> Any:
    """What transformers takes for a quantization."""
    if quantization is None:
        return None
    if quantization is Quantization.int8:
        return _QUANTIZED(load_in_8bit=True)
    # Products are taken in this dtype; bitsandbytes alone would take float32.
    computes_in = None if dtype is Dtype.auto else getattr(torch, dtype.value)
    return _QUANTIZED(load_in_4bit=True, bnb_4bit_compute_dtype=computes_in)


def _load_tokenizer(source: ModelSource, origin: dict[str, object], where: str) -> Tokenizer:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, **origin)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise KtraceError(
            f"{where}: no tokenizer can be loaded, it needs a tokenizer.json ({_first_line(error)})"
        ) from error
    if not tokenizer.is_fast:
        raise KtraceError(
            f"{where}: {type(tokenizer).__name__} gives no character offsets (it has no "
            "tokenizer.json); subjects cannot be found with it"
        )
    return tokenizer


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    choices = "auto, cpu, cuda, cuda:1, mps are what torch takes"
    try:
        device = torch.device(name)
    except RuntimeError as error:  # whose text lists some thirty backends
        raise KtraceError(f"model.device={name!r} is no device; {choices}") from error
    if device.type == "meta":
        raise KtraceError(f"model.device={name!r} holds no numbers; {choices}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        why = _first_line(error)
        if isinstance(error, NotImplementedError | ImportError):  # a paragraph about dispatch
            why = "this torch was built without it"
        raise KtraceError(f"model.device={name!r} is not here ({why}); {choices}") from error
    return device


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
