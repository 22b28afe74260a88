"""Load a causal language model with its tokenizer, and prove its module paths."""

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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

from ktrace.errors import KtraceError
from ktrace.lm.families import FAMILIES, LAYER, ModulePaths
from ktrace.lm.probe import prove
from ktrace.lm.quantized import multiply_exactly
from ktrace.lm.source import ModelSource

log = logging.getLogger(__name__)

# An assertion is how torch says that it was built without a device.
_LOADING_ERRORS = (OSError, ValueError, RuntimeError, ImportError, AssertionError, SafetensorError)


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model whose sites have been proven.

    Attributes:
        model: in evaluation mode, without gradients.
        tokenizer: None where the caller works with token ids only.
        paths: where its sites are.
        n_layers: number of blocks.
        d_embedding: width of the embedding's output, which receives the noise.
        name: for tables and titles.
        window: layers that `mlp` and `attn` restore together, unless another window is given.
    """

    model: PreTrainedModel
    tokenizer: Any
    paths: ModulePaths
    n_layers: int
    d_embedding: int
    name: str = "model"
    window: int = 10

    @property
    def device(self) -> torch.device:
        """Where token ids must be."""
        return self.embedding_weight.device

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
    def max_positions(self) -> int | None:
        """Most tokens that a prompt may have; None where the config names no limit."""
        config = self._text_config
        # MPT's name for it is the second.
        limits = (
            getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len")
        )
        limit = next((limit for limit in limits if limit), None)
        return None if limit is None else int(limit)

    @property
    def _text_config(self) -> Any:
        config: Any = self.model.config
        return config.get_text_config()


def load_language_model(
    source: ModelSource,
    *,
    dtype: str = "auto",
    device: str = "auto",
    device_map: Any = None,
    attention: str | None = None,
    quantization: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    paths: ModulePaths | None = None,
) -> LanguageModel:
    """Load weights and tokenizer from a folder or the hub.

    Args:
        source: what `find_model` found.
        dtype: `float32`, `bfloat16`, ..., or `auto` for the checkpoint's own.
        device: a torch device, or `auto` for CUDA, else MPS, else CPU.
        device_map: passed on to transformers; then `device` must be `auto`.
        attention: transformers' implementation, such as `eager` or `flash_attention_2`; None for
            `eager` in float32 on a CPU and transformers' own choice elsewhere.
        quantization: `int8` or `int4`: weights are rounded to so many bits by bitsandbytes.
        trust_remote_code: whether Python code that lies beside the weights may run.
        allow_pickle: whether weights may be other than safetensors; loading those can run code.
        paths: for an architecture that `FAMILIES` does not hold.

    Raises:
        KtraceError: unknown architecture, unreadable or incomplete weights, a device that is not
            there, a tokenizer without offsets, or a module path that the probe refutes.
    """
    where = f"model.path={source.location}"
    origin = {"revision": source.revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source.location, **origin)
    except (OSError, ValueError, KeyError, ImportError) as error:
        hint = ""
        if "trust_remote_code" in str(error):
            hint = " (model.trust_remote_code=true runs it; read it first)"
        message = f"{where}: config.json cannot be used: {_first_line(error)}{hint}"
        raise KtraceError(message) from error
    paths = paths or _known_paths(config, _built(config, trust_remote_code), where)
    if isinstance(device_map, Mapping):  # also before the weights are read
        _check_map(device_map, config, paths, trust_remote_code)
    tokenizer = _load_tokenizer(source, origin, where)
    asked = where if device_map is None else f"{where} model.device_map={device_map}"
    chosen = None if device_map is not None else _device(device)  # before the weights are read
    if quantization is not None:
        _require_packages(quantization)
        # Quantized weights cannot be moved afterwards.
        device_map = device_map or {"": str(chosen)}
    try:
        with _own_report():
            # Typed as if it returned the model alone.
            model, report = cast(Any, AutoModelForCausalLM).from_pretrained(
                source.location,
                config=_with_fused_activation(config),
                dtype=dtype,
                device_map=device_map,
                attn_implementation=attention,
                quantization_config=_bits(quantization, dtype),
                use_safetensors=None if allow_pickle else True,
                output_loading_info=True,
                **origin,
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
    if device_map is None:
        model = model.to(chosen)
        if attention is None and model.device.type == "cpu" and model.dtype == torch.float32:
            # Torch's fused kernel is made for long sequences; with as few tokens as facts have,
            # plain products are up to four times as fast. In float64 they would take softmax in
            # float32.
            model.set_attn_implementation("eager")
    if quantization == "int8":
        multiply_exactly(model)
    return language_model(model, tokenizer, paths)


def _with_fused_activation(config: Any) -> Any:
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
    library = cast(Any, transformers_logging)
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
    model: PreTrainedModel, tokenizer: Any = None, paths: ModulePaths | None = None
) -> LanguageModel:
    """Take a model that is already in memory, and prove its sites.

    Raises:
        KtraceError: unknown architecture, or a module path that the probe refutes.
    """
    config: Any = model.config
    name = type(model).__name__
    paths = paths or _known_paths(config, name, name)
    n_layers = int(config.get_text_config().num_hidden_layers)
    model.train(False).requires_grad_(False)
    if model.dtype == torch.float64 and getattr(config, "_experts_implementation", None):
        # Mixtures of experts take products of many small matrices that torch has up to float32.
        model.set_experts_implementation("eager")
    return LanguageModel(model, tokenizer, paths, n_layers, prove(model, paths, n_layers))


def _built(config: Any, trust_remote_code: bool) -> str | None:
    """The class that transformers makes of a config, whatever class the checkpoint names."""
    if trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return None  # a class beside the weights
    built: str | None = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    return built


def _known_paths(config: Any, built: str | None, where: str) -> ModulePaths:
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
    device_map: Mapping[Any, Any], config: Any, paths: ModulePaths, trust_remote_code: bool
) -> None:
    """Refuse what transformers would pass over, or fail on in the middle of a run.

    Raises:
        KtraceError: a module that is not there, or an embedding that is nowhere in memory.
    """
    with torch.device("meta"):
        model = cast(Any, AutoModelForCausalLM).from_config(
            config, trust_remote_code=trust_remote_code
        )
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


def _require_packages(quantization: str) -> None:
    lacking = [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]
    if lacking:
        raise KtraceError(
            f"model.quantization={quantization} needs {' and '.join(lacking)}: "
            "pip install 'ktrace[large]'"
        )


def _bits(quantization: str | None, dtype: str) -> Any:
    """What transformers takes for a quantization."""
    if quantization is None:
        return None
    make = cast(Any, BitsAndBytesConfig)
    if quantization == "int8":
        return make(load_in_8bit=True)
    if quantization != "int4":
        raise KtraceError(f"model.quantization={quantization!r} is unknown: int8 or int4")
    # Products are taken in this dtype; bitsandbytes alone would take float32.
    computes_in = None if dtype == "auto" else getattr(torch, dtype)
    return make(load_in_4bit=True, bnb_4bit_compute_dtype=computes_in)


def _load_tokenizer(source: ModelSource, origin: dict[str, Any], where: str) -> Any:
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
