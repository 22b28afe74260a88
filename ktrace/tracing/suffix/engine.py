"""The suffix engine: the reference engine's numbers without its repetitions.

Restoring (layer l, position t) changes nothing at positions before t nor in layers up to l. So the
layers are walked once: each t's rows hold the positions from t on, against the base's keys and
values before t, and at each layer every restoration that has begun (plan.py says which,
walk.py runs them; memory may ask for several walks). Block calls fall from S·T²·L² to about
S·L²/2·Σ(T - t).

Shapes: S = n_samples of the noise, L = n_layers, T = n_positions of the prompt; n_base = n_samples
rows for each case of a group, (case, sample), with the sample fastest.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch

from ktrace.errors import NoMemoryLeftError
from ktrace.lm.linear import onednn_products
from ktrace.lm.memory import fewer_samples, is_out_of_memory, release
from ktrace.lm.model import LanguageModel
from ktrace.terms import METRICS, Direction
from ktrace.tracing.engine import Baseline, Case, Scores, Shape
from ktrace.tracing.groups import UNIT_FACTS
from ktrace.tracing.mediators import Mediator, sites_of
from ktrace.tracing.noise import Noise
from ktrace.tracing.suffix.limits import MEASURED, Limits
from ktrace.tracing.suffix.memory import rows_that_fit
from ktrace.tracing.suffix.plan import Cell, Plan, make_plan, split, stretches
from ktrace.tracing.suffix.recording import Recorder
from ktrace.tracing.suffix.runs import Runs, recorded_rows
from ktrace.tracing.suffix.walk import Walk

log = logging.getLogger(__name__)

_MOST_CASES = UNIT_FACTS

T = TypeVar("T")


class SuffixEngine:
    """Exact causal tracing near the arithmetic that it needs.

    Args:
        lm: the model.
        noise: what corrupts.
        row_budget: most rows in one block call; None takes what fits into memory. One fact's clean
            and corrupted runs are never parted, nor are the samples of one restoration.
        packed: whether suffixes of several positions may share a block call; not every family's
            blocks can (ktrace/tracing/suffix/proof.py proves it).
        limits: sizes of batches and calls.
    """

    def __init__(
        self,
        lm: LanguageModel,
        noise: Noise,
        row_budget: int | None = None,
        *,
        packed: bool = False,
        limits: Limits = MEASURED,
    ) -> None:
        self.lm = lm
        self.noise = noise
        self.packed = packed
        self.limits = limits
        self._row_budget = row_budget
        self._recorder = Recorder(lm)

    def cases_together(self, shape: Shape) -> int:
        """See `Engine.cases_together`: until they fill some block calls."""
        enough = self.limits.enough(self.lm.device)
        weights = 12 * self.lm.d_embedding**2  # of a block
        filling = max(
            enough.multiplications / weights, float(self.limits.shared_calls * enough.tokens)
        )
        # In a middle block call.
        tokens = self.noise.samples * self.lm.n_layers * shape.n_positions / 2
        worthwhile = int(filling / tokens)
        if self._row_budget is not None:
            worthwhile = min(worthwhile, self._row_budget // (1 + self.noise.samples))
        return min(_MOST_CASES, max(1, worthwhile))

    @torch.inference_mode()
    def baseline(self, group: Sequence[Case]) -> Iterator[tuple[Case, Baseline]]:
        """See `Engine.baseline`."""
        yield from self._within_memory(group, (), self._baseline)

    @torch.inference_mode()
    def restored(
        self,
        group: Sequence[Case],
        mediators: Sequence[Mediator],
        positions: Sequence[int] | None = None,
    ) -> Iterator[tuple[Case, Mapping[str, Scores]]]:
        """See `Engine.restored`.

        Args:
            group: cases of one shape.
            mediators: what is restored.
            positions: where alone, in ascending order; None for the subject and all after it. Other
                positions hold the scores of a mediator's base.
        """
        self.lm.paths.require(*sites_of(mediators))
        if positions is None:
            positions = range(group[0].span.start, len(group[0].input_ids))

        def restore(part: Sequence[Case], budget: int) -> list[tuple[Case, Mapping[str, Scores]]]:
            return self._restored(part, mediators, positions, budget)

        yield from self._within_memory(group, mediators, restore)

    def _within_memory(
        self,
        group: Sequence[Case],
        mediators: Sequence[Mediator],
        work: Callable[[Sequence[Case], int], list[T]],
    ) -> Iterator[T]:
        """Work through a group; where memory does not suffice, in smaller parts from then on.

        Args:
            group: cases.
            mediators: what is restored.
            work: takes some of the cases, and most rows in a block call.
        """
        todo = list(group)
        n_cells = len(mediators) * self.lm.n_layers  # at one position, at the most
        directions = {m.direction for m in mediators} or {Direction.denoise}
        of_case = max(recorded_rows(self.noise.samples, direction) for direction in directions)
        while todo:
            n_positions = len(todo[0].forced_ids)
            budget = self._row_budget or rows_that_fit(self.lm, n_positions, self.limits)
            part = todo[: max(1, budget // of_case)]
            try:
                with onednn_products(self.lm.model, self.limits.onednn_weights):
                    results = work(part, budget)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._row_budget = self._smaller_budget(len(part), of_case, n_cells, budget, error)
            else:
                todo = todo[len(part) :]
                yield from results
                continue
            # Here, where the error and the tensors that it holds are gone.
            release()
            log.warning("out of memory: going on with engine.row_budget=%d", self._row_budget)

    def _smaller_budget(
        self, n_cases: int, of_case: int, n_cells: int, budget: int, error: Exception
    ) -> int:
        """Half of the rows that did not fit.

        Raises:
            NoMemoryLeftError: they cannot be fewer.
        """
        n_samples = self.noise.samples
        recorded = n_cases * of_case
        n_base = n_cases * n_samples
        walked = n_base * min(n_cells, max(1, budget // n_base))
        if n_cases == 1 and walked <= n_samples:
            raise NoMemoryLeftError(
                "out of memory with one fact and one restoration at a time: "
                + fewer_samples(n_samples)
            ) from error
        return min(budget, max(recorded, walked)) // 2

    def _runs(
        self,
        group: Sequence[Case],
        sites: Sequence[str],
        direction: Direction = Direction.denoise,
    ) -> Runs:
        return Runs(self._recorder, self.noise, group, sites, self.limits, direction)

    def _baseline(self, group: Sequence[Case], budget: int) -> list[tuple[Case, Baseline]]:
        runs = self._runs(group, sites=())
        clean = _by_case(runs.clean_scores(), len(group))
        corrupted = _by_case(runs.corrupted_scores(), len(group))
        foils = [tuple(map(tuple, of_case)) for of_case in runs.targets.foils.tolist()]
        return [
            (case, Baseline(of_clean, of_corrupted, of_foils))
            for case, of_clean, of_corrupted, of_foils in zip(
                group, clean, corrupted, foils, strict=True
            )
        ]

    def _restored(
        self,
        group: Sequence[Case],
        mediators: Sequence[Mediator],
        positions: Sequence[int],
        budget: int,
    ) -> list[tuple[Case, Mapping[str, Scores]]]:
        found: list[dict[str, Scores]] = [{} for _ in group]
        for direction in Direction:
            some = [mediator for mediator in mediators if mediator.direction is direction]
            if some:
                of_direction = self._in_direction(direction, group, some, positions, budget)
                for scores, more in zip(found, of_direction, strict=True):
                    scores.update(more)
        return list(zip(group, found, strict=True))

    def _in_direction(
        self,
        direction: Direction,
        group: Sequence[Case],
        mediators: Sequence[Mediator],
        positions: Sequence[int],
        budget: int,
    ) -> list[dict[str, Scores]]:
        """Scores of each case, by the key of mediators that have one direction."""
        # A block's output is the next one's input, which is recorded anyway.
        sites = {site for site in sites_of(mediators) if site != "hidden"}
        runs = self._runs(group, sorted(sites), direction)
        results = _without_walk(runs, group, mediators)
        cells = [
            Cell(mediator, layer)
            for mediator in mediators
            for layer in self.lm.paths.layers_with(mediator.site, self.lm.n_layers)
        ]
        for plan, stretch, scores in self._walked(runs, cells, positions, budget):
            for cell, row in plan.row_of.items():
                for metric, restored in results[cell.mediator.key].items():
                    restored[:, cell.layer, stretch] = scores[metric][:, row].T
        by_case = {key: _by_case(scores, len(group)) for key, scores in results.items()}
        return [
            {key: scores[number] for key, scores in by_case.items()} for number in range(len(group))
        ]

    def _walked(
        self, runs: Runs, cells: Sequence[Cell], positions: Sequence[int], budget: int
    ) -> Iterator[tuple[Plan, list[int], Scores]]:
        """Walk until every cell that needs it has been restored at each of some positions.

        Yields:
            A plan, the positions that it was walked at, and the scores of its rows there,
            `(positions, n_rows, n_base)` for each metric.
        """
        pack_tokens = self._pack_tokens(runs, budget)
        for chunk in split(cells, max(1, budget // runs.n_base)):
            plan = make_plan(chunk, self.lm.n_layers)
            if not plan.row_of:
                continue
            tokens = self.limits.walk_tokens * budget * runs.n_positions
            of_a_row = tokens // (runs.n_base * plan.most_rows)
            for stretch in stretches(positions, runs.n_positions, of_a_row):
                final = Walk(runs, plan, stretch, pack_tokens).run()
                scores = runs.scores(final.flatten(0, 1))
                shape = final.shape[:3]
                yield plan, stretch, {m: values.reshape(shape) for m, values in scores.items()}

    def _pack_tokens(self, runs: Runs, budget: int) -> int:
        if not self.packed:
            return 1
        # More would cost more in attention, where a packed token meets all others; and of each base
        # row no more than keep attention small beside the products with weights.
        most = self.limits.enough(self.lm.device).tokens
        return min(most, budget * runs.n_positions, runs.n_base * self.lm.d_embedding // 2)


def _without_walk(
    runs: Runs, group: Sequence[Case], mediators: Sequence[Mediator]
) -> dict[str, Scores]:
    """Scores that need no walk, `(n_base, n_layers, n_positions)` by metric, by mediator's key.

    The others hold what the base says: nothing changes before the subject. Layers without the
    mediator's site hold NaN.

    Args:
        runs: of the mediators' direction.
        group: the cases.
        mediators: all of one direction.
    """
    unchanged, last_restored = _known(runs, group, mediators[0])
    lm = runs.lm
    shape = (runs.n_base, lm.n_layers, len(group[0].input_ids))
    results = {}
    for mediator in mediators:
        have = lm.paths.layers_with(mediator.site, lm.n_layers)
        results[mediator.key] = {metric: np.full(shape, np.nan) for metric in METRICS}
        for metric, values in unchanged.items():
            results[mediator.key][metric][:, have] = values[:, None, None]
        # Restoring the last block changes the logits of its own position alone.
        if mediator.site == "hidden":
            for metric, values in results[mediator.key].items():
                values[:, -1, -1] = last_restored[metric]
    return results


def _known(runs: Runs, group: Sequence[Case], mediator: Mediator) -> tuple[Scores, Scores]:
    """Where nothing changes, and where the last state is the source's, `(n_base,)` by metric.

    Those of a case with a baseline are the baseline's to the bit: it may have been run in other
    company, and an effect of rounding is still an effect.
    """
    unchanged, last_restored = runs.base_scores(), runs.last_put_scores()
    for number, case in enumerate(group):
        if case.baseline is None:
            continue
        rows = slice(number * runs.n_samples, (number + 1) * runs.n_samples)
        for metric in unchanged:
            unchanged[metric][rows] = case.baseline.base(mediator)[metric]
            if runs.n_answer == 1:  # then the last restored state is all that counts
                last_restored[metric][rows] = case.baseline.source(mediator)[metric]
    return unchanged, last_restored


def _by_case(scores: Scores, n_cases: int) -> list[Scores]:
    """Cut arrays with base rows first into one for each case."""
    cut = {metric: np.split(values, n_cases) for metric, values in scores.items()}
    return [{metric: values[number] for metric, values in cut.items()} for number in range(n_cases)]
