"""One walk over the layers, for the restorations of a plan at every position at once.

Shapes: n_base rows of the base, n_rows of the plan at a layer, n_answer tokens of an
answer; a suffix at position t has n_positions - t tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch

from ktrace.lm.hooks import Edit, hooked
from ktrace.terms import HEAD
from ktrace.tracing.suffix.plan import Plan, Step
from ktrace.tracing.suffix.replay import Pack, call_block, mlp_on
from ktrace.tracing.suffix.runs import Runs


class Change(NamedTuple):
    """What stands at some places of a pack instead.

    Attributes:
        tokens: of the pack.
        values: of each base row, `(n_base, d_model)`.
        features: which of them are put.
    """

    tokens: list[int]
    values: torch.Tensor
    features: slice = slice(None)


class Walk:
    """Runs every restoration of a plan, from each of some positions on.

    Args:
        runs: what is restored and what it is restored to.
        plan: which rows run at which layer; the same at every position.
        positions: where suffixes begin.
        pack_tokens: suffixes of several positions share a block call until it has so many tokens,
            base rows included; 1 gives each position calls of its own.
    """

    def __init__(self, runs: Runs, plan: Plan, positions: Sequence[int], pack_tokens: int) -> None:
        self.runs = runs
        self.plan = plan
        self.positions = positions
        self._pack_tokens = pack_tokens

    def run(self) -> torch.Tensor:
        """Last-layer states that predict: `(positions, n_rows, n_base, n_answer, d_model)`."""
        # By position, (n_base, n_rows, tokens of the suffix, d_model).
        states: list[torch.Tensor | None] = [None] * len(self.positions)
        for layer, step in enumerate(self.plan.steps):
            if not step.n_rows:
                continue
            inputs = [
                self._input(step, layer, position, before)
                for position, before in zip(self.positions, states, strict=True)
            ]
            states = []
            for pack in self._packs(step.n_rows):
                packed, inputs = inputs[: len(pack.positions)], inputs[len(pack.positions) :]
                tokens = [part.flatten(1, 2) for part in packed]
                together = tokens[0] if len(tokens) == 1 else torch.cat(tokens, dim=1)
                output = self._called(step, layer, pack, together)
                parts = torch.split(output, pack.sizes, dim=1)
                states += [p.reshape(len(p), step.n_rows, -1, p.shape[-1]) for p in parts]
        n_answer = self.runs.n_answer
        predicting = [s[:, :, -n_answer:].transpose(0, 1) for s in states if s is not None]
        return torch.stack(predicting)

    def _packs(self, n_rows: int) -> list[Pack]:
        """Cut the positions into calls; later ones have shorter suffixes, and are joined first."""
        n_positions, n_base = self.runs.n_positions, self.runs.n_base
        packs: list[list[int]] = []
        room = 0
        for position in reversed(self.positions):
            size = n_base * n_rows * (n_positions - position)
            if size > room:
                packs.append([])
                room = self._pack_tokens
            packs[-1].append(position)
            room -= size
        return [Pack(tuple(reversed(pack)), n_positions, n_rows) for pack in reversed(packs)]

    def _called(self, step: Step, layer: int, pack: Pack, states: torch.Tensor) -> torch.Tensor:
        runs, lm = self.runs, self.runs.lm
        n_answer = runs.n_answer
        numbers = list(range(len(pack.positions)))
        context: AbstractContextManager[None] = nullcontext()
        if layer == lm.n_layers - 1:
            # Only the predicting positions count: edits at others do not, nor do others' MLPs.
            numbers = [number for number in numbers if pack.lengths[number] <= n_answer]
            if len(numbers) < len(pack.positions) and "mlp" in lm.paths.sites(layer):
                alone = len(pack.positions) == 1
                seen = slice(-n_answer, None) if alone else pack.last_tokens(n_answer)
                context = mlp_on(lm, layer, seen)
        with context, hooked(lm.model, self._edits(step, layer, pack, numbers)):
            # A window may hold layers without the attention that is cut.
            cut = step.cut if "attn" in lm.paths.sites(layer) else {}
            return call_block(runs.recording, layer, states, pack, runs.base, cut)

    def _input(
        self, step: Step, layer: int, position: int, states: torch.Tensor | None
    ) -> torch.Tensor:
        parts: list[torch.Tensor] = []
        if states is not None:
            unchanged = step.sources == list(range(states.shape[1]))
            parts.append(states if unchanged else states[:, step.sources])
        for restored in step.joining_restored:
            joining = self.runs.base_input(layer, position)
            if restored:
                joining = joining.clone()
                joining[:, 0] = self.runs.source_input(layer, position)
            parts.append(joining[:, None])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _edits(self, step: Step, layer: int, pack: Pack, numbers: list[int]) -> dict[str, Edit]:
        """Restore and sever the first tokens of suffixes at the positions with these numbers."""
        paths = self.runs.lm.paths
        sites = {*step.restored, *step.severed, *([HEAD] if step.heads else [])} if numbers else ()
        points = {site: point for site in sites if (point := paths.point(site, layer))}
        return {
            point: self._set_tokens(
                [
                    change
                    for number in numbers
                    for change in self._changes(step, layer, pack, site, number)
                ]
            )
            for site, point in points.items()
        }

    def _changes(
        self, step: Step, layer: int, pack: Pack, site: str, number: int
    ) -> Iterator[Change]:
        """Restored and severed tokens of a site's output, at the position with this number."""
        position = pack.positions[number]
        if site == HEAD:
            values = self.runs.source(HEAD, layer, position)
            width = values.shape[-1] // self.runs.lm.n_heads(layer)
            for head, of_head in step.heads.items():
                features = slice(head * width, (head + 1) * width)
                yield Change(pack.first_tokens(number, of_head), values, features)
            return
        for rows, values_of in (
            (step.restored.get(site), self.runs.source),
            (step.severed.get(site), self.runs.base_output),
        ):
            if rows:
                tokens = pack.first_tokens(number, rows)
                yield Change(tokens, values_of(site, layer, position))

    def _set_tokens(self, changes: Sequence[Change]) -> Edit:
        n_base = self.runs.n_base

        def edit(output: torch.Tensor) -> torch.Tensor:
            edited = output.clone(memory_format=torch.contiguous_format)
            by_token = edited.view(n_base, -1, edited.shape[-1])
            for tokens, values, features in changes:
                by_token[:, tokens, features] = values[:, None, features]
            return edited

        return edit
