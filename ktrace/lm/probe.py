"""Prove on the loaded model that its module paths lead where they should."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ktrace.errors import KtraceError
from ktrace.lm.families import LAYER, ModulePaths
from ktrace.lm.head import logits_from
from ktrace.lm.hooks import hooked, module_at

_N_POSITIONS = 4


@torch.inference_mode()
def prove(model: PreTrainedModel, paths: ModulePaths, n_layers: int) -> int:
    """Check every site of every layer in four forward passes.

    The batch has a row for the plain run and one for each site, in which that site alone is edited.
    Each site must fire once, be `(batch, position, d_model)`, in a layer with the blocks' own
    d_model, move the logits of its row when it is edited, and leave them when it is replaced by
    itself. The last block's output must be all that the logits are made of.

    Returns:
        d_model of the embedding's output: the width of the noise.

    Raises:
        KtraceError: a site fails, naming the path and what is wrong with it.
    """
    for template in (paths.block, paths.attn, paths.mlp, paths.mlp_input):
        if template and n_layers > 1 and LAYER not in template:
            raise KtraceError(
                f"module path {template!r} is given for more than one layer; "
                f"a layer's number is written {LAYER}"
            )
    sites = [paths.embedding]
    for layer in range(n_layers):
        sites += paths.sites(layer).values()
    if len(set(sites)) < len(sites):
        twice = sorted({path for path in sites if sites.count(path) > 1})
        raise KtraceError(f"module path {twice[0]!r} is given for more than one site")
    if paths.mlp_input:
        for layer in range(n_layers):
            module_at(model, paths.at(paths.mlp_input, layer))
    blocks = [module_at(model, paths.sites(layer)["hidden"]) for layer in range(n_layers)]
    # Small ids only: they exist in every vocabulary.
    row = torch.arange(1, _N_POSITIONS + 1, device=model.device)
    input_ids = row.expand(1 + len(sites), -1)

    def logits(edits: Mapping[str, Callable[[torch.Tensor], torch.Tensor | None]]) -> torch.Tensor:
        with hooked(model, edits):
            output = model(input_ids=input_ids, use_cache=False)
        last: torch.Tensor = output.logits[:, -1].float()
        return last

    plain = logits({})
    watched = _Watch(len(input_ids))
    with watched.wrapping(blocks[-1]):
        same = logits({path: watched.identity(path) for path in sites})
    for path in sites:
        watched.check(path)
    # An embedding may be narrower, and be projected before the first block (OPT-350m).
    width = watched.shapes[paths.sites(0)["hidden"]][0][2]
    for path in sites[1:]:
        watched.check(path, width)
    # Equal bits on most devices; kernels that add in no fixed order may differ in the last ones.
    epsilon = torch.finfo(model.dtype).eps
    largest = plain.abs().max()
    rounding = (64 if epsilon < 1e-4 else 16) * epsilon * largest
    difference = (same - plain).abs().max()
    if difference > rounding:
        raise KtraceError("replacing every site by itself changed the logits: the paths overlap")
    scale = watched.scale
    moved = logits({path: _edit_row(number, scale) for number, path in enumerate(sites, start=1)})
    change = (moved - plain).abs().amax(dim=-1)
    for number, path in enumerate(sites, start=1):
        if not change[number] > 4 * (difference + epsilon * largest):
            raise KtraceError(f"module path {path!r}: editing its output does not move the logits")
    last_block = paths.sites(n_layers - 1)["hidden"]
    states = watched.last[last_block][:1]
    rebuilt = logits_from(model, blocks, states, in_tuples=watched.in_tuple)
    if not (rebuilt.float() - plain[:1]).abs().max() <= rounding:
        raise KtraceError(
            f"module path {last_block!r}: the model's logits are not those made of its output, so "
            "it is not the last block, or there is a way around it"
        )
    return watched.shapes[paths.embedding][0][2]


class _Watch:
    """Shapes of what passes at each path, the largest scale that states take, the last states."""

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows
        self.shapes: dict[str, list[tuple[int, ...]]] = {}
        self.last: dict[str, torch.Tensor] = {}
        self.scale = 1.0
        self.in_tuple = False

    @contextmanager
    def wrapping(self, block: nn.Module) -> Iterator[None]:
        """Note whether a block wraps its states in a tuple."""

        def note(module: nn.Module, args: Any, output: Any) -> None:
            self.in_tuple = isinstance(output, tuple)

        handle = block.register_forward_hook(note)
        try:
            yield
        finally:
            handle.remove()

    def identity(self, path: str) -> Callable[[torch.Tensor], torch.Tensor | None]:
        def watch(output: torch.Tensor) -> torch.Tensor | None:
            if not isinstance(output, torch.Tensor):
                raise KtraceError(
                    f"module path {path!r}: its output is {type(output).__name__}, not a tensor"
                )
            self.shapes.setdefault(path, []).append(tuple(output.shape))
            self.last[path] = output[..., -1, :].clone()
            self.scale = max(self.scale, float(output.float().square().mean().sqrt()))
            return output.clone()

        return watch

    def check(self, path: str, width: int | None = None) -> None:
        fired = self.shapes.get(path, [])
        if len(fired) != 1:
            raise KtraceError(f"module path {path!r}: ran {len(fired)} times in a pass, not once")
        if len(fired[0]) != 3 or fired[0][:2] != (self.n_rows, _N_POSITIONS):
            raise KtraceError(
                f"module path {path!r}: its output has shape {fired[0]}, "
                f"not (batch, position, d_model) = ({self.n_rows}, {_N_POSITIONS}, d_model)"
            )
        if width is not None and fired[0][2] != width:
            raise KtraceError(
                f"module path {path!r}: its output is {fired[0][2]} wide, and the blocks' is "
                f"{width}: it cannot be what is added to the residual stream"
            )


def _edit_row(row: int, scale: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def edit(output: torch.Tensor) -> torch.Tensor:
        edited = output.clone()
        # Not a constant: a following LayerNorm would remove it.
        wave = torch.sin(torch.arange(output.shape[-1], device=output.device)).to(output.dtype)
        edited[row] += scale * wave
        return edited

    return edit
