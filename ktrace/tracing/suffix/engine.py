"""The suffix engine: the reference engine's numbers without its repetitions.

Restoring (layer l, position t) changes nothing at positions before t nor in layers up to l. So the
layers are walked once: each t's rows hold the positions from t on, against the corrupted run's keys
and values before t, and at each layer every restoration that has begun (plan.py says which,
walk.py runs them; memory may ask for several walks). Block calls fall from S·T²·L² to about
S·L²/2·Σ(T - t).
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch

from ktrace.errors import KtraceError
from ktrace.lm.linear import onednn_products
from ktrace.lm.model import LanguageModel
from ktrace.terms import METRICS
from ktrace.tracing.engine import Baseline, Case, Scores, Shape
from ktrace.tracing.groups import UNIT_FACTS
from ktrace.tracing.mediators import Mediator
from ktrace.tracing.noise import Noise
from ktrace.tracing.suffix.memory import ENOUGH_TOKENS, is_out_of_memory, release, rows_that_fit
from ktrace.tracing.suffix.plan import Cell, make_plan, split, stretches
from ktrace.tracing.suffix.runs import Runs
from ktrace.tracing.suffix.walk import Walk

log = logging.getLogger(__name__)

# Facts share a batch until it fills some block calls, and a call has so many multiplications, on a
# CPU and on an accelerator. Larger batches gain nothing, and their runs take memory.
_SHARED_CALLS = 3
_ENOUGH_WORK = {"cpu": 6e8, "cuda": 2e12}
_MOST_CASES = UNIT_FACTS
# A walk keeps the states of all its suffixes, a block call some twenty numbers for each of theirs:
# so many times a call's tokens fit beside it.
_HELD = 4

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
    """

    def __init__(
        self,
        lm: LanguageModel,
        noise: Noise,
        row_budget: int | None = None,
        *,
        packed: bool = False,
    ) -> None:
        self.lm = lm
        self.noise = noise
        self.packed = packed
        self._row_budget = row_budget

    def cases_together(self, shape: Shape) -> int:
        """See `Engine.cases_together`."""
        d_model, n_samples = self.lm.d_embedding, self.noise.samples
        tokens = n_samples * self.lm.n_layers * shape.n_positions / 2  # in a middle block call
        enough = self._of_device(_ENOUGH_WORK) / (12 * d_model**2)
        worthwhile = int(max(enough, _SHARED_CALLS * self._of_device(ENOUGH_TOKENS)) / tokens)
        if self._row_budget is not None:
            worthwhile = min(worthwhile, self._row_budget // (1 + n_samples))
        return min(_MOST_CASES, max(1, worthwhile))

    @torch.inference_mode()
    def baseline(self, group: Sequence[Case]) -> Iterator[tuple[Case, Baseline]]:
        """See `Engine.baseline`."""
        yield from self._within_memory(group, 0, self._baseline)

    @torch.inference_mode()
    def restored(
        self, group: Sequence[Case], mediators: Sequence[Mediator]
    ) -> Iterator[tuple[Case, Mapping[str, Scores]]]:
        """See `Engine.restored`."""
        self.lm.paths.require(*(site for m in mediators for site in m.sites))

        def restore(part: Sequence[Case], budget: int) -> list[tuple[Case, Mapping[str, Scores]]]:
            return self._restored(part, mediators, budget)

        yield from self._within_memory(group, len(mediators) * self.lm.n_layers, restore)

    def _within_memory(
        self, group: Sequence[Case], n_cells: int, work: Callable[[Sequence[Case], int], list[T]]
    ) -> Iterator[T]:
        """Work through a group; where memory does not suffice, in smaller parts from then on.

        Args:
            group: cases.
            n_cells: restorations at one position, at the most.
            work: takes some of the cases, and most rows in a block call.
        """
        n_samples = self.noise.samples
        todo = list(group)
        while todo:
            budget = self._row_budget or rows_that_fit(self.lm, len(todo[0].forced_ids))
            part = todo[: max(1, budget // (1 + n_samples))]
            try:
                with onednn_products(self.lm.model):
                    results = work(part, budget)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                recorded = len(part) * (1 + n_samples)
                n_base = len(part) * n_samples
                walked = n_base * min(n_cells, max(1, budget // n_base))
                if len(part) == 1 and walked <= n_samples:
                    raise KtraceError(
                        "out of memory with one fact and one restoration at a time: lower "
                        f"noise.samples={n_samples}, or give the model more room or fewer bits "
                        "(model.device, model.device_map, model.dtype, model.quantization)"
                    ) from error
                self._row_budget = min(budget, max(recorded, walked)) // 2
            else:
                todo = todo[len(part) :]
                yield from results
                continue
            # Here, where the error and the tensors that it holds are gone.
            release()
            log.warning("out of memory: going on with engine.row_budget=%d", self._row_budget)

    def _baseline(self, group: Sequence[Case], budget: int) -> list[tuple[Case, Baseline]]:
        runs = Runs(self.lm, self.noise, group, sites=())
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
        self, group: Sequence[Case], mediators: Sequence[Mediator], budget: int
    ) -> list[tuple[Case, Mapping[str, Scores]]]:
        lm = self.lm
        # A block's output is the next one's input, which is recorded anyway.
        sites = {site for m in mediators for site in m.sites} - {"hidden"}
        runs = Runs(lm, self.noise, group, sites=sorted(sites))
        n_prompt = len(group[0].input_ids)
        unchanged, last_restored = _known(runs, group)
        shape = (runs.n_base, lm.n_layers, n_prompt)
        results = {
            m.key: {
                metric: np.broadcast_to(unchanged[metric][:, None, None], shape).copy()
                for metric in METRICS
            }
            for m in mediators
        }
        # Restoring the last block changes the logits of its own position alone.
        for mediator in mediators:
            if mediator.site == "hidden":
                for metric in METRICS:
                    results[mediator.key][metric][:, -1, -1] = last_restored[metric]
        cells = [Cell(m, layer) for m in mediators for layer in range(lm.n_layers)]
        positions = range(group[0].span.start, n_prompt)
        pack_tokens = self._pack_tokens(runs, budget)
        for chunk in split(cells, max(1, budget // runs.n_base)):
            plan = make_plan(chunk, lm.n_layers)
            if not plan.row_of:
                continue
            rows = runs.n_base * max(step.n_rows for step in plan.steps)
            held = _HELD * budget * runs.n_positions // rows
            for stretch in stretches(positions, runs.n_positions, held):
                final = Walk(runs, plan, stretch, pack_tokens).run()
                # (positions, rows of the plan, base rows)
                scores = {
                    metric: values.reshape(final.shape[:3])
                    for metric, values in runs.scores(final.flatten(0, 1)).items()
                }
                for cell, row in plan.row_of.items():
                    for metric in METRICS:
                        restored = results[cell.mediator.key][metric]
                        restored[:, cell.layer, stretch.start : stretch.stop] = scores[metric][
                            :, row
                        ].T
        by_case = {key: _by_case(scores, len(group)) for key, scores in results.items()}
        return [
            (case, {key: scores[number] for key, scores in by_case.items()})
            for number, case in enumerate(group)
        ]

    def _of_device(self, limits: Mapping[str, float]) -> float:
        return limits.get(self.lm.device.type, limits["cuda"])

    def _pack_tokens(self, runs: Runs, budget: int) -> int:
        if not self.packed:
            return 1
        # More would cost more in attention, where a packed token meets all others; and of each base
        # row no more than keep attention small beside the products with weights.
        most = int(self._of_device(ENOUGH_TOKENS))
        return min(most, budget * runs.n_positions, runs.n_base * self.lm.d_embedding // 2)


def _known(runs: Runs, group: Sequence[Case]) -> tuple[Scores, Scores]:
    """Scores that need no walk, `(n_base,)`: where nothing changes, and of the last state restored.

    Those of a case with a baseline are the baseline's to the bit: it may have been run in other
    company, and an effect of rounding is still an effect.
    """
    unchanged, last_restored = runs.corrupted_scores(), runs.last_restored_scores()
    for number, case in enumerate(group):
        if case.baseline is None:
            continue
        rows = slice(number * runs.n_samples, (number + 1) * runs.n_samples)
        for metric in METRICS:
            unchanged[metric][rows] = case.baseline.corrupted[metric]
            if runs.n_answer == 1:  # then the last restored state is all that counts
                last_restored[metric][rows] = case.baseline.clean[metric]
    return unchanged, last_restored


def _by_case(scores: Scores, n_cases: int) -> list[Scores]:
    """Cut arrays with base rows first, (case, sample), into one for each case."""
    cut = {metric: np.split(values, n_cases) for metric, values in scores.items()}
    return [{metric: values[number] for metric, values in cut.items()} for number in range(n_cases)]
