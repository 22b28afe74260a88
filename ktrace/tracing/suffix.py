"""The suffix engine: the reference engine's numbers without its repetitions.

Restoring (layer l, position t) changes nothing at positions before t nor in layers up to l. So for
each t the layers are walked once, on the positions from t on, against the corrupted run's keys and
values before t; at each layer the batch holds every restoration that has begun (ktrace/tracing/
plan.py says which). Work falls from S·T²·L² block calls to about S·L²/2·Σ(T - t).
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TypeVar

import numpy as np
import torch

from ktrace.errors import KtraceError
from ktrace.lm.hooks import Edit, hooked
from ktrace.lm.load import LanguageModel
from ktrace.tracing.engine import METRICS, Baseline, Case, Scores, Shape, make_targets, score
from ktrace.tracing.mediators import Mediator
from ktrace.tracing.memory import is_out_of_memory, release, rows_that_fit
from ktrace.tracing.noise import Noise
from ktrace.tracing.plan import Cell, Plan, Step, make_plan, split
from ktrace.tracing.replay import (
    Recording,
    call_block,
    logits_of,
    mlp_on_last_positions,
    record,
)

log = logging.getLogger(__name__)

# Facts share a batch until a block's weights are used often enough to be worth fetching: this many
# multiplications in one block call on a CPU, and on an accelerator.
_ENOUGH_WORK = {"cpu": 4e10, "cuda": 2e12}
_MOST_CASES = 32

T = TypeVar("T")


class SuffixEngine:
    """Exact causal tracing near the arithmetic that it needs.

    Args:
        lm: the model.
        noise: what corrupts.
        row_budget: most rows in one block call; None takes what fits into memory. One fact's clean
            and corrupted runs are never parted, nor are the samples of one restoration.
    """

    def __init__(self, lm: LanguageModel, noise: Noise, row_budget: int | None = None) -> None:
        self.lm = lm
        self.noise = noise
        self._row_budget = row_budget

    def cases_together(self, shape: Shape) -> int:
        """See `Engine.cases_together`."""
        d_model, n_samples = self.lm.d_embedding, self.noise.samples
        tokens = n_samples * self.lm.n_layers * shape.n_positions / 2  # in a middle block call
        enough = _ENOUGH_WORK.get(self.lm.device.type, _ENOUGH_WORK["cuda"])
        worthwhile = int(enough / (tokens * 12 * d_model**2))
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
        self.lm.paths.require(*(s for m in mediators for s in (m.site, m.severs) if s))

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
        runs = _Runs(self.lm, self.noise, group, sites=())
        clean = runs.clean_scores()
        corrupted = _by_case(runs.corrupted_scores(), len(group))
        found = []
        for number, (case, foils) in enumerate(
            zip(group, runs.targets.foils.tolist(), strict=True)
        ):
            first_row = number * runs.n_samples
            scores = {metric: float(values[first_row]) for metric, values in clean.items()}
            found.append((case, Baseline(scores, corrupted[number], tuple(foils))))
        return found

    def _restored(
        self, group: Sequence[Case], mediators: Sequence[Mediator], budget: int
    ) -> list[tuple[Case, Mapping[str, Scores]]]:
        lm = self.lm
        sites = {m.site for m in mediators} | {m.severs for m in mediators if m.severs}
        runs = _Runs(lm, self.noise, group, sites=sorted(sites | {"hidden"}))
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
        for chunk in split(cells, max(1, budget // runs.n_base)):
            plan = make_plan(chunk, lm.n_layers)
            if not plan.row_of:
                continue
            positions = range(group[0].span.start, n_prompt)
            final = torch.stack([_Walk(runs, plan, position).run() for position in positions])
            # (positions, rows of the plan, base rows): one call of the head serves all positions.
            scores = {
                metric: values.reshape(final.shape[:3])
                for metric, values in runs.scores(final.flatten(0, 1)).items()
            }
            for cell, row in plan.row_of.items():
                for metric in METRICS:
                    results[cell.mediator.key][metric][:, cell.layer, positions.start :] = scores[
                        metric
                    ][:, row].T
        by_case = {key: _by_case(scores, len(group)) for key, scores in results.items()}
        return [
            (case, {key: scores[number] for key, scores in by_case.items()})
            for number, case in enumerate(group)
        ]


def _known(runs: "_Runs", group: Sequence[Case]) -> tuple[Scores, Scores]:
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


class _Runs:
    """Clean and corrupted runs of a group, recorded in one forward pass.

    The first rows are clean, one for each case; the base rows follow, (case, sample), with the
    sample fastest.
    """

    def __init__(
        self, lm: LanguageModel, noise: Noise, group: Sequence[Case], sites: Sequence[str]
    ) -> None:
        self.lm = lm
        self.n_cases = len(group)
        self.n_samples = noise.samples
        self.n_answer = len(group[0].answer_ids)
        self.n_positions = len(group[0].forced_ids)
        self.n_base = self.n_cases * self.n_samples
        ids = torch.tensor([case.forced_ids for case in group], device=lm.device)
        self.outputs: dict[str, torch.Tensor] = {}
        edits: dict[str, Edit] = {lm.paths.embedding: self._add_noise(noise, group)}
        for layer in range(lm.n_layers):
            for site in sites:
                path = lm.paths.sites(layer)[site]
                edits[path] = self._keep(path)
        rows = torch.cat([ids, ids.repeat_interleave(self.n_samples, dim=0)])
        self.recording: Recording = record(lm, rows, edits, self.n_answer)
        logits = self.recording.logits
        self.targets = make_targets(group, logits[: self.n_cases], self._by_case(logits))

    def _add_noise(self, noise: Noise, group: Sequence[Case]) -> Edit:
        def edit(embeddings: torch.Tensor) -> torch.Tensor:
            noised = embeddings.clone()
            base = self._by_case(noised)
            for number, case in enumerate(group):
                start, stop = case.span
                base[number, :, start:stop] = noise.corrupt(case, embeddings[number, start:stop])
            return noised

        return edit

    def _by_case(self, rows: torch.Tensor) -> torch.Tensor:
        """The base rows among all rows, `(n_cases, n_samples, ...)`; a view."""
        return rows[self.n_cases :].view(self.n_cases, self.n_samples, *rows.shape[1:])

    def _keep(self, path: str) -> Edit:
        def watch(output: torch.Tensor) -> None:
            self.outputs[path] = output.clone()  # a block may add to it in place (Falcon)

        return watch

    def clean(self, site: str, layer: int, position: int) -> torch.Tensor:
        """A site's clean output at one position, for each base row, `(n_base, d_model)`."""
        output = self.outputs[self.lm.paths.sites(layer)[site]]
        return output[: self.n_cases, position].repeat_interleave(self.n_samples, dim=0)

    def corrupted(self, site: str, layer: int, position: int) -> torch.Tensor:
        """A site's corrupted output at one position, `(n_base, d_model)`."""
        return self.outputs[self.lm.paths.sites(layer)[site]][self.n_cases :, position]

    def corrupted_input(self, layer: int, position: int) -> torch.Tensor:
        """A block's corrupted input from one position on, `(n_base, positions, d_model)`."""
        return self.recording.calls[layer].states[self.n_cases :, position:]

    def clean_scores(self) -> Scores:
        """Of the clean run, repeated for each base row, `(n_base,)`."""
        scores = score(self.recording.logits[None, : self.n_cases, None], self.targets)
        return {
            metric: values.repeat(self.n_samples) for metric, values in _as_arrays(scores).items()
        }

    def corrupted_scores(self) -> Scores:
        """Of the corrupted run, `(n_base,)`."""
        return _as_arrays(score(self._by_case(self.recording.logits)[None], self.targets))

    def last_restored_scores(self) -> Scores:
        """With the last block's output at the prompt's last position restored, `(n_base,)`."""
        logits = self._by_case(self.recording.logits).clone()
        logits[:, :, 0] = self.recording.logits[: self.n_cases, None, 0]
        return _as_arrays(score(logits[None], self.targets))

    def scores(self, states: torch.Tensor) -> Scores:
        """From last-layer states, some at a time: logits are large.

        Args:
            states: `(n, n_base, n_answer, d_model)`.

        Returns:
            `(n x n_base,)` for each metric.
        """
        parts = []
        for some in torch.split(states, max(1, _HEAD_ROWS // (self.n_base * self.n_answer))):
            logits = logits_of(self.lm, self.recording, some.flatten(0, 2))
            by_fact = logits.view(len(some), self.n_cases, self.n_samples, self.n_answer, -1)
            parts.append(_as_arrays(score(by_fact, self.targets)))
        return {metric: np.concatenate([part[metric] for part in parts]) for metric in METRICS}


def _as_arrays(scores: Mapping[str, torch.Tensor]) -> Scores:
    return {metric: values.double().cpu().numpy().ravel() for metric, values in scores.items()}


_HEAD_ROWS = 256


class _Walk:
    """One pass over the layers, on the positions from `position` on."""

    def __init__(self, runs: _Runs, plan: Plan, position: int) -> None:
        self.runs = runs
        self.plan = plan
        self.position = position
        self.n_positions = runs.n_positions - position

    def run(self) -> torch.Tensor:
        """Last-layer states that predict, `(rows of the plan, n_base, n_answer, d_model)`."""
        runs, lm = self.runs, self.runs.lm
        base_rows = slice(runs.n_cases, None)
        states: torch.Tensor | None = None
        for layer, step in enumerate(self.plan.steps):
            if not step.n_rows:
                continue
            states = self._input(step, layer, states)
            is_last = layer == lm.n_layers - 1
            # In the last layer only the predicting positions count: edits at others do not.
            alone = is_last and self.n_positions > runs.n_answer
            edits = {} if alone else self._edits(step, layer)
            context = mlp_on_last_positions(lm, layer, runs.n_answer) if alone else nullcontext()
            with context, hooked(lm.model, edits):
                output = call_block(
                    runs.recording, layer, states.flatten(0, 1), self.position, base_rows
                )
            states = output.view(step.n_rows, runs.n_base, *output.shape[1:])
        assert states is not None
        return states[:, :, -runs.n_answer :]

    def _input(self, step: Step, layer: int, states: torch.Tensor | None) -> torch.Tensor:
        parts: list[torch.Tensor] = []
        if states is not None:
            unchanged = step.sources == list(range(len(states)))
            parts.append(states if unchanged else states[step.sources])
        for restored in step.joining_restored:
            joining = self.runs.corrupted_input(layer, self.position)
            if restored:
                joining = joining.clone()
                joining[:, 0] = self.runs.clean("hidden", layer - 1, self.position)
            parts.append(joining[None])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _edits(self, step: Step, layer: int) -> dict[str, Edit]:
        paths = self.runs.lm.paths.sites(layer)
        edits: dict[str, Edit] = {}
        for site in {*step.restored, *step.severed}:
            changes = []
            if site in step.restored:
                clean = self.runs.clean(site, layer, self.position)
                changes.append((step.restored[site], clean))
            if site in step.severed:
                held = self.runs.corrupted(site, layer, self.position)
                changes.append((step.severed[site], held))
            edits[paths[site]] = self._set_first_position(step.n_rows, changes)
        return edits

    def _set_first_position(
        self, n_rows: int, changes: Sequence[tuple[list[int], torch.Tensor]]
    ) -> Edit:
        def edit(output: torch.Tensor) -> torch.Tensor:
            edited = output.clone()
            by_row = edited.view(n_rows, -1, *edited.shape[1:])
            for rows, values in changes:
                by_row[rows, :, 0] = values
            return edited

        return edit
