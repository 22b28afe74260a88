"""Rounded weights: which a config asks for, and which a checkpoint already holds."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from ktrace.config import Dtype, ModelConfig, Quantization
from ktrace.errors import KtraceError
from ktrace.lm.architecture import Architecture
from ktrace.lm.linear import multiply_exactly

# transformers types it as if it took less than it does.
_QUANTIZED: Any = BitsAndBytesConfig

_BFLOAT16_ON_CPU = "support_avx512bf16_for_cpu"  # of its modules with weights of 4 bits
_BITSANDBYTES = "bitsandbytes"


def is_placed_when_loaded(config: ModelConfig, architecture: Architecture) -> bool:
    """Whether weights are rounded on their device, and cannot be moved afterwards."""
    return config.quantization is not None or _stored(architecture) == _BITSANDBYTES


def require_quantization(config: ModelConfig, architecture: Architecture) -> None:
    """Refuse rounding that transformers could not do, or would pass over.

    Raises:
        KtraceError: the checkpoint's weights are rounded already, or a package is not installed.
    """
    stored, asked = _stored(architecture), config.quantization
    if asked is not None and stored is not None:
        raise KtraceError(
            f"model.quantization={asked.value}: the weights of {architecture.where} are stored "
            f"quantized ({stored}), and are taken as they are: leave model.quantization out"
        )
    if not is_placed_when_loaded(config, architecture):
        return
    lacking = [name for name in (_BITSANDBYTES, "accelerate") if find_spec(name) is None]
    if lacking:
        reason = f"{architecture.where} is stored quantized and"
        if asked is not None:
            reason = f"model.quantization={asked.value}"
        raise KtraceError(f"{reason} needs {' and '.join(lacking)}: pip install 'ktrace[large]'")


def quantizer(quantization: Quantization | None, dtype: Dtype) -> Any:
    """What transformers takes for a quantization."""
    if quantization is None:
        return None
    if quantization is Quantization.int8:
        return _QUANTIZED(load_in_8bit=True)
    # Products are taken in this dtype; bitsandbytes alone would take float32.
    computes_in = None if dtype is Dtype.auto else getattr(torch, dtype.value)
    return _QUANTIZED(load_in_4bit=True, bnb_4bit_compute_dtype=computes_in)


def multiply_int8_exactly(model: PreTrainedModel) -> None:
    """See `multiply_exactly`; a model without weights of 8 bits stays as it is.

    The modules say it, however the model came by them: rounded when it was loaded, stored rounded,
    or made by someone else.
    """
    if any(_is_int8(module) for module in model.modules()):
        multiply_exactly(model)


def multiply_int4_in_own_dtype(model: PreTrainedModel) -> None:
    """Take products of weights of 4 bits in the dtype that was asked for.

    On CPUs with instructions for it bitsandbytes takes them in bfloat16, whatever the states are:
    then what a state gives hangs on how many share its product.
    """
    for module in model.modules():
        if hasattr(module, _BFLOAT16_ON_CPU):
            setattr(module, _BFLOAT16_ON_CPU, False)


def _is_int8(module: nn.Module) -> bool:
    # By name: bitsandbytes need not be installed.
    return any(base.__name__ == "Linear8bitLt" for base in type(module).__mro__)


def _stored(architecture: Architecture) -> str | None:
    """How the checkpoint's weights are rounded, as it names it; None where they are not."""
    stored = getattr(architecture.config, "quantization_config", None)
    if not stored:
        return None
    given = stored if isinstance(stored, dict) else stored.to_dict()
    if given.get("load_in_8bit") or given.get("load_in_4bit"):
        return _BITSANDBYTES
    method = given.get("quant_method")
    return str(getattr(method, "value", method))
