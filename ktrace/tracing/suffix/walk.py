"""One walk over the layers, for the restorations of a plan at every position at once.

Shapes: n_base rows of the base, n_rows of the plan at a layer, n_answer tokens of an
answer; a suffix at position t has n_positions - t tokens.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch

from ktrace.lm.hooks import Edit, hooked, module_at
from ktrace.lm.paths import INPUT
from ktrace.terms import HEAD
from ktrace.tracing.suffix.layout import PROJECTIONS, BlockCall, LaidStep, Put, lay_out
from ktrace.tracing.suffix.parts import Complete, computed_at
from ktrace.tracing.suffix.plan import Plan
from ktrace.tracing.suffix.replay import call_block
from ktrace.tracing.suffix.runs import Runs


class Walk:
    """Runs every restoration of a plan, from each of some positions on.

    Args:
        runs: what is restored and what it is restored to.
        plan: which rows run at which layer; the same at every position.
        positions: where suffixes begin, in ascending order.
        pack_tokens: see `lay_out`.
    """

    def __init__(self, runs: Runs, plan: Plan, positions: Sequence[int], pack_tokens: int) -> None:
        self.runs = runs
        self.positions = positions
        self.steps = lay_out(
            plan, tuple(positions), runs.n_positions, runs.n_answer, runs.n_base, pack_tokens
        )

    def run(self) -> torch.Tensor:
        """Last-layer states that predict: `(positions, n_rows, n_base, n_answer, d_model)`."""
        # By position, (n_base, n_rows, tokens of the suffix, d_model).
        states: list[torch.Tensor | None] = [None] * len(self.positions)
        for layer, step in enumerate(self.steps):
            suffixes = self._suffixes(step, layer, states)
            by_output = self._by_output(step, layer)
            states = [
                _joined([*some, *others]) for some, others in zip(suffixes, by_output, strict=True)
            ]
        return torch.stack([s.transpose(0, 1) for s in states if s is not None])

    def _suffixes(
        self, step: LaidStep, layer: int, states: Sequence[torch.Tensor | None]
    ) -> list[list[torch.Tensor]]:
        """Outputs of a layer for the rows that differ from the base at later positions, too.

        Returns:
            For each position `(n_base, rows, tokens, d_model)`, of the last layer those tokens that
            predict; nothing where there are no such rows.
        """
        if not step.calls:
            return [[] for _ in self.positions]
        inputs = [
            self._input(step, layer, position, before)
            for position, before in zip(self.positions, states, strict=True)
        ]
        found: list[list[torch.Tensor]] = []
        for call in step.calls:
            pack = call.pack
            packed = [part.flatten(1, 2) for part in inputs[len(found) :][: len(pack.positions)]]
            together = packed[0] if len(packed) == 1 else torch.cat(packed, dim=1)
            output = self._called(call, layer, together)
            parts = torch.split(output, pack.sizes, dim=1)
            outputs = [p.reshape(len(p), pack.n_rows, -1, p.shape[-1]) for p in parts]
            found += [[out[:, :, -self._n_kept(layer) :]] for out in outputs]
        return found

    def _by_output(self, step: LaidStep, layer: int) -> list[list[torch.Tensor]]:
        """The same for the rows that differ from the base at their own position alone."""
        if not step.n_by_output:
            return [[] for _ in self.positions]
        runs, output, first = self.runs, None, 0
        if (call := step.by_output) is not None:
            [first] = call.pack.positions
            base = runs.base_input(layer, first)[:, None].expand(-1, step.n_by_output, -1, -1)
            output = self._called(call, layer, base.flatten(1, 2)).view(base.shape)
        found = []
        for position in self.positions:
            begin = max(position, runs.n_positions - self._n_kept(layer))
            base = runs.base_block_output(layer, begin)[:, None]
            rows = base.repeat(1, step.n_by_output, 1, 1)
            if position == begin:
                assert output is not None
                rows[:, :, 0] = output[:, :, position - first]
            found.append([rows])
        return found

    def _n_kept(self, layer: int) -> int:
        """Tokens of a suffix whose states are kept: all, if the layer is not the last."""
        runs = self.runs
        return runs.n_answer if layer == runs.lm.n_layers - 1 else runs.n_positions

    def _input(
        self, step: LaidStep, layer: int, position: int, states: torch.Tensor | None
    ) -> torch.Tensor:
        parts: list[torch.Tensor] = []
        if states is not None:
            sources = step.sources
            parts.append(
                states if sources is None else states.index_select(1, sources.on(states.device))
            )
        for restored in step.joining_restored:
            joining = self.runs.base_input(layer, position)
            if restored:
                joining = joining.clone()
                joining[:, 0] = self.runs.source_input(layer, position)
            parts.append(joining[:, None])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _called(self, call: BlockCall, layer: int, states: torch.Tensor) -> torch.Tensor:
        runs, lm = self.runs, self.runs.lm
        points = ((site, lm.paths.point(site, layer)) for site in call.puts)
        edits = {point: self._edit(call.puts[site], site, layer) for site, point in points if point}
        # A window may hold layers without the attention that is cut.
        cut = call.cut if "attn" in lm.paths.sites(layer) else {}
        with hooked(lm.model, edits), ExitStack() as stack:
            self._leave_out(call, layer, stack)
            return call_block(runs.recording, layer, states, call.pack, runs.base, cut)

    def _leave_out(self, call: BlockCall, layer: int, stack: ExitStack) -> None:
        """Let parts of a block compute what is neither known nor put, and counts."""
        runs, paths = self.runs, self.runs.lm.paths

        def leave_out(part: str, first: str, last: str, complete: Complete | None = None) -> None:
            if (tokens := call.computed.get(part)) is not None:
                modules = [module_at(runs.lm.model, path) for path in (first, last)]
                alone = computed_at(runs.lm.blocks[layer], modules, tokens, runs.n_base, complete)
                stack.enter_context(alone)

        if mlp := paths.sites(layer).get("mlp"):
            leave_out("mlp", paths.at(paths.mlp_input, layer) if paths.mlp_input else mlp, mlp)
        if heads := paths.point(HEAD, layer):
            output = heads.removesuffix(INPUT)
            leave_out(HEAD, output, output)
        for path, recorded in runs.recording.projections[layer].items():
            leave_out(PROJECTIONS, path, path, partial(runs.fill, call.known, recorded, layer))

    def _edit(self, puts: Sequence[Put], site: str, layer: int) -> Edit:
        runs = self.runs
        recorded = runs.recorded(site, layer)

        def edit(output: torch.Tensor) -> torch.Tensor:
            edited = output.clone(memory_format=torch.contiguous_format)
            by_token = edited.view(runs.n_base, -1, edited.shape[-1])
            runs.fill(puts, recorded, layer, by_token)
            return edited

        return edit


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor | None:
    if len(parts) < 2:
        return parts[0] if parts else None
    return torch.cat(list(parts), dim=1)
