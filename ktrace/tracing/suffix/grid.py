"""Which interventions walk together, and where their scores go.

Shapes: n_rows = n_cases x n_samples, (case, sample) with the sample fastest; n_places of the cases.
"""

from collections.abc import Collection, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from ktrace.terms import METRICS
from ktrace.tracing.cells import cells_shape
from ktrace.tracing.engine import Case, Scores
from ktrace.tracing.mediators import Mediator, Place
from ktrace.tracing.suffix.plan import Cell, Plan
from ktrace.tracing.suffix.runs import Base, OnDevice, Runs


def walking_together(mediators: Sequence[Mediator]) -> list[tuple[Base, list[Mediator]]]:
    """Mediators of one base that act at the same places."""
    found: dict[tuple[Base, Hashable], list[Mediator]] = {}
    for mediator in mediators:
        base = Base.of(mediator)
        found.setdefault((base, (mediator.positions, mediator.query)), []).append(mediator)
    return [(base, some) for (base, _), some in found.items()]


def acted_on_alike(group: Sequence[Case], mediator: Mediator) -> list[list[int]]:
    """Cases of a group that a mediator acts on at the same places, by their numbers."""
    found: dict[Hashable, list[int]] = {}
    for number, case in enumerate(group):
        places = tuple(mediator.places(case.span, len(case.input_ids)))
        # Groups of sources hang on the whole subject.
        span = case.span if mediator.cuts else None
        found.setdefault((span, places), []).append(number)
    return list(found.values())


class Only(NamedTuple):
    """Which cells of a grid are walked: the proof compares no others.

    Attributes:
        positions: where states are put. Where edges are cut, every source counts.
        layers: around which mediators act.
    """

    positions: Collection[int]
    layers: Collection[int]


class Grid:
    """Scores of mediators that walk together, on cases that they act on alike.

    Until a walk says otherwise they are those of the base: nothing changes before the subject.
    Layers without a mediator's site hold NaN, as do heads that a layer has not.

    Args:
        runs: of the cases.
        group: the cases.
        mediators: of one base, at the same places.
        only: which cells; None for all that the noise reaches.
    """

    def __init__(
        self,
        runs: Runs,
        group: Sequence[Case],
        mediators: Sequence[Mediator],
        only: Only | None,
    ) -> None:
        case, lm = group[0], runs.lm
        self._n_cases = len(group)
        self._first = mediators[0]
        self._span, self._n_positions = case.span, len(case.input_ids)
        self._places: Sequence[Place] = self._first.places(self._span, self._n_positions)
        self._only = only
        self.cells = [
            Cell(mediator, layer, head, sources)
            for mediator in mediators
            for sources in dict.fromkeys(self._sources(place) for place in self._cut_places)
            for layer in lm.paths.layers_with(mediator.site, lm.n_layers)
            if only is None or layer in only.layers
            for head in range(lm.n_heads(layer) if mediator.has_heads else 1)
        ]
        self._lm, self._n_samples = lm, runs.n_samples
        self._group, self._mediators = group, mediators
        base = runs.base_scores()
        self.scores: list[OnDevice] = [
            base,
            base if self._first.cuts else runs.last_put_scores(),
        ]
        self._walked: list[tuple[Plan, Sequence[int]]] = []

    @property
    def _cut_places(self) -> Sequence[Place]:
        """Where edges are cut; somewhere, where none are."""
        return self._places if self._first.cuts else [0]

    def _sources(self, place: Place) -> tuple[int, ...]:
        """Places with the same sources share rows of a walk."""
        if not self._first.cuts:
            return ()
        return self._first.sources(place, self._span, self._n_positions)

    @property
    def walked_at(self) -> list[int]:
        """Where suffixes begin that differ from the base."""
        if self._first.cuts:
            query = self._first.query_position(self._span, self._n_positions)
            return [] if query is None else [query]
        reached = [place for place in self._places if place >= self._span.start]
        return [p for p in reached if self._only is None or p in self._only.positions]

    def add(self, plan: Plan, positions: Sequence[int], scores: OnDevice) -> None:
        """Take what a walk gave.

        Args:
            plan: of the walk.
            positions: that it began at.
            scores: of its rows there, `(metrics, positions x rows of the plan x n_rows)`.
        """
        self._walked.append((plan, positions))
        self.scores.append(scores)

    def by_case(self, scores: Sequence[Scores]) -> list[dict[str, Scores]]:
        """`(n_samples, n_layers, n_places)` by metric, by mediator's key; heads before places.

        Args:
            scores: `self.scores`, fetched.
        """
        of_base, last_put, *of_walks = scores
        results = self._of_base(of_base, last_put)
        for (plan, positions), found in zip(self._walked, of_walks, strict=True):
            self._place(results, plan, positions, found)
        cut = {key: by_case(scores, self._n_cases) for key, scores in results.items()}
        return [
            {key: scores[number] for key, scores in cut.items()} for number in range(self._n_cases)
        ]

    def _place(
        self, results: dict[str, Scores], plan: Plan, positions: Sequence[int], scores: Scores
    ) -> None:
        n_rows = self._n_cases * self._n_samples
        for cell, row in plan.row_of.items():
            if cell.mediator.cuts:
                columns = [
                    n for n, p in enumerate(self._places) if self._sources(p) == cell.sources
                ]
            else:
                columns = [self._places.index(position) for position in positions]
            for metric, of_key in results[cell.mediator.key].items():
                of_layer = of_key[:, cell.layer]
                of_cell = of_layer[:, cell.head] if cell.mediator.has_heads else of_layer
                values = scores[metric].reshape(len(positions), -1, n_rows)
                of_cell[:, columns] = values[:, row].T

    def _of_base(self, unchanged: Scores, last_restored: Scores) -> dict[str, Scores]:
        lm, last = self._lm, self._n_positions - 1
        self._take_baselines(unchanged, last_restored)
        n_rows = self._n_cases * self._n_samples
        results = {}
        for mediator in self._mediators:
            shape = (n_rows, *cells_shape(lm, mediator), len(self._places))
            of_key = {metric: np.full(shape, np.nan) for metric in METRICS}
            for layer in lm.paths.layers_with(mediator.site, lm.n_layers):
                heads = slice(lm.n_heads(layer)) if mediator.has_heads else slice(None)
                for metric, values in unchanged.items():
                    of_layer = of_key[metric][:, layer]
                    of_layer[:, heads] = values.reshape(-1, *[1] * (of_layer.ndim - 1))
            # Restoring the last block changes the logits of its own position alone.
            if mediator.site == "hidden" and last in self._places:
                for metric, values in of_key.items():
                    values[:, -1, self._places.index(last)] = last_restored[metric]
            results[mediator.key] = of_key
        return results

    def _take_baselines(self, unchanged: Scores, last_restored: Scores) -> None:
        """Scores where nothing changes, and where the last state is the source's, `(n_rows,)`.

        Those of a case with a baseline are the baseline's to the bit: it may have been run in other
        company, and an effect of rounding is still an effect.
        """
        for number, case in enumerate(self._group):
            if case.baseline is None:
                continue
            rows = slice(number * self._n_samples, (number + 1) * self._n_samples)
            for metric in unchanged:
                unchanged[metric][rows] = case.baseline.base(self._first)[metric]
                if len(case.answer_ids) == 1:  # then the last restored state is all that counts
                    last_restored[metric][rows] = case.baseline.source(self._first)[metric]


def by_case(scores: Scores, n_cases: int) -> list[Scores]:
    """Cut arrays with rows of cases first into one for each case."""
    cut = {metric: np.split(values, n_cases) for metric, values in scores.items()}
    return [{metric: values[number] for metric, values in cut.items()} for number in range(n_cases)]
