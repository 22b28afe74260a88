"""Call single blocks again, on some positions and against recorded keys and values.

A restoration at position t is run on the suffix from t on, as if the model had run up to there.
Many suffixes make one call: as rows of a batch where all begin at the same position, else packed,
side by side in one sequence whose mask lets each see its own past alone. Nothing here knows an
architecture; what a family does with its arguments is proven when an engine is made
(proof.py).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Cache

from ktrace.errors import KtraceError
from ktrace.lm.head import logits_from
from ktrace.lm.hooks import module_at
from ktrace.lm.model import LanguageModel
from ktrace.tracing.suffix.recording import Call, Recording, blocks_of


@dataclass(frozen=True)
class Pack:
    """Suffixes that go through a block together.

    Attributes:
        positions: where they begin.
        n_positions: of the whole sequence.
        n_rows: suffixes at each position.
    """

    positions: tuple[int, ...]
    n_positions: int
    n_rows: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of one suffix, by position."""
        return [self.n_positions - position for position in self.positions]

    @property
    def sizes(self) -> list[int]:
        """Tokens of all suffixes, by position."""
        return [self.n_rows * length for length in self.lengths]

    def first_tokens(self, number: int, rows: list[int]) -> list[int]:
        """Where the suffixes of some rows begin in the pack, at the position with this number."""
        offset = sum(self.sizes[:number])
        return [offset + row * self.lengths[number] for row in rows]

    def last_tokens(self, n_last: int) -> list[int]:
        """The last tokens of every suffix in the pack."""
        rows = list(range(self.n_rows))
        return [
            first + length - back
            for number, length in enumerate(self.lengths)
            for first in self.first_tokens(number, rows)
            for back in range(n_last, 0, -1)
        ]


def call_block(
    recording: Recording, layer: int, states: torch.Tensor, pack: Pack, rows: slice
) -> torch.Tensor:
    """The output of a block on suffixes.

    Args:
        recording: of the run whose keys and values come before the suffixes.
        layer: the block.
        states: its input, `(n_base, tokens of the pack, d_model)`.
        pack: what the tokens are.
        rows: the base rows among the recording's rows.

    Returns:
        As `states`.

    Raises:
        KtraceError: several positions were packed, and the block does not take our mask alone.
    """
    call = recording.calls[layer]
    if len(pack.positions) == 1:
        suffixes = states.reshape(len(states) * pack.n_rows, -1, states.shape[-1])
        arguments = _arguments_of_suffixes(recording, layer, pack, rows, len(suffixes))
        return _states(call.block(suffixes, **arguments)).view(states.shape)
    arguments = _arguments_of_pack(recording, layer, pack, rows, states.device)
    return _states(call.block(states, **arguments))


def _states(output: Any) -> torch.Tensor:
    states: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _arguments_of_suffixes(
    recording: Recording, layer: int, pack: Pack, rows: slice, n_rows: int
) -> dict[str, Any]:
    call, [position] = recording.calls[layer], pack.positions

    def later(value: torch.Tensor, axis: int) -> torch.Tensor:
        return value.narrow(axis, position, value.shape[axis] - position)

    prefix = _Prefix(
        recording.keys[layer][rows, :, :position], recording.values[layer][rows, :, :position]
    )
    arguments = _arguments(call, later, prefix, n_rows)
    if "attention_mask" in arguments and arguments["attention_mask"] is None:
        device = call.states.device
        mask = _causal_mask(call.block, position, pack.n_positions, device)
        arguments["attention_mask"] = mask
    return arguments


def _arguments_of_pack(
    recording: Recording, layer: int, pack: Pack, rows: slice, device: torch.device
) -> dict[str, Any]:
    call = recording.calls[layer]
    if "attention_mask" not in call.arguments or _is_flash(call.block):
        raise KtraceError("its blocks take no mask")
    if any(b.ndim == 4 and b.shape[-2] == b.shape[-1] > 1 for b in call.block.buffers()):
        # By distance in the sequence (GPT-Neo), which in a pack says nothing.
        raise KtraceError("its blocks have a mask of their own")
    rows_at = [position for position in pack.positions for _ in range(pack.n_rows)]
    starts = torch.tensor(rows_at, device=device)
    lengths = pack.n_positions - starts
    suffix = torch.arange(len(rows_at), device=device).repeat_interleave(lengths)
    first = (lengths.cumsum(0) - lengths)[suffix]
    places = torch.arange(len(suffix), device=device) - first + starts[suffix]

    def placed(value: torch.Tensor, axis: int) -> torch.Tensor:
        return value.index_select(axis, places)

    keys, values = recording.keys[layer][rows], recording.values[layer][rows]
    others = {name: value for name, value in call.arguments.items() if name != "attention_mask"}
    arguments = _arguments(
        Call(call.block, call.states, others, call.axes), placed, _Prefix(keys, values), len(keys)
    )
    mask = call.arguments["attention_mask"]
    if mask is None:
        everywhere = torch.arange(pack.n_positions, device=device)
        mask = (everywhere <= everywhere[:, None])[None, None]
    # Without padding all rows have the same mask.
    to_prefix = mask[:1].index_select(2, places)
    to_pack = to_prefix.index_select(3, places)
    before = torch.arange(pack.n_positions, device=device) < starts[suffix][:, None]
    own = suffix[:, None] == suffix
    seen = torch.cat([before, own], dim=1)
    joined = torch.cat([to_prefix, to_pack], dim=3)
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    arguments["attention_mask"] = joined.masked_fill(~seen, hidden).expand(len(keys), -1, -1, -1)
    return arguments


# Takes from an argument's axis what belongs to the positions at hand.
Select = Callable[[torch.Tensor, int], torch.Tensor]


def _arguments(call: Call, select: Select, prefix: "_Prefix", n_rows: int) -> dict[str, Any]:
    return {
        name: prefix
        if isinstance(value, Cache)
        else _selected(value, call.axes[name], select, n_rows)
        for name, value in call.arguments.items()
    }


def _selected(value: Any, axes: Any, select: Select, n_rows: int) -> Any:
    """An argument for some positions, and for so many rows.

    Without padding all rows have the same masks and positions: the first row's serve every row.
    """
    if isinstance(value, list | tuple):
        return tuple(
            _selected(item, a, select, n_rows) for item, a in zip(value, axes, strict=True)
        )
    if not isinstance(value, torch.Tensor):
        return value
    if axes.positions is not None:
        value = select(value, axes.positions)
    if not axes.per_row:
        return value
    first = value[: axes.per_row]
    if axes.per_row == 1:
        return first.expand(n_rows, *first.shape[1:])
    return first.repeat(n_rows, *[1] * (first.ndim - 1))


class _Prefix:
    """Stands where a block expects its cache: gives prefix ‖ new, and keeps nothing."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys = keys
        self.values = values

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.keys.shape[-2]:
            return keys, values
        return self._joined(self.keys, keys), self._joined(self.values, values)

    def _joined(self, prefix: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        # The prefix of each base row serves every restoration of that row; writing both into
        # place copies each once.
        length = prefix.shape[-2]
        joined = new.new_empty(*new.shape[:-2], length + new.shape[-2], new.shape[-1])
        joined[..., length:, :] = new
        by_base = joined.view(len(prefix), -1, *joined.shape[1:])
        by_base[..., :length, :] = prefix[:, None]
        return joined

    def get_seq_length(self, *args: Any) -> int:
        return int(self.keys.shape[-2])


def _causal_mask(
    block: nn.Module, position: int, n_positions: int, device: torch.device
) -> torch.Tensor | None:
    """What a block that was called without a mask, because it is causal by itself, now needs."""
    if position == 0 or position == n_positions - 1:
        return None  # still causal by itself, or one query that sees everything
    if _is_flash(block):
        return None  # aligns its causal mask with the last key
    queries = torch.arange(position, n_positions, device=device)[:, None]
    return (torch.arange(n_positions, device=device) <= queries)[None, None]


def _is_flash(block: nn.Module) -> bool:
    attention = next((m for m in block.modules() if hasattr(m, "config")), block)
    return "flash" in str(getattr(getattr(attention, "config", None), "_attn_implementation", ""))


@contextmanager
def mlp_on(lm: LanguageModel, layer: int, tokens: slice | list[int]) -> Iterator[None]:
    """Let a layer's MLP see some places of the sequence alone.

    Its output is zero at the others: right at those seen, meaningless elsewhere.
    """
    paths = lm.paths
    block, last = (module_at(lm.model, paths.sites(layer)[site]) for site in ("hidden", "mlp"))
    first = module_at(lm.model, paths.at(paths.mlp_input, layer)) if paths.mlp_input else last
    batch: list[int] = []

    def note_shape(block: nn.Module, args: tuple[Any, ...]) -> None:
        batch[:] = args[0].shape[:2]

    def narrow(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = "" if args else next(iter(kwargs))
        states = args[0] if args else kwargs[name]
        # Some blocks flatten (rows, positions) before their MLP.
        if states.ndim == 2:
            narrowed = states.unflatten(0, batch)[:, tokens].flatten(0, 1)
        else:
            narrowed = states[:, tokens]
        return ((narrowed, *args[1:]), kwargs) if args else (args, kwargs | {name: narrowed})

    def widen(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        n_rows, n_positions = batch
        wide = states.new_zeros(n_rows, n_positions, states.shape[-1])
        wide[:, tokens] = states.view(n_rows, -1, states.shape[-1])
        if states.ndim == 2:
            wide = wide.flatten(0, 1)
        return (wide, *output[1:]) if isinstance(output, tuple) else wide

    with ExitStack() as stack:
        for handle in (
            block.register_forward_pre_hook(note_shape),
            first.register_forward_pre_hook(narrow, with_kwargs=True),
            last.register_forward_hook(widen),
        ):
            stack.callback(handle.remove)
        yield


def logits_of(lm: LanguageModel, recording: Recording, states: torch.Tensor) -> torch.Tensor:
    """Logits from last-layer states.

    Args:
        lm: the model.
        recording: any of this model.
        states: outputs of the last block, `(rows, d_model)`.

    Returns:
        `(rows, vocabulary)`.
    """
    return logits_from(lm.model, blocks_of(lm), states, in_tuples=recording.blocks_return_tuples)
