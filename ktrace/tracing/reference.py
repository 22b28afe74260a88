"""The reference engine: plain hooks, one full forward pass for each cell.

It is slow and short on purpose. It is the definition of truth for every other engine.

Shapes: S noise samples, so that a batch has 1 + S rows; n_layers, n_positions of the prompt.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product

import numpy as np
import torch

from ktrace.lm.hooks import Edit, hooked, keep
from ktrace.lm.model import LanguageModel
from ktrace.tracing.engine import Baseline, Case, Scores, Shape
from ktrace.tracing.mediators import Mediator, sites_of
from ktrace.tracing.noise import Noise
from ktrace.tracing.scores import Targets, make_targets, score

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
            yield case, self._baseline(case)

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
            yield case, {mediator.key: self._restored(case, mediator) for mediator in mediators}

    def _restored(self, case: Case, mediator: Mediator) -> Scores:
        n_layers, n_positions = self.lm.n_layers, len(case.input_ids)
        shape = (self.noise.samples, n_layers, n_positions)
        # Before the subject nothing changes.
        scores = {
            metric: np.broadcast_to(values[:, None, None], shape).astype(np.float64)
            for metric, values in self._baseline(case).corrupted.items()
        }
        places = product(range(n_layers), range(case.span.start, n_positions))
        for (layer, position), cell in self.cells(case, mediator, places):
            for metric, values in cell.items():
                scores[metric][:, layer, position] = values
        return scores

    def cells(
        self, case: Case, mediator: Mediator, places: Iterable[tuple[int, int]]
    ) -> Iterator[tuple[tuple[int, int], Scores]]:
        """Restore at some places, (layer, position), one at a time.

        Yields:
            The place, and its scores, `(S,)` for each metric.
        """
        targets = self._targets(case, self._logits(case, {}))
        held = self._corrupted_outputs(case, mediator.severs) if mediator.severs else {}
        for layer, position in places:
            edits = self._edits(mediator, layer, position, held)
            yield (layer, position), self._score(self._logits(case, edits)[_NOISED:], targets)

    def cell(self, case: Case, mediator: Mediator, layer: int, position: int) -> Scores:
        """Scores of one restoration, `(S,)` for each metric."""
        [(_, scores)] = self.cells(case, mediator, [(layer, position)])
        return scores

    def _edits(
        self, mediator: Mediator, layer: int, position: int, held: Mapping[str, torch.Tensor]
    ) -> dict[str, Edit]:
        paths, n_layers = self.lm.paths, self.lm.n_layers
        edits: dict[str, Edit] = {
            paths.sites(restored)[mediator.site]: _restore(position)
            for restored in mediator.restored_layers(layer, n_layers)
        }
        for severed in mediator.severed_layers(layer, n_layers):
            path = paths.sites(severed)[str(mediator.severs)]
            edits[path] = _hold(position, held[path])
        return edits

    def _corrupted_outputs(self, case: Case, site: str) -> dict[str, torch.Tensor]:
        """The site's output in the corrupted run, by path: `(1 + S, n_positions, d_model)`."""
        kept: dict[str, torch.Tensor] = {}
        paths = [self.lm.paths.sites(layer)[site] for layer in range(self.lm.n_layers)]
        self._logits(case, {path: keep(kept, path) for path in paths})
        return kept

    @torch.inference_mode()
    def _logits(self, case: Case, edits: Mapping[str, Edit]) -> torch.Tensor:
        """Logits of the clean row and the noised rows, `(1 + S, n_answer, vocabulary)`."""
        row = torch.tensor(case.forced_ids, device=self.lm.device)
        start, stop = case.span

        def add_noise(embeddings: torch.Tensor) -> torch.Tensor:
            noised = embeddings.clone()
            subject = embeddings[_CLEAN, start:stop]
            noised[_NOISED:, start:stop] = self.noise.corrupt(case, subject)
            return noised

        with hooked(self.lm.model, {self.lm.paths.embedding: add_noise, **edits}):
            output = self.lm.model(
                input_ids=row.expand(1 + self.noise.samples, -1), use_cache=False
            )
        logits: torch.Tensor = output.logits[:, -len(case.answer_ids) :]
        return logits

    def _targets(self, case: Case, logits: torch.Tensor) -> Targets:
        return make_targets([case], logits[:_NOISED], logits[None, _NOISED:], self.noise.foils)

    def _score(self, logits: torch.Tensor, targets: Targets) -> Scores:
        scores = score(logits[None, None], targets)
        # Widened on the CPU: not every device has float64.
        return {metric: values[0, 0].cpu().double().numpy() for metric, values in scores.items()}


def _restore(position: int) -> Edit:
    def edit(output: torch.Tensor) -> torch.Tensor:
        restored = output.clone()
        restored[_NOISED:, position] = output[_CLEAN, position]
        return restored

    return edit


def _hold(position: int, corrupted: torch.Tensor) -> Edit:
    def edit(output: torch.Tensor) -> torch.Tensor:
        held = output.clone()
        held[_NOISED:, position] = corrupted[_NOISED:, position]
        return held

    return edit
