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
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypeVar

import torch

from ktrace.errors import NoMemoryLeftError
from ktrace.lm.linear import onednn_products
from ktrace.lm.memory import fewer_samples, is_out_of_memory, release
from ktrace.lm.model import LanguageModel
from ktrace.terms import SOURCE_GROUPS
from ktrace.tracing.cells import cells_shape
from ktrace.tracing.engine import Baseline, Case, Scores, Shape
from ktrace.tracing.groups import UNIT_FACTS
from ktrace.tracing.mediators import Mediator, sites_of
from ktrace.tracing.noise import Noise
from ktrace.tracing.suffix.grid import Grid, Only, acted_on_alike, by_case, walking_together
from ktrace.tracing.suffix.limits import MEASURED, Limits
from ktrace.tracing.suffix.memory import rows_that_fit
from ktrace.tracing.suffix.plan import Cell, Plan, make_plan, split, stretches
from ktrace.tracing.suffix.recording import Recorder
from ktrace.tracing.suffix.runs import Base, OnDevice, Runs, fetched, recorded_rows
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
        self._kept: Runs | None = None

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
    def baseline(
        self, group: Sequence[Case], then: Sequence[Mediator] = ()
    ) -> Iterator[tuple[Case, Baseline]]:
        """See `Engine.baseline`; the recorded pass serves the next restorations."""
        own = [mediator for mediator in then if Base.of(mediator) is Base.corrupted]

        def run(part: Sequence[Case], budget: int) -> list[tuple[Case, Baseline]]:
            return self._baseline(self._recorded(part, Base.corrupted, own))

        yield from self._within_memory(group, (), run)
        if not own:
            self._kept = None

    @torch.inference_mode()
    def restored(
        self, group: Sequence[Case], mediators: Sequence[Mediator]
    ) -> Iterator[tuple[Case, Mapping[str, Scores]]]:
        """See `Engine.restored`."""
        yield from self.restored_at(group, mediators, None)

    @torch.inference_mode()
    def restored_at(
        self, group: Sequence[Case], mediators: Sequence[Mediator], only: Only | None
    ) -> Iterator[tuple[Case, Mapping[str, Scores]]]:
        """As `restored`, of some cells; others hold the scores of a mediator's base."""
        self.lm.paths.require(*sites_of(mediators))

        def restore(part: Sequence[Case], budget: int) -> list[tuple[Case, Mapping[str, Scores]]]:
            return self._restored(part, mediators, only, budget)

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
        n_cells = sum(self._most_cells(mediator, group[0].shape) for mediator in mediators)
        bases = {Base.of(mediator) for mediator in mediators} or {Base.corrupted}
        of_case = max(recorded_rows(self.noise.samples, base) for base in bases)
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
            self._kept = None
            release()
            log.warning("out of memory: going on with engine.row_budget=%d", self._row_budget)

    def _most_cells(self, mediator: Mediator, shape: Shape) -> int:
        """Rows of one walk, at the most: cells at one position; of edges, all of them."""
        sources = shape.n_positions + len(SOURCE_GROUPS) if mediator.cuts else 1
        return math.prod(cells_shape(self.lm, mediator)) * sources

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

    def _baseline(self, runs: Runs) -> list[tuple[Case, Baseline]]:
        scores = fetched([runs.clean_scores(), runs.corrupted_scores()])
        clean, corrupted = (by_case(of_run, runs.n_cases) for of_run in scores)
        return [
            (case, Baseline(of_clean, of_corrupted, of_foils))
            for case, of_clean, of_corrupted, of_foils in zip(
                runs.group, clean, corrupted, runs.foils, strict=True
            )
        ]

    def _recorded(self, group: Sequence[Case], base: Base, mediators: Sequence[Mediator]) -> Runs:
        """The runs of a group, with what mediators need of them; kept until others are recorded."""
        # A block's output is the next one's input, which is recorded anyway.
        sites = {site for m in mediators if not m.cuts for site in m.sites} - {"hidden"}
        if self._kept is None or not self._kept.serves(group, sites, base):
            self._kept = None  # its memory is needed
            self._kept = Runs(self._recorder, self.noise, group, sorted(sites), self.limits, base)
        return self._kept

    def _restored(
        self,
        group: Sequence[Case],
        mediators: Sequence[Mediator],
        only: Only | None,
        budget: int,
    ) -> list[tuple[Case, Mapping[str, Scores]]]:
        grids: list[tuple[list[int], Grid]] = []
        for base, together in walking_together(mediators):
            known = self._with_baselines(group) if base is Base.clean_alone else group
            alike = [m for m in mediators if Base.of(m) is base]
            for numbers in acted_on_alike(group, together[0]):
                cases = [known[number] for number in numbers]
                runs = self._recorded(cases, base, alike)
                grid = Grid(runs, cases, together, only)
                for plan, stretch, scores in self._walked(runs, grid.cells, grid.walked_at, budget):
                    grid.add(plan, stretch, scores)
                grids.append((numbers, grid))
        self._kept = None
        found: list[dict[str, Scores]] = [{} for _ in group]
        arrays = iter(fetched([of for _, grid in grids for of in grid.scores]))
        for numbers, grid in grids:
            of_grid = grid.by_case(list(islice(arrays, len(grid.scores))))
            for number, of_case in zip(numbers, of_grid, strict=True):
                found[number].update(of_case)
        return list(zip(group, found, strict=True))

    def _with_baselines(self, group: Sequence[Case]) -> list[Case]:
        """Cases that know their foils: a clean run alone names none."""
        lacking = [number for number, case in enumerate(group) if case.baseline is None]
        cases = list(group)
        if lacking:
            runs = self._recorded([group[number] for number in lacking], Base.corrupted, ())
            for number, (case, baseline) in zip(lacking, self._baseline(runs), strict=True):
                cases[number] = replace(case, baseline=baseline)
        return cases

    def _walked(
        self, runs: Runs, cells: Sequence[Cell], positions: Sequence[int], budget: int
    ) -> Iterator[tuple[Plan, list[int], OnDevice]]:
        """Walk until every cell that needs it has been restored at each of some positions.

        Yields:
            A plan, the positions that it was walked at, and the scores of its rows there,
            `(metrics, positions x n_rows x n_cases x n_samples)`.
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
                yield plan, stretch, runs.scores(final.flatten(0, 1))

    def _pack_tokens(self, runs: Runs, budget: int) -> int:
        if not self.packed:
            return 1
        # More would cost more in attention, where a packed token meets all others; and of each base
        # row no more than keep attention small beside the products with weights.
        most = self.limits.enough(self.lm.device).tokens
        return min(most, budget * runs.n_positions, runs.n_base * most_packed(self.lm))


def most_packed(lm: LanguageModel) -> int:
    """Tokens of a base row in a pack, at the most."""
    return lm.d_embedding // 2
