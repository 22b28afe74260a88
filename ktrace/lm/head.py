"""Logits from last-layer states: the model's own forward pass with its blocks left out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

_SLICE = 1024  # rows of the vocabulary


def logits_from(
    model: PreTrainedModel, blocks: Sequence[nn.Module], states: torch.Tensor, *, in_tuples: bool
) -> torch.Tensor:
    """What the model makes of last-layer states.

    So the final norm, the head, and what a family does to logits afterwards (Gemma-2 caps them,
    Cohere scales them) are the model's.

    Args:
        model: the model.
        blocks: all of its blocks.
        states: outputs of the last block, `(rows, d_model)`.
        in_tuples: whether blocks wrap their states in a tuple.

    Returns:
        `(rows, vocabulary)`.
    """
    returned = (states[:, None], None) if in_tuples else states[:, None]
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(_replaced_forward(block, lambda *args, **kwargs: returned))
        head = cast(Any, model).get_output_embeddings()
        if _takes_slices(head):
            stack.enter_context(_replaced_forward(head, partial(_in_slices, head)))
        output = model(
            input_ids=torch.zeros(len(states), 1, dtype=torch.long, device=model.device),
            use_cache=False,
        )
    logits: torch.Tensor = output.logits[:, -1]
    return logits


def _takes_slices(head: Any) -> bool:
    return (
        type(head) is nn.Linear
        and "forward" not in head.__dict__  # accelerate's moves states to where the weights are
        and head.weight.device.type == "cpu"
        and head.weight.dtype in (torch.float32, torch.float64)
    )


def _in_slices(head: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """A head's product, some rows of the vocabulary at a time.

    A few hundred states by a whole vocabulary is a shape that CPU libraries are bad at: in slices
    it takes little more than half the time.
    """
    flat = states.flatten(0, -2)
    logits = flat.new_empty(len(flat), head.out_features)
    for first in range(0, head.out_features, _SLICE):
        rows = slice(first, first + _SLICE)
        torch.mm(flat, head.weight[rows].t(), out=logits[:, rows])
    if cast(Any, head).bias is not None:  # typed as if every head had one
        logits += head.bias
    return logits.view(*states.shape[:-1], -1)


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    previous = module.__dict__.get("forward")  # an instance has its own when accelerate placed it
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if previous is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = previous
