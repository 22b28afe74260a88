"""The reference engine: plain hooks, one full forward pass for each cell.

It is slow and short on purpose. It is the definition of truth for every other engine.

Shapes: S noise samples; a batch has a clean row, and then blocks of S rows; n_layers, n_positions
of the prompt.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from ktrace.lm.edges import Cut, cutting
from ktrace.lm.head import contiguous_to_head
from ktrace.lm.hooks import Edit, hooked, keep
from ktrace.lm.memory import fewer_samples, within_memory
from ktrace.lm.model import LanguageModel
from ktrace.terms import METRICS
from ktrace.tracing.cells import cells_shape
from ktrace.tracing.engine import Baseline, Case, Scores, Shape
from ktrace.tracing.mediators import Cell, Mediator, sites_of
from ktrace.tracing.noise import Noise
from ktrace.tracing.scores import Targets, make_targets, score


@dataclass(frozen=True)
class Change:
    """A state that is put in a pass.

    Attributes:
        rows: of the pass.
        position: where.
        state: of each row: a tensor, or the rows of the same pass (one for all of them, or one for
            each) whose state it is.
        head: which of how many slices of it is put; all of it is the first of one.
    """

    rows: slice
    position: int
    state: torch.Tensor | slice
    head: tuple[int, int] = (0, 1)


_KEEPS = "logits_to_keep"  # of a forward in transformers
_CLEAN = slice(0, 1)  # the first row is the clean run; blocks of S rows follow it


class ReferenceEngine:
    """Meng et al. (2022), section 2.1, one cell at a time.

    The batch of every pass holds a clean row and then a block of corrupted rows, one for each noise
    sample. Restoring is copying the clean row's state into the others, in the same pass. To noise,
    a block of clean rows gets the states of a block of corrupted ones; to cut edges, its mask.

    Args:
        lm: the model.
        noise: what corrupts.
        few_logits: whether the model is asked for logits of the answer's tokens alone, where its
            forward can be: those of every token cost as much as some blocks.
    """

    def __init__(self, lm: LanguageModel, noise: Noise, *, few_logits: bool = False) -> None:
        self.lm = lm
        self.noise = noise
        takes = inspect.signature(type(lm.model).forward).parameters
        self.few_logits = few_logits and _KEEPS in takes

    def cases_together(self, shape: Shape) -> int:
        """See `Engine.cases_together`: each case on its own."""
        return 1

    def baseline(
        self, group: Sequence[Case], then: Sequence[Mediator] = ()
    ) -> Iterator[tuple[Case, Baseline]]:
        """See `Engine.baseline`; nothing is kept."""
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
        lm, span, n_positions = self.lm, case.span, len(case.input_ids)
        places = mediator.places(span, n_positions)
        shape = (self.noise.samples, *cells_shape(lm, mediator), len(places))
        scores = {metric: np.full(shape, np.nan) for metric in METRICS}
        base = self._baseline(case).base(mediator)
        todo: dict[Cell, tuple[slice | int, ...]] = {}
        for layer in lm.paths.layers_with(mediator.site, lm.n_layers):
            for head in range(lm.n_heads(layer) if mediator.has_heads else 1):
                for column, place in enumerate(places):
                    of_head = (head,) if mediator.has_heads else ()
                    at = (slice(None), layer, *of_head, column)
                    # Before the subject nothing changes, unless edges are cut.
                    if mediator.cuts or place >= span.start:
                        todo[Cell(mediator, layer, place, head)] = at
                        continue
                    for metric, values in base.items():
                        scores[metric][at] = values
        for cell, found in self.cells(case, todo):
            for metric, values in found.items():
                scores[metric][todo[cell]] = values
        return scores

    def cells(
        self, case: Case, cells: Iterable[Cell], together: int = 1
    ) -> Iterator[tuple[Cell, Scores]]:
        """Restore, noise or cut some cells.

        Args:
            case: the fact.
            cells: which.
            together: so many share a pass, each with rows of its own.

        Yields:
            The cell, and its scores, `(S,)` for each metric.
        """
        todo = list(cells)
        severed = {cell.mediator.severs for cell in todo} - {None}
        held: dict[str, torch.Tensor] = {}
        logits = self._logits(case, self._keeping(held, severed))
        targets = self._targets(case, logits)
        for first in range(0, len(todo), together):
            some = todo[first : first + together]
            # Noised cells are clean rows, which need corrupted ones to take states from.
            corrupted = [not cell.mediator.changes_clean_run for cell in some]
            n_sources = 0 if all(corrupted) else 1
            edits = self._edits(some, held, n_sources)
            with cutting(self.lm.model, self._cuts(case, some, n_sources)):
                logits = self._logits(case, edits, [True] * n_sources + corrupted)
            for number, cell in enumerate(some, start=n_sources):
                yield cell, self._score(logits[self._rows(number)], targets)

    def cell(self, case: Case, mediator: Mediator, layer: int, place: int, head: int = 0) -> Scores:
        """Scores of one intervention, `(S,)` for each metric."""
        [(_, scores)] = self.cells(case, [Cell(mediator, layer, place, head)])
        return scores

    def _rows(self, number: int) -> slice:
        """The rows of the block with this number among those of a pass."""
        first = _CLEAN.stop + number * self.noise.samples
        return slice(first, first + self.noise.samples)

    def _edits(
        self, cells: Sequence[Cell], held: Mapping[str, torch.Tensor], n_sources: int
    ) -> dict[str, Edit]:
        """What cells put in a pass; their blocks stand behind those that are only read."""
        paths, n_layers = self.lm.paths, self.lm.n_layers
        changes: dict[str, list[Change]] = {}
        for number, (mediator, layer, position, head) in enumerate(cells, start=n_sources):
            if mediator.cuts:
                continue
            rows = self._rows(number)
            source = self._rows(0) if mediator.noises else _CLEAN
            for restored in mediator.restored_layers(layer, n_layers):
                if path := paths.point(mediator.site, restored):
                    which = (head, self.lm.n_heads(layer)) if mediator.has_heads else (0, 1)
                    changes.setdefault(path, []).append(Change(rows, position, source, which))
            for severed in mediator.severed_layers(layer, n_layers):
                if path := paths.sites(severed).get(str(mediator.severs)):
                    corrupted = held[path][self._rows(0), position]
                    changes.setdefault(path, []).append(Change(rows, position, corrupted))
        return {path: _changed(of_path) for path, of_path in changes.items()}

    def _cuts(self, case: Case, cells: Sequence[Cell], n_sources: int) -> dict[str, list[Cut]]:
        """Which edges cells cut in a pass, by block."""
        cuts: dict[str, list[Cut]] = {}
        span, n_positions = case.span, len(case.input_ids)
        for number, (mediator, layer, place, _) in enumerate(cells, start=n_sources):
            query = mediator.query_position(span, n_positions) if mediator.cuts else None
            if query is None:
                continue
            cut = Cut(self._rows(number), query, mediator.sources(place, span, n_positions))
            for one in mediator.restored_layers(layer, self.lm.n_layers):
                sites = self.lm.paths.sites(one)
                if mediator.site in sites:
                    cuts.setdefault(sites["hidden"], []).append(cut)
        return cuts

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

        n_answer = len(case.answer_ids)
        kept = {_KEEPS: n_answer} if self.few_logits else {}
        with (
            contiguous_to_head(self.lm.model) if kept else nullcontext(),
            hooked(self.lm.model, {self.lm.paths.embedding: add_noise, **edits}),
        ):
            output = self.lm.model(input_ids=ids, use_cache=False, **kept)
        logits: torch.Tensor = output.logits[:, -n_answer:]
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
        for one in changes:
            state = one.state
            put = output[state, one.position] if isinstance(state, slice) else state
            number, count = one.head
            width = output.shape[-1] // count
            features = slice(number * width, (number + 1) * width)
            changed[one.rows, one.position, features] = put[..., features]
        return changed

    return edit
