"""How linear layers multiply: float32 on a CPU by oneDNN, 8-bit weights without other rounding.

Torch multiplies float32 matrices by MKL on x86. oneDNN, which torch ships for other precisions, is
as good on the shapes at hand where MKL is at home, and a tenth to a half faster elsewhere: most for
few states, and for a head's whole vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MethodType
from typing import TypeGuard

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ktrace.lm.hooks import replaced_forward
from ktrace.lm.model import Untyped

# Products with fewer weights are not worth the calls.
LEAST_WEIGHTS = 2**18
# oneDNN compiles kernels for every number of states that it meets, 0.6 MB each, and keeps a
# thousand. So numbers are rounded up to a multiple of 16, and to one of sixteen sizes an octave:
# from 256 states on, where the time goes, this is 2 % more work on average.
_LEAST_STEP = 16


@contextmanager
def onednn_products(model: nn.Module, least_weights: int = LEAST_WEIGHTS) -> Iterator[None]:
    """Let a model's linear layers multiply by oneDNN, where they can and where it pays.

    Those are large, float32, on a CPU, and plain: a layer with a forward of its own (placed by
    accelerate, quantized) or of another class keeps it. The numbers differ by rounding. A torch
    without the operator, or built without oneDNN, multiplies as ever.

    Args:
        model: whose layers.
        least_weights: layers with fewer keep torch's product.
    """
    with ExitStack() as stack:
        product = _operator()
        if product is not None:
            for module in model.modules():
                if _takes_product(module, least_weights):
                    forward = partial(_forward, product, module)
                    stack.enter_context(replaced_forward(module, forward))
        yield


# States, weight `(out, in)`, bias.
Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def _operator() -> Product | None:
    """What torch's compiler lowers linear layers to; nothing public multiplies dense tensors so."""
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    onednn: Untyped = torch.backends.mkldnn
    if operator is None or not onednn.is_available() or not onednn.enabled:
        return None
    return lambda states, weight, bias: operator(states, weight, bias, "none", [], "")


def _takes_product(module: nn.Module, least_weights: int) -> TypeGuard[nn.Linear | Conv1D]:
    if type(module) not in (nn.Linear, Conv1D) or "forward" in module.__dict__:
        return False
    weight, bias = module.weight, _bias_of(module)
    return (
        type(weight) is nn.Parameter  # not a quantized one
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.numel() >= least_weights
        # The operator reads a bias as if it were dense.
        and (bias is None or (bias.dtype == torch.float32 and bias.is_contiguous()))
    )


def _bias_of(module: nn.Module) -> torch.Tensor | None:
    bias = module.bias
    return bias if isinstance(bias, torch.Tensor) else None


def _forward(product: Product, module: nn.Linear | Conv1D, states: torch.Tensor) -> torch.Tensor:
    weight = module.weight.t() if type(module) is Conv1D else module.weight
    flat = states.reshape(-1, states.shape[-1])
    n_states, n_padded = len(flat), _rounded_up(len(flat))
    if n_padded > n_states:
        padded = flat.new_empty(n_padded, flat.shape[1])
        padded[:n_states] = flat
        padded[n_states:] = 0
        flat = padded
    outputs = product(flat, weight, _bias_of(module))[:n_states]
    return outputs.view(*states.shape[:-1], len(weight))


def _rounded_up(n_states: int) -> int:
    step = max(_LEAST_STEP, (1 << n_states.bit_length()) // 32)
    return -(-n_states // step) * step


def multiply_exactly(model: PreTrainedModel) -> None:
    """Let a model multiply its int8 weights with states as they are.

    bitsandbytes rounds the states to 8 bits, too, except in columns where any row of the batch has
    a large number (LLM.int8, Dettmers et al. 2022). So a row's numbers hang on its company, and
    differ between engines and batches by more than rounding.
    """
    from bitsandbytes.nn.modules import Linear8bitLt  # installed where weights are quantized

    for module in model.modules():
        if isinstance(module, Linear8bitLt):
            # accelerate wraps what a module did before, and keeps it under this name.
            name = "_old_forward" if hasattr(module, "_old_forward") else "forward"
            # Bound, and no `partial`: two of one module are equal, and the judge of engines asks
            # whether a model computes as it did (ktrace/tracing/suffix/judge.py).
            setattr(module, name, MethodType(_exact_product, module))


def _exact_product(module: Untyped, states: torch.Tensor) -> torch.Tensor:
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    weight = dequantize_bnb_weight(module.weight, module.state).to(states.dtype)
    bias = None if module.bias is None else module.bias.to(states.dtype)
    return nn.functional.linear(states, weight, bias)
