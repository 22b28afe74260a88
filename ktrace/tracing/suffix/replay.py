"""Call single blocks again, on some positions and against recorded keys and values.

A restoration at position t is run on the suffix from t on, as if the model had run up to there.
Many suffixes make one call: as rows of a batch where all begin at the same position, else packed,
side by side in one sequence whose mask lets each see its own past alone. Nothing here knows an
architecture; what a family does with its arguments is proven when an engine is made
(proof.py).

Shapes: n_base rows of the base, n_rows suffixes of each at one position, n_positions of
the whole sequence, n_tokens of all suffixes of one base row in a call.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from ktrace.errors import NotReplayedError
from ktrace.lm.edges import Cut, causal_mask, cut_mask, hidden_value
from ktrace.lm.hooks import states_of
from ktrace.tracing.suffix.calls import Axes, Call, Rows
from ktrace.tracing.suffix.layout import Pack
from ktrace.tracing.suffix.prefix import Prefix
from ktrace.tracing.suffix.recording import Recording


def call_block(
    recording: Recording,
    layer: int,
    states: torch.Tensor,
    pack: Pack,
    rows: slice,
    cut: Mapping[int, tuple[int, ...]],
) -> torch.Tensor:
    """The output of a block on suffixes.

    Args:
        recording: of the run whose keys and values come before the suffixes.
        layer: the block.
        states: its input, `(n_base, n_tokens, d_model)`.
        pack: what the tokens are.
        rows: the base rows among the recording's rows.
        cut: by suffix, sources that its first token does not see; for packs of one position.

    Returns:
        As `states`.

    Raises:
        NotReplayedError: several positions were packed, and the block does not take our mask alone.
        KtraceError: the block takes no mask that can be cut.
    """
    call = recording.calls[layer]
    keys, values = recording.keys[layer][rows], recording.values[layer][rows]
    if len(pack.positions) == 1:
        before = pack.positions[0]
        prefix = Prefix(keys[:, :, :before], values[:, :, :before])
        suffixes = states.reshape(len(states) * pack.n_rows, -1, states.shape[-1])
        arguments = _arguments_of_suffixes(call, pack, prefix, Rows(rows, pack.n_rows))
        if cut:
            _cut(arguments, recording, layer, pack, len(states), cut)
        return _states(call.block(suffixes, **arguments)).view(states.shape)
    arguments = _arguments_of_pack(call, pack, Prefix(keys, values), rows)
    return _states(call.block(states, **arguments))


def _states(output: object) -> torch.Tensor:
    states = states_of(output)
    assert isinstance(states, torch.Tensor)
    return states


def _arguments_of_suffixes(call: Call, pack: Pack, prefix: Prefix, rows: Rows) -> dict[str, object]:
    [position] = pack.positions

    def later(value: torch.Tensor, axis: int) -> torch.Tensor:
        return value.narrow(axis, position, value.shape[axis] - position)

    arguments = call.arguments_on(later, prefix, rows)
    if "attention_mask" in arguments and arguments["attention_mask"] is None:
        device = call.states.device
        mask = _causal_mask(call.block, position, pack.n_positions, device)
        arguments["attention_mask"] = mask
    return arguments


def _cut(
    arguments: dict[str, object],
    recording: Recording,
    layer: int,
    pack: Pack,
    n_base: int,
    cut: Mapping[int, tuple[int, ...]],
) -> None:
    """Take edges out of the mask among the arguments; suffixes of one base row are neighbours."""
    [position] = pack.positions
    call, path = recording.calls[layer], f"block {layer}"
    mask, whole = (found.get("attention_mask") for found in (arguments, call.arguments))
    if whole is None:
        whole = causal_mask(call.states, 0, pack.n_positions)
        mask = whole[:, :, position:]
    hidden = hidden_value(path, whole)
    assert isinstance(mask, torch.Tensor)
    n_suffixes = n_base * pack.n_rows
    cuts = [Cut(slice(row, n_suffixes, pack.n_rows), 0, sources) for row, sources in cut.items()]
    arguments["attention_mask"] = cut_mask(path, mask, n_suffixes, cuts, hidden)


def _arguments_of_pack(call: Call, pack: Pack, prefix: Prefix, rows: slice) -> dict[str, object]:
    _require_own_mask_alone(call)
    n_base, device = len(call.states[rows]), call.states.device
    suffix, places = pack.suffixes.on(device), pack.places.on(device)

    def placed(value: torch.Tensor, axis: int) -> torch.Tensor:
        # Where a model is spread, arguments stay where it made them, whatever device a block is on.
        return value.index_select(axis, pack.places.on(value.device))

    others = {name: value for name, value in call.arguments.items() if name != "attention_mask"}
    arguments = replace(call, arguments=others).arguments_on(placed, prefix, Rows(rows, 1))
    everywhere = torch.arange(pack.n_positions, device=device)
    mask = call.arguments["attention_mask"]
    if mask is None:
        mask = (everywhere <= everywhere[:, None])[None, None]
    assert isinstance(mask, torch.Tensor)
    to_prefix = mask[:1].to(device).index_select(2, places)
    to_pack = to_prefix.index_select(3, places)
    before = everywhere < pack.begins.on(device)[:, None]
    own = suffix[:, None] == suffix
    seen = torch.cat([before, own], dim=1)
    joined = torch.cat([to_prefix, to_pack], dim=3)
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    arguments["attention_mask"] = joined.masked_fill(~seen, hidden).expand(n_base, -1, -1, -1)
    return arguments


def _require_own_mask_alone(call: Call) -> None:
    """In a pack, which token sees which must be for our mask to say, and for nothing else."""
    if "attention_mask" not in call.arguments or _is_flash(call.block):
        raise NotReplayedError("its blocks take no mask")
    axes = call.axes["attention_mask"]
    if isinstance(axes, Axes) and not axes.alike:
        raise NotReplayedError("its rows have masks of their own")
    if any(b.ndim == 4 and b.shape[-2] == b.shape[-1] > 1 for b in call.block.buffers()):
        # By distance in the sequence (GPT-Neo), which in a pack says nothing.
        raise NotReplayedError("its blocks have a mask of their own")


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
