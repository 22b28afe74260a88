"""The reference engine: plain hooks, one full forward pass for each cell.

It is slow and short on purpose. It is the definition of truth for every other engine.

Shapes: S noise samples; a batch has a clean row, and then blocks of S rows; n_layers, n_positions
of the prompt.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import product

import numpy as np
import torch

from ktrace.lm.hooks import Edit, hooked, keep
from ktrace.lm.memory import fewer_samples, within_memory
from ktrace.lm.model import LanguageModel
from ktrace.terms import METRICS
from ktrace.tracing.engine import Baseline, Case, Scores, Shape
from ktrace.tracing.mediators import Mediator, sites_of
from ktrace.tracing.noise import Noise
from ktrace.tracing.scores import Targets, make_targets, score

# A mediator at a layer and a position: a cell.
Restoration = tuple[Mediator, int, int]
# Rows, a position, and the state of each row there: a tensor, or the rows of the same pass (one for
# all of them, or one for each) whose state it is.
Change = tuple[slice, int, torch.Tensor | slice]

_CLEAN = slice(0, 1)  # the first row is the clean run; blocks of S rows follow it


class ReferenceEngine:
    """Meng et al. (2022), section 2.1, one cell at a time.

    The batch of every pass holds a clean row and then a block of corrupted rows, one for each noise
    sample. Restoring is copying the clean row's state into the others, in the same pass. To noise,
    a block of clean rows gets the states of a block of corrupted ones.
    """

    def __init__(self, lm: LanguageModel, noise: Noise) -> None:
        self.lm = lm
        self.noise = noise

    def cases_together(self, shape: Shape) -> int:
        """See `Engine.cases_together`: each case on its own."""
        return 1

    def baseline(self, group: Sequence[Case]) -> Iterator[tuple[Case, Baseline]]:
        """See `Engine.baseline`."""
        for case in group:
            with self._within_memory():
                baseline = self._baseline(case)
            yield case, baseline

    def _baseline(self, case: Case) -> Baseline:
        if case.baseline is not None:
            return case.baseline
        logits = self._logits(case, {})
        targets, corrupted = self._targets(case, logits), logits[self._rows(0)]
        return Baseline(
            clean=self._score(logits[_CLEAN].expand_as(corrupted), targets),
            corrupted=self._score(corrupted, targets),
            foil_ids=tuple(map(tuple, targets.foils[0].tolist())),
        )

    def restored(
        self, group: Sequence[Case], mediators: Sequence[Mediator]
    ) -> Iterator[tuple[Case, Mapping[str, Scores]]]:
        """See `Engine.restored`."""
        self.lm.paths.require(*sites_of(mediators))
        for case in group:
            with self._within_memory():
                restored = {m.key: self._restored(case, m) for m in mediators}
            yield case, restored

    def _within_memory(self) -> AbstractContextManager[None]:
        remedy = fewer_samples(self.noise.samples)
        return within_memory("with one restoration at a time", remedy)

    def _restored(self, case: Case, mediator: Mediator) -> Scores:
        n_layers, n_positions = self.lm.n_layers, len(case.input_ids)
        shape = (self.noise.samples, n_layers, n_positions)
        have = self.lm.paths.layers_with(mediator.site, n_layers)
        # Before the subject nothing changes.
        scores = {metric: np.full(shape, np.nan) for metric in METRICS}
        for metric, values in self._baseline(case).base(mediator).items():
            scores[metric][:, have] = values[:, None, None]
        places = product(have, range(case.span.start, n_positions))
        cells = ((mediator, *place) for place in places)
        for (_, layer, position), cell in self.cells(case, cells):
            for metric, values in cell.items():
                scores[metric][:, layer, position] = values
        return scores

    def cells(
        self, case: Case, cells: Iterable[Restoration], together: int = 1
    ) -> Iterator[tuple[Restoration, Scores]]:
        """Restore, or noise, some cells.

        Args:
            case: the fact.
            cells: mediator, layer and position of each.
            together: so many share a pass, each with rows of its own.

        Yields:
            The cell, and its scores, `(S,)` for each metric.
        """
        todo = list(cells)
        severed = {cell[0].severs for cell in todo} - {None}
        held: dict[str, torch.Tensor] = {}
        logits = self._logits(case, self._keeping(held, severed))
        targets = self._targets(case, logits)
        for first in range(0, len(todo), together):
            some = todo[first : first + together]
            # Noised cells are clean rows, which need corrupted ones to take states from.
            corrupted = [not mediator.noises for mediator, *_ in some]
            n_sources = 0 if all(corrupted) else 1
            edits = self._edits(some, held, n_sources)
            logits = self._logits(case, edits, [True] * n_sources + corrupted)
            for number, cell in enumerate(some, start=n_sources):
                yield cell, self._score(logits[self._rows(number)], targets)

    def cell(self, case: Case, mediator: Mediator, layer: int, position: int) -> Scores:
        """Scores of one restoration, `(S,)` for each metric."""
        [(_, scores)] = self.cells(case, [(mediator, layer, position)])
        return scores

    def _rows(self, number: int) -> slice:
        """The rows of the block with this number among those of a pass."""
        first = _CLEAN.stop + number * self.noise.samples
        return slice(first, first + self.noise.samples)

    def _edits(
        self, cells: Sequence[Restoration], held: Mapping[str, torch.Tensor], n_sources: int
    ) -> dict[str, Edit]:
        """What cells change in a pass; their blocks stand behind those that are only read."""
        paths, n_layers = self.lm.paths, self.lm.n_layers
        changes: dict[str, list[Change]] = {}
        for number, (mediator, layer, position) in enumerate(cells, start=n_sources):
            rows = self._rows(number)
            source = self._rows(0) if mediator.noises else _CLEAN
            for restored in mediator.restored_layers(layer, n_layers):
                if path := paths.sites(restored).get(mediator.site):
                    changes.setdefault(path, []).append((rows, position, source))
            for severed in mediator.severed_layers(layer, n_layers):
                if path := paths.sites(severed).get(str(mediator.severs)):
                    corrupted = held[path][self._rows(0), position]
                    changes.setdefault(path, []).append((rows, position, corrupted))
        return {path: _changed(of_path) for path, of_path in changes.items()}

    def _keeping(
        self, kept: dict[str, torch.Tensor], sites: Iterable[str | None]
    ) -> dict[str, Edit]:
        """Edits that keep every output of some sites, `(1 + S, n_positions, d_model)`, by path."""
        layers = (self.lm.paths.sites(layer) for layer in range(self.lm.n_layers))
        paths = [of_layer[str(site)] for of_layer in layers for site in sites if site in of_layer]
        return {path: keep(kept, path) for path in paths}

    @torch.inference_mode()
    def _logits(
        self, case: Case, edits: Mapping[str, Edit], corrupted: Sequence[bool] = (True,)
    ) -> torch.Tensor:
        """Of a clean row and blocks of S rows, `(1 + n_blocks x S, n_answer, vocabulary)`.

        Args:
            case: the fact.
            edits: by path.
            corrupted: of each block, whether it is the corrupted run or the clean one.
        """
        blocks = [self._rows(number) for number, is_so in enumerate(corrupted) if is_so]
        n_rows = 1 + len(corrupted) * self.noise.samples
        ids = torch.tensor(case.forced_ids, device=self.lm.device).repeat(n_rows, 1)
        for block in blocks:
            ids[block] = torch.tensor(case.corrupted_forced_ids, device=self.lm.device)
        start, stop = case.span

        def add_noise(embeddings: torch.Tensor) -> torch.Tensor:
            noised = embeddings.clone()
            subject = self.noise.corrupt(case, embeddings[blocks[0].start, start:stop])
            for block in blocks:
                noised[block, start:stop] = subject
            return noised

        with hooked(self.lm.model, {self.lm.paths.embedding: add_noise, **edits}):
            output = self.lm.model(input_ids=ids, use_cache=False)
        logits: torch.Tensor = output.logits[:, -len(case.answer_ids) :]
        return logits

    def _targets(self, case: Case, logits: torch.Tensor) -> Targets:
        corrupted = logits[None, self._rows(0)]
        return make_targets([case], logits[_CLEAN], corrupted, self.noise.foils)

    def _score(self, logits: torch.Tensor, targets: Targets) -> Scores:
        scores = score(logits[None, None], targets)
        # Widened on the CPU: not every device has float64.
        return {metric: values[0, 0].cpu().double().numpy() for metric, values in scores.items()}


def _changed(changes: Sequence[Change]) -> Edit:
    def edit(output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        for rows, position, state in changes:
            put = output[state, position] if isinstance(state, slice) else state
            changed[rows, position] = put
        return changed

    return edit
