"""A recorded forward pass: what each block was called with, and its keys and values.

With it a block can be called again (replay.py). Nothing here knows an architecture: what the axes
of a block's arguments are is found by how they change with the shape of the input.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import DynamicCache

from ktrace.errors import KtraceError
from ktrace.lm.hooks import Edit, hooked
from ktrace.lm.model import LanguageModel


@dataclass(frozen=True)
class Call:
    """What a block was called with.

    Attributes:
        block: the block.
        states: its input, `(rows, n_positions, d_model)`: the very tensor, as a copy would cost
            much. A block that changes it in place fails the proof of the suffix engine.
        arguments: everything else, by name.
        axes: what the axes of the tensors among them are, by name.
    """

    block: nn.Module
    states: torch.Tensor
    arguments: dict[str, Any]
    axes: dict[str, Any]


@dataclass(frozen=True)
class Recording:
    """One forward pass.

    Attributes:
        calls: one for each layer.
        keys: for each layer, `(rows, heads, n_positions, d_head)`.
        values: likewise.
        logits: at the last positions, `(rows, n_logits, vocabulary)`.
        blocks_return_tuples: some families' blocks wrap their states in a tuple.
    """

    calls: list[Call]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    logits: torch.Tensor
    blocks_return_tuples: bool


def record(
    lm: LanguageModel, input_ids: torch.Tensor, edits: Mapping[str, Edit], n_logits: int = 1
) -> Recording:
    """Run the model on `(rows, n_positions)` ids under edits, and keep what a replay needs.

    Args:
        lm: the model.
        input_ids: the rows, all alike in length.
        edits: as for `hooked`.
        n_logits: so many last positions' logits are kept.

    Raises:
        KtraceError: the model has no keys and values to keep.
    """
    blocks = blocks_of(lm)
    other = _arguments_of_another_shape(lm, len(input_ids), input_ids.shape[1])
    calls: list[Call] = []
    outputs: list[Any] = []
    cache: Any = DynamicCache()
    with ExitStack() as stack:
        for layer, block in enumerate(blocks):
            stack.enter_context(_kept_calls(block, calls, other[layer]))
        handle = blocks[-1].register_forward_hook(lambda block, args, out: outputs.append(out))
        stack.callback(handle.remove)
        head = cast(Any, lm.model).get_output_embeddings()
        if head is not None:
            stack.callback(head.register_forward_pre_hook(_contiguous).remove)
        stack.enter_context(hooked(lm.model, edits))
        output = lm.model(
            input_ids=input_ids, past_key_values=cache, use_cache=True, **_last_logits(lm, n_logits)
        )
    kept = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    if len(kept) != lm.n_layers:
        raise KtraceError("its layers do not all keep keys and values of each position")
    return Recording(
        calls=calls,
        keys=[layer.keys for layer in cache.layers],
        values=[layer.values for layer in cache.layers],
        logits=output.logits[:, -n_logits:],
        blocks_return_tuples=isinstance(outputs[0], tuple),
    )


def _contiguous(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The last position is a strided view, which a CPU would multiply row by row."""
    return tuple(arg.contiguous() if isinstance(arg, torch.Tensor) else arg for arg in args)


def _last_logits(lm: LanguageModel, n_logits: int) -> dict[str, int]:
    accepted = inspect.signature(type(lm.model).forward).parameters
    return {"logits_to_keep": n_logits} if "logits_to_keep" in accepted else {}


def blocks_of(lm: LanguageModel) -> list[nn.Module]:
    """The blocks of a model, in their order."""
    return [lm.model.get_submodule(lm.paths.sites(layer)["hidden"]) for layer in range(lm.n_layers)]


@contextmanager
def _kept_calls(block: nn.Module, calls: list[Call], other: dict[str, Any]) -> Iterator[None]:
    """Append what a block is called with, beside its arguments in a pass of another shape."""

    def pre_hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states, arguments = _named(block, args, kwargs)
        rows, n_positions = states.shape[:2]
        axes = {
            name: _axes_of(value, other.get(name), rows, n_positions)
            for name, value in arguments.items()
        }
        calls.append(Call(block, states, arguments, axes))

    handle = block.register_forward_pre_hook(pre_hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _named(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The states that a block is called with, and its other arguments by name."""
    signature = inspect.signature(block.forward)
    arguments = signature.bind(*args, **kwargs).arguments
    states = arguments.pop(next(iter(signature.parameters)))
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name, {})
    return states, arguments


# By model and number of positions.
_OTHERS: WeakKeyDictionary[nn.Module, dict[int, list[dict[str, Any]]]] = WeakKeyDictionary()


def _arguments_of_another_shape(
    lm: LanguageModel, rows: int, n_positions: int
) -> list[dict[str, Any]]:
    """Each block's arguments in a pass over one row that is one position longer, by their shapes.

    An axis is known by how its size changes between two passes: sizes of one pass alone may agree
    by chance. The longer one has at least the masks of the shorter; only where a model takes no
    longer one is it one position shorter.
    """
    assert rows > 1
    known = _OTHERS.setdefault(lm.model, {})
    if n_positions not in known:
        found: list[dict[str, Any]] = []
        change = -1 if n_positions == lm.max_positions else 1

        def pre_hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(_shapes(_named(block, args, kwargs)[1]))

        with ExitStack() as stack:
            for block in blocks_of(lm):
                handle = block.register_forward_pre_hook(pre_hook, with_kwargs=True)
                stack.callback(handle.remove)
            lm.model(
                input_ids=torch.zeros(1, n_positions + change, dtype=torch.long, device=lm.device),
                past_key_values=DynamicCache(),
                use_cache=True,
                **_last_logits(lm, 1),
            )
        known[n_positions] = found
    return known[n_positions]


def _shapes(value: Any) -> Any:
    """Tensors by their shapes; whatever holds them stays."""
    if isinstance(value, torch.Tensor):
        return value.shape
    if isinstance(value, dict):
        return {name: _shapes(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_shapes(item) for item in value)
    return None


@dataclass(frozen=True)
class Axes:
    """What the axes of an argument are.

    Attributes:
        positions: axis of the positions that a block is called on; None where there is none, as in
            a bias for keys.
        per_row: entries of the first axis for each row of the batch (ALiBi has one a head); 0 where
            all rows share the argument.
    """

    positions: int | None
    per_row: int


def _axes_of(value: Any, other: Any, rows: int, n_positions: int) -> Any:
    """Axes of an argument, `other` being its shape in the pass of another shape."""
    if isinstance(value, list | tuple):
        known = isinstance(other, tuple) and len(other) == len(value)
        others = other if known else [None] * len(value)
        return [_axes_of(item, o, rows, n_positions) for item, o in zip(value, others, strict=True)]
    if not isinstance(value, torch.Tensor):
        return None
    sizes = tuple(value.shape)
    if not isinstance(other, torch.Size) or len(other) != len(sizes):
        # It is no tensor at the other length, and only its own shape tells.
        other = torch.Size(
            1 if axis == 0 < len(sizes) - 1 and size == rows else size + (size == n_positions)
            for axis, size in enumerate(sizes)
        )
    per_row = other[0] if sizes and sizes[0] == rows * other[0] else 0
    # The last axis of a mask (rows, heads, queries, keys) or a bias (rows, 1, keys) is the keys.
    candidates = range(1 if per_row else 0, len(sizes) if len(sizes) <= 2 else len(sizes) - 1)
    grown = [n for n in candidates if sizes[n] == n_positions != other[n]]
    return Axes(grown[0] if grown else None, per_row)
