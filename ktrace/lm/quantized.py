"""Weights that were rounded to 8 bits, multiplied without rounding anything else."""

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def multiply_exactly(model: PreTrainedModel) -> None:
    """Let a model multiply its int8 weights with states as they are.

    bitsandbytes rounds the states to 8 bits, too, except in columns where any row of the batch has
    a large number (LLM.int8, Dettmers et al. 2022). So a row's numbers hang on its company, and
    differ between engines and batches by more than rounding. This changes the model for good.
    """
    from bitsandbytes.nn.modules import Linear8bitLt  # installed where weights are quantized

    for module in model.modules():
        if isinstance(module, Linear8bitLt):
            # accelerate wraps what a module did before, and keeps it under this name.
            name = "_old_forward" if hasattr(module, "_old_forward") else "forward"
            setattr(module, name, partial(_product, module))


def _product(module: Any, states: torch.Tensor) -> torch.Tensor:
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    weight = dequantize_bnb_weight(module.weight, module.state).to(states.dtype)
    bias = None if module.bias is None else module.bias.to(states.dtype)
    return nn.functional.linear(states, weight, bias)
