"""What a block was called with, and what it would be called with on other positions.

Nothing here knows an architecture: what the axes of a block's arguments are is found by how they
change with the shape of the input.

Shapes: n_rows of a batch, n_positions of the tokens that the model reads.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import nn
from transformers import Cache

from ktrace.errors import NotReplayedError
from ktrace.lm.hooks import Args, Kwargs

# An argument's tensors by their shapes; whatever else it is, None.
Shapes: TypeAlias = "torch.Size | tuple[Shapes, ...] | None"
# Takes from an argument's axis what belongs to the positions at hand.
Select = Callable[[torch.Tensor, int], torch.Tensor]


class Rows(NamedTuple):
    """The rows that a block is called on again.

    Attributes:
        base: which rows of the recorded pass they go on from.
        n_each: how many go on from each; they follow one another.
    """

    base: slice
    n_each: int


@dataclass(frozen=True)
class Axes:
    """What the axes of a tensor among the arguments are.

    Attributes:
        positions: axis of the positions that a block is called on; None where there is none, as in
            a bias for keys.
        per_row: entries of the first axis for each row of the batch (ALiBi has one a head); 0 where
            all rows share the argument.
        alike: whether every row has the same entries, as masks and positions do without padding. An
            argument that is made from token ids differs from row to row.
    """

    positions: int | None
    per_row: int
    alike: bool = True


# Arguments without positions or rows of their own: a replay hands them on as they are.
_SAME_EVERYWHERE = (bool, int, float, str, torch.dtype, torch.device, nn.Module, Cache)

# Of each tensor of an argument; None stands for what is no tensor.
AxesOfArgument: TypeAlias = "Axes | list[AxesOfArgument] | None"


@dataclass(frozen=True)
class Call:
    """What a block was called with.

    Attributes:
        block: the block.
        states: its input, `(n_rows, n_positions, d_model)`: the very tensor, as a copy would cost
            much. A block that changes it in place fails the proof of the suffix engine.
        arguments: everything else, by name.
        axes: what the axes of the tensors among them are, by name.
    """

    block: nn.Module
    states: torch.Tensor
    arguments: Mapping[str, object]
    axes: Mapping[str, AxesOfArgument]

    def arguments_on(self, select: Select, cache: Cache, rows: Rows) -> dict[str, object]:
        """The arguments for some positions, for other rows, and with another cache."""
        return {
            name: cache
            if isinstance(value, Cache)
            else _selected(value, self.axes[name], select, rows)
            for name, value in self.arguments.items()
        }


def named(block: nn.Module, args: Args, kwargs: Kwargs) -> tuple[torch.Tensor, dict[str, object]]:
    """The states that a block is called with, and its other arguments by name."""
    signature = inspect.signature(block.forward)
    arguments = signature.bind(*args, **kwargs).arguments
    states = arguments.pop(next(iter(signature.parameters)))
    assert isinstance(states, torch.Tensor)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name, {})
    return states, arguments


def shapes_of(value: object) -> Shapes:
    """See `Shapes`."""
    if isinstance(value, torch.Tensor):
        return value.shape
    if isinstance(value, list | tuple):
        return tuple(shapes_of(item) for item in value)
    return None


def axes_of(value: object, other: Shapes, n_rows: int, n_positions: int) -> AxesOfArgument:
    """Axes of an argument in a pass over `(n_rows, n_positions)`.

    Args:
        value: the argument.
        other: its shapes in a pass over one row of another length. An axis is known by how its size
            changes between the two: sizes of one pass alone may agree by chance.
        n_rows: of the pass.
        n_positions: likewise.

    Raises:
        NotReplayedError: an axis changes, and nothing says what it is.
    """
    if isinstance(value, list | tuple):
        others: Sequence[Shapes] = [None] * len(value)
        if isinstance(other, tuple) and not isinstance(other, torch.Size):
            others = other if len(other) == len(value) else others
        return [
            axes_of(item, of_item, n_rows, n_positions)
            for item, of_item in zip(value, others, strict=True)
        ]
    if not isinstance(value, torch.Tensor):
        # Gemma-4's blocks are given a mapping for states that layers share: empty where none do.
        is_empty = isinstance(value, Mapping) and not value
        if not (value is None or is_empty or isinstance(value, _SAME_EVERYWHERE)):
            raise NotReplayedError(f"its blocks take a {type(value).__name__}")
        return None
    sizes = value.shape
    changed = _as_if_changed(sizes, n_rows, n_positions)
    if isinstance(other, torch.Size) and len(other) == len(sizes):
        changed = other
    # Axes are looked for in their order: that of the rows, which may be heads x rows; then that of
    # the positions, but not of the keys, which are the last axis of a mask (rows, heads, queries,
    # keys) and of a bias (rows, 1, keys).
    per_row = changed[0] if len(sizes) > 0 and sizes[0] == n_rows * changed[0] else 0
    has_keys = len(sizes) > 2
    inner = range(1 if per_row else 0, len(sizes) - 1 if has_keys else len(sizes))
    grown = [axis for axis in inner if sizes[axis] == n_positions != changed[axis]]
    explained = {*grown[:1], *([0] if per_row else []), *([len(sizes) - 1] if has_keys else [])}
    if any(sizes[axis] != changed[axis] for axis in {*range(len(sizes))} - explained):
        raise NotReplayedError(
            f"its blocks take a tensor of shape {tuple(sizes)}, {tuple(changed)} in another pass: "
            "which axis is that of the rows, or of the positions, cannot be told"
        )
    return Axes(grown[0] if grown else None, per_row, not per_row or _alike(value, per_row))


def _alike(value: torch.Tensor, per_row: int) -> bool:
    """Whether all rows have the entries of the first."""
    if value.stride(0) == 0:  # one row, shown as many
        return True
    by_row = value.reshape(-1, per_row, *value.shape[1:])
    return bool((by_row == by_row[:1]).all())


def _as_if_changed(sizes: torch.Size, n_rows: int, n_positions: int) -> torch.Size:
    """A shape in a pass over one row of another length, where only the shape itself tells."""
    changed = [size + 1 if size == n_positions else size for size in sizes]
    is_more_than_positions = len(sizes) > 1
    if is_more_than_positions and sizes[0] == n_rows:
        changed[0] = 1
    return torch.Size(changed)


def _selected(value: object, axes: AxesOfArgument, select: Select, rows: Rows) -> object:
    """An argument for some positions, and for other rows: each has what its base row had."""
    if isinstance(axes, list):
        assert isinstance(value, list | tuple)
        return tuple(
            _selected(item, of_item, select, rows)
            for item, of_item in zip(value, axes, strict=True)
        )
    if axes is None:
        return value
    assert isinstance(value, torch.Tensor)
    if axes.positions is not None:
        value = select(value, axes.positions)
    if not axes.per_row:
        return value
    by_row = value.reshape(-1, axes.per_row, *value.shape[1:])[rows.base]
    n_rows = len(by_row) * rows.n_each
    if axes.alike:  # nothing is copied where a row has one entry
        first = by_row[0]
        if axes.per_row == 1:
            return first.expand(n_rows, *first.shape[1:])
        return first.repeat(n_rows, *[1] * (first.ndim - 1))
    each = by_row[:, None].expand(-1, rows.n_each, *by_row.shape[1:])
    return each.flatten(0, 2)
