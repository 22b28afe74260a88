"""Products of a model whose weights were rounded to 8 bits, without the rounding of its states."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ktrace.lm.hooks import replaced_forward


@contextmanager
def exact_products(model: PreTrainedModel) -> Iterator[None]:
    """Multiply states with int8 weights as they are; nothing changes for other models.

    bitsandbytes rounds the states to 8 bits as well (LLM.int8). A difference of the last bit, such
    as two batches of other sizes have, then takes some of them to the next of 255 steps. Whether
    two ways to compute a score are the same can only be told without that.
    """
    with ExitStack() as stack:
        for module in _int8_products(model):
            stack.enter_context(replaced_forward(module, partial(_product, module)))
        yield


def _int8_products(model: PreTrainedModel) -> list[nn.Module]:
    if not getattr(model, "is_quantized", False):
        return []
    from bitsandbytes.nn.modules import Linear8bitLt  # only installed where it is asked for

    return [module for module in model.modules() if isinstance(module, Linear8bitLt)]


def _product(module: Any, states: torch.Tensor) -> torch.Tensor:
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    weight = dequantize_bnb_weight(module.weight, module.state).to(states.dtype)
    bias = None if module.bias is None else module.bias.to(states.dtype)
    return nn.functional.linear(states.to(weight.device), weight, bias)
