"""Prove on the loaded model that its module paths lead where they should.

Shapes: n_rows, one for the plain run and one for each site; N_POSITIONS of the made-up prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from ktrace.errors import KtraceError
from ktrace.lm.families import LAYER, ModulePaths
from ktrace.lm.head import logits_from, noting_tuples
from ktrace.lm.hooks import Edit, hooked, keep, module_at
from ktrace.lm.made_up import require_finite
from ktrace.lm.placement import input_device

N_POSITIONS = 4


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
    _require_layer_numbers(paths, n_layers)
    sites = [paths.embedding]
    for layer in range(n_layers):
        sites += paths.sites(layer).values()
    _require_one_path_each(sites)
    _require_mlp_inputs(model, paths, n_layers)
    blocks = [module_at(model, paths.sites(layer)["hidden"]) for layer in range(n_layers)]
    n_rows = 1 + len(sites)
    watched = _Watch(n_rows)
    device = input_device(model, paths.embedding)
    # Small ids only: they exist in every vocabulary.
    rows = torch.arange(1, N_POSITIONS + 1, device=device).expand(n_rows, -1)
    plain = _logits(model, rows, {})
    if plain.isnan().any():
        require_finite(model, plain)
    with noting_tuples(blocks[-1]) as in_tuples:
        same = _logits(model, rows, {path: watched.identity(path) for path in sites})
    watched.require_states(sites)
    watched.require_width_of_blocks(sites[1:], paths.sites(0)["hidden"])
    logits = _Logits(plain, same, torch.finfo(model.dtype).eps)
    logits.require_same()
    edits = {path: _edit_row(row, watched.scale) for row, path in enumerate(sites, start=1)}
    logits.require_moved(_logits(model, rows, edits), sites)
    last_block = paths.sites(n_layers - 1)["hidden"]
    states = watched.last[last_block][:1]
    rebuilt = logits_from(model, blocks, states, in_tuples=in_tuples[-1], device=device)
    logits.require_rebuilt(rebuilt.float(), last_block)
    return watched.width(paths.embedding)


def _require_layer_numbers(paths: ModulePaths, n_layers: int) -> None:
    """A path stands for every layer."""
    for template in (paths.block, paths.attn, paths.mlp, paths.mlp_input):
        if template and n_layers > 1 and LAYER not in template:
            raise KtraceError(
                f"module path {template!r} is given for more than one layer; "
                f"a layer's number is written {LAYER}"
            )


def _require_one_path_each(sites: Sequence[str]) -> None:
    """No two sites are one module."""
    if len(set(sites)) < len(sites):
        twice = sorted({path for path in sites if sites.count(path) > 1})
        raise KtraceError(f"module path {twice[0]!r} is given for more than one site")


def _require_mlp_inputs(model: nn.Module, paths: ModulePaths, n_layers: int) -> None:
    """Where an MLP's work begins, there is a module; no site, so that nothing else is asked."""
    if paths.mlp_input:
        for layer in range(n_layers):
            module_at(model, paths.at(paths.mlp_input, layer))


def _logits(model: PreTrainedModel, rows: torch.Tensor, edits: Mapping[str, Edit]) -> torch.Tensor:
    """At the last position, `(n_rows, vocabulary)`."""
    with hooked(model, edits):
        output = model(input_ids=rows, use_cache=False)
    last: torch.Tensor = output.logits[:, -1].float()
    return last


@dataclass(frozen=True)
class _Logits:
    """Logits of a pass without edits, and what must and must not move them.

    Attributes:
        plain: of the pass without edits, `(n_rows, vocabulary)`.
        same: of a pass in which every site is replaced by itself.
        epsilon: of the model's dtype.
    """

    plain: torch.Tensor
    same: torch.Tensor
    epsilon: float

    @property
    def largest(self) -> torch.Tensor:
        return self.plain.abs().max()

    @property
    def rounding(self) -> torch.Tensor:
        # Equal bits on most devices; kernels that add in no fixed order may differ in the last
        # ones.
        return (64 if self.epsilon < 1e-4 else 16) * self.epsilon * self.largest

    @property
    def difference(self) -> torch.Tensor:
        return (self.same - self.plain).abs().max()

    def require_same(self) -> None:
        """Replacing sites by themselves changes nothing."""
        if self.difference > self.rounding:
            raise KtraceError(
                "replacing every site by itself changed the logits: the paths overlap"
            )

    def require_moved(self, moved: torch.Tensor, sites: Sequence[str]) -> None:
        """Editing a site changes what the model says; row n has the n-th site edited, from 1 on."""
        change = (moved - self.plain).abs().amax(dim=-1)
        for row, path in enumerate(sites, start=1):
            if not change[row] > 4 * (self.difference + self.epsilon * self.largest):
                raise KtraceError(
                    f"module path {path!r}: editing its output does not move the logits"
                )

    def require_rebuilt(self, rebuilt: torch.Tensor, last_block: str) -> None:
        """The last block's output is all that the logits are made of; `(1, vocabulary)`."""
        if not (rebuilt - self.plain[:1]).abs().max() <= self.rounding:
            raise KtraceError(
                f"module path {last_block!r}: the model's logits are not those made of its output, "
                "so it is not the last block, or there is a way around it"
            )


class _Watch:
    """Shapes of what passes at each path, the largest scale that states take, the last states."""

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows
        self.shapes: dict[str, list[tuple[int, ...]]] = {}
        self.last: dict[str, torch.Tensor] = {}
        self.scale = 1.0

    def identity(self, path: str) -> Edit:
        """Replace an output by a copy of itself."""
        keep_last = keep(self.last, path, lambda output: output[..., -1, :])

        def watch(output: torch.Tensor) -> torch.Tensor:
            self.shapes.setdefault(path, []).append(tuple(output.shape))
            keep_last(output)
            self.scale = max(self.scale, float(output.float().square().mean().sqrt()))
            return output.clone()

        return watch

    def width(self, path: str) -> int:
        """Of what passed there."""
        return self.shapes[path][0][-1]

    def require_states(self, sites: Sequence[str]) -> None:
        """Each site fires once in a pass, with states of every row and position."""
        for path in sites:
            fired = self.shapes.get(path, [])
            if len(fired) != 1:
                raise KtraceError(
                    f"module path {path!r}: ran {len(fired)} times in a pass, not once"
                )
            if len(fired[0]) != 3 or fired[0][:2] != (self.n_rows, N_POSITIONS):
                raise KtraceError(
                    f"module path {path!r}: its output has shape {fired[0]}, "
                    f"not (batch, position, d_model) = ({self.n_rows}, {N_POSITIONS}, d_model)"
                )

    def require_width_of_blocks(self, sites: Sequence[str], block: str) -> None:
        """What a layer's sites give can be added to the residual stream.

        The embedding is none of them: it may be narrower, and be projected before the first block
        (OPT-350m).
        """
        width = self.width(block)
        for path in sites:
            if self.width(path) != width:
                raise KtraceError(
                    f"module path {path!r}: its output is {self.width(path)} wide, and the blocks' "
                    f"is {width}: it cannot be what is added to the residual stream"
                )


def _edit_row(row: int, scale: float) -> Edit:
    def edit(output: torch.Tensor) -> torch.Tensor:
        edited = output.clone()
        # Not a constant: a following LayerNorm would remove it.
        wave = torch.sin(torch.arange(output.shape[-1], device=output.device)).to(output.dtype)
        edited[row] += scale * wave
        return edited

    return edit
