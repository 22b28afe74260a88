"""The reference engine: plain hooks, one full forward pass for each cell.

It is slow and short on purpose. It is the definition of truth for every other engine.

Shapes: S noise samples, so that a batch has 1 + S rows; n_layers, n_positions of the prompt.
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

# A mediator at a layer and a position.
Restoration = tuple[Mediator, int, int]
# Rows, a position, and the state of each row there; None for the clean row's.
Change = tuple[slice, int, torch.Tensor | None]

_CLEAN, _NOISED = 0, 1  # the first row is the clean run; the noised rows follow it


class ReferenceEngine:
    """Meng et al. (2022), section 2.1, one cell at a time.

    The batch of every pass holds a clean row and then one row for each noise sample. Restoring is
    copying the clean row's state into the others, in the same pass.
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
        targets = self._targets(case, logits)
        return Baseline(
            clean=self._score(logits[:_NOISED].expand_as(logits[_NOISED:]), targets),
            corrupted=self._score(logits[_NOISED:], targets),
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
        for metric, values in self._baseline(case).corrupted.items():
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
        """Restore some cells.

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
            logits = self._logits(case, self._edits(some, held), len(some))
            for number, cell in enumerate(some):
                yield cell, self._score(logits[self._rows(number)], targets)

    def cell(self, case: Case, mediator: Mediator, layer: int, position: int) -> Scores:
        """Scores of one restoration, `(S,)` for each metric."""
        [(_, scores)] = self.cells(case, [(mediator, layer, position)])
        return scores

    def _rows(self, number: int) -> slice:
        """The noised rows of the cell with this number among those of a pass."""
        first = _NOISED + number * self.noise.samples
        return slice(first, first + self.noise.samples)

    def _edits(
        self, cells: Sequence[Restoration], held: Mapping[str, torch.Tensor]
    ) -> dict[str, Edit]:
        paths, n_layers = self.lm.paths, self.lm.n_layers
        changes: dict[str, list[Change]] = {}
        for number, (mediator, layer, position) in enumerate(cells):
            rows = self._rows(number)
            for restored in mediator.restored_layers(layer, n_layers):
                if path := paths.sites(restored).get(mediator.site):
                    changes.setdefault(path, []).append((rows, position, None))
            for severed in mediator.severed_layers(layer, n_layers):
                if path := paths.sites(severed).get(str(mediator.severs)):
                    corrupted = held[path][_NOISED:, position]
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
    def _logits(self, case: Case, edits: Mapping[str, Edit], n_cells: int = 1) -> torch.Tensor:
        """Of the clean row and the noised rows, `(1 + n_cells x S, n_answer, vocabulary)`."""
        row = torch.tensor(case.forced_ids, device=self.lm.device)
        start, stop = case.span

        def add_noise(embeddings: torch.Tensor) -> torch.Tensor:
            noised = embeddings.clone()
            subject = embeddings[_CLEAN, start:stop]
            noised[_NOISED:, start:stop] = self.noise.corrupt(case, subject).repeat(n_cells, 1, 1)
            return noised

        with hooked(self.lm.model, {self.lm.paths.embedding: add_noise, **edits}):
            output = self.lm.model(
                input_ids=row.expand(1 + n_cells * self.noise.samples, -1), use_cache=False
            )
        logits: torch.Tensor = output.logits[:, -len(case.answer_ids) :]
        return logits

    def _targets(self, case: Case, logits: torch.Tensor) -> Targets:
        return make_targets([case], logits[:_NOISED], logits[None, _NOISED:], self.noise.foils)

    def _score(self, logits: torch.Tensor, targets: Targets) -> Scores:
        scores = score(logits[None, None], targets)
        # Widened on the CPU: not every device has float64.
        return {metric: values[0, 0].cpu().double().numpy() for metric, values in scores.items()}


def _changed(changes: Sequence[Change]) -> Edit:
    def edit(output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        for rows, position, state in changes:
            changed[rows, position] = output[_CLEAN, position] if state is None else state
        return changed

    return edit
