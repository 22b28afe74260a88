"""Logits from last-layer states: the model's own forward pass with its blocks left out."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from ktrace.lm.hooks import Args, removing, replaced_forward
from ktrace.lm.model import Untyped


def logits_from(
    model: PreTrainedModel,
    blocks: Sequence[nn.Module],
    states: torch.Tensor,
    *,
    in_tuples: int,
    device: torch.device,
) -> torch.Tensor:
    """What the model makes of last-layer states.

    So the final norm, the head, and what a family does to logits afterwards (Gemma-2 caps them,
    Cohere scales them) are the model's.

    Args:
        model: the model.
        blocks: all of its blocks.
        states: outputs of the last block, `(rows, d_model)`.
        in_tuples: how many things a block returns in a tuple, of which the states are the first;
            0 where it returns the states themselves.
        device: where token ids must be (`ktrace/lm/placement.py`).

    Returns:
        `(rows, vocabulary)`.
    """
    alone = states[:, None]
    returned = (alone, *[None] * (in_tuples - 1)) if in_tuples else alone
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(replaced_forward(block, lambda *args, **kwargs: returned))
        output = model(
            input_ids=torch.zeros(len(states), 1, dtype=torch.long, device=device),
            use_cache=False,
        )
    logits: torch.Tensor = output.logits[:, -1]
    return logits


@contextmanager
def noting_tuples(block: nn.Module) -> Iterator[list[int]]:
    """Note of each call how many things a block returns in a tuple: `in_tuples` above."""
    noted: list[int] = []

    def note(block: nn.Module, args: Args, output: object) -> None:
        noted.append(len(output) if isinstance(output, tuple) else 0)

    with removing(block.register_forward_hook(note)):
        yield noted


@contextmanager
def contiguous_to_head(model: PreTrainedModel) -> Iterator[None]:
    """The last positions are a strided view, which a CPU would multiply row by row."""

    def make_contiguous(head: nn.Module, args: Args) -> Args:
        return tuple(arg.contiguous() if isinstance(arg, torch.Tensor) else arg for arg in args)

    untyped: Untyped = model
    head = untyped.get_output_embeddings()
    with ExitStack() as stack:
        if head is not None:
            stack.enter_context(removing(head.register_forward_pre_hook(make_contiguous)))
        yield
