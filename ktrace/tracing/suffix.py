"""The suffix engine: the reference engine's numbers without its repetitions.

Restoring (layer l, position t) changes nothing at positions before t nor in layers up to l. So for
each t the layers are walked once, on the positions from t on, against the corrupted run's keys and
values before t; at each layer the batch holds every restoration that has begun (ktrace/tracing/
plan.py says which). Work falls from S·T²·L² block calls to about S·L²/2·Σ(T - t).
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import torch

from ktrace.errors import KtraceError
from ktrace.lm.hooks import Edit, hooked
from ktrace.lm.load import LanguageModel
from ktrace.tracing.engine import METRICS, Baseline, Case, Scores, make_targets, score
from ktrace.tracing.mediators import Mediator
from ktrace.tracing.memory import is_out_of_memory, rows_that_fit
from ktrace.tracing.noise import Noise
from ktrace.tracing.plan import Cell, Plan, Step, make_plan, split
from ktrace.tracing.replay import (
    Recording,
    call_block,
    logits_of,
    mlp_on_last_position,
    record,
)

log = logging.getLogger(__name__)

# Facts share a batch until a block's weights are used often enough to be worth fetching: this many
# multiplications in one block call on a CPU, and on an accelerator.
_ENOUGH_WORK = {"cpu": 4e10, "cuda": 2e12}
_MOST_CASES = 32


class SuffixEngine:
    """Exact causal tracing near the arithmetic that it needs.

    Args:
        lm: the model.
        noise: what corrupts.
        row_budget: most rows (restorations x samples x cases) in one block call; None measures
            free memory.
    """

    def __init__(self, lm: LanguageModel, noise: Noise, row_budget: int | None = None) -> None:
        self.lm = lm
        self.noise = noise
        self._row_budget = row_budget

    def groups(self, cases: Iterable[Case]) -> list[list[Case]]:
        """See `Engine.groups`: cases of one length and subject start share batches."""
        open_groups: dict[tuple[int, int], list[Case]] = {}
        groups: list[list[Case]] = []
        for case in cases:
            key = (len(case.input_ids), case.span.start)
            if key not in open_groups:
                open_groups[key] = []
                groups.append(open_groups[key])
            open_groups[key].append(case)
            if len(open_groups[key]) >= self._cases_together(len(case.input_ids)):
                del open_groups[key]
        return groups

    def _cases_together(self, n_positions: int) -> int:
        d_model = self.lm.d_embedding
        tokens = self.noise.samples * self.lm.n_layers * n_positions / 2  # in a middle block call
        enough = _ENOUGH_WORK.get(self.lm.device.type, _ENOUGH_WORK["cuda"])
        return int(min(_MOST_CASES, max(1, enough / (tokens * 12 * d_model**2))))

    @torch.inference_mode()
    def baseline(self, group: Sequence[Case]) -> Iterator[tuple[Case, Baseline]]:
        """See `Engine.baseline`."""
        runs = _Runs(self.lm, self.noise, group, sites=())
        clean = runs.clean_scores()
        corrupted = _by_case(runs.corrupted_scores(), len(group))
        foils = runs.targets.foils.tolist()
        for number, (case, foil) in enumerate(zip(group, foils, strict=True)):
            first_row = number * runs.n_samples
            scores = {metric: float(values[first_row]) for metric, values in clean.items()}
            yield case, Baseline(scores, corrupted[number], foil)

    @torch.inference_mode()
    def restored(
        self, group: Sequence[Case], mediators: Sequence[Mediator]
    ) -> Iterator[tuple[Case, Mapping[str, Scores]]]:
        """See `Engine.restored`."""
        self.lm.paths.require(*(s for m in mediators for s in (m.site, m.severs) if s))
        budget = self._row_budget or rows_that_fit(self.lm, len(group[0].input_ids))
        while True:
            try:
                yield from self._restored(group, mediators, budget)
                return
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if budget <= len(group) * self.noise.samples:
                    raise KtraceError(
                        "out of memory with one restoration in a batch: lower noise.samples, or "
                        "give model.dtype, model.device or model.device_map more room"
                    ) from error
                budget //= 2
            torch.cuda.empty_cache()
            log.warning("out of memory: going on with engine.row_budget=%d", budget)

    def _restored(
        self, group: Sequence[Case], mediators: Sequence[Mediator], budget: int
    ) -> list[tuple[Case, dict[str, Scores]]]:
        lm = self.lm
        sites = {m.site for m in mediators} | {m.severs for m in mediators if m.severs}
        runs = _Runs(lm, self.noise, group, sites=sorted(sites | {"hidden"}))
        corrupted = runs.corrupted_scores()
        clean = runs.clean_scores()
        shape = (runs.n_base, lm.n_layers, runs.n_positions)
        results = {
            m.key: {
                metric: np.broadcast_to(corrupted[metric][:, None, None], shape).copy()
                for metric in METRICS
            }
            for m in mediators
        }
        # Restoring the last block at the last position is the clean run; elsewhere it is nothing.
        for mediator in mediators:
            if mediator.site == "hidden":
                for metric in METRICS:
                    results[mediator.key][metric][:, -1, -1] = clean[metric]
        cells = [Cell(m, layer) for m in mediators for layer in range(lm.n_layers)]
        for chunk in split(cells, max(1, budget // runs.n_base)):
            plan = make_plan(chunk, lm.n_layers)
            if not plan.row_of:
                continue
            positions = range(group[0].span.start, runs.n_positions)
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
        self.n_positions = len(group[0].input_ids)
        self.n_base = self.n_cases * self.n_samples
        ids = torch.tensor([case.input_ids for case in group], device=lm.device)
        self.outputs: dict[str, torch.Tensor] = {}
        edits: dict[str, Edit] = {lm.paths.embedding: self._add_noise(noise, group)}
        for layer in range(lm.n_layers):
            for site in sites:
                path = lm.paths.sites(layer)[site]
                edits[path] = self._keep(path)
        rows = torch.cat([ids, ids.repeat_interleave(self.n_samples, dim=0)])
        self.recording: Recording = record(lm, rows, edits)
        logits = self.recording.logits
        answers = torch.tensor([case.answer_id for case in group], device=logits.device)
        self.targets = make_targets(answers, logits[: self.n_cases], self._by_case(logits))

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
            metric: np.repeat(values.double().cpu().numpy().ravel(), self.n_samples)
            for metric, values in scores.items()
        }

    def corrupted_scores(self) -> Scores:
        """Of the corrupted run, `(n_base,)`."""
        scores = score(self._by_case(self.recording.logits)[None], self.targets)
        return {m: values.double().cpu().numpy().ravel() for m, values in scores.items()}

    def scores(self, states: torch.Tensor) -> Scores:
        """From last-layer states `(n, n_base, d_model)`, a part at a time: logits are large."""
        parts: dict[str, list[torch.Tensor]] = {}
        for some in torch.split(states, max(1, _HEAD_ROWS // self.n_base)):
            logits = logits_of(self.lm, self.recording, some.flatten(0, 1))
            by_fact = logits.view(len(some), self.n_cases, self.n_samples, -1)
            for metric, values in score(by_fact, self.targets).items():
                parts.setdefault(metric, []).append(values)
        return {m: torch.cat(values).double().cpu().numpy() for m, values in parts.items()}


_HEAD_ROWS = 256


class _Walk:
    """One pass over the layers, on the positions from `position` on."""

    def __init__(self, runs: _Runs, plan: Plan, position: int) -> None:
        self.runs = runs
        self.plan = plan
        self.position = position
        self.n_positions = runs.n_positions - position

    def run(self) -> torch.Tensor:
        """Last-layer states at the last position, `(rows of the plan, n_base, d_model)`."""
        runs, lm = self.runs, self.runs.lm
        base_rows = slice(runs.n_cases, None)
        states: torch.Tensor | None = None
        for layer, step in enumerate(self.plan.steps):
            if not step.n_rows:
                continue
            states = self._input(step, layer, states)
            is_last = layer == lm.n_layers - 1
            # In the last layer only the last position counts, so edits at earlier ones do not.
            alone = is_last and self.n_positions > 1
            edits = {} if alone else self._edits(step, layer)
            context = mlp_on_last_position(lm, layer) if alone else nullcontext()
            with context, hooked(lm.model, edits):
                output = call_block(
                    runs.recording, layer, states.flatten(0, 1), self.position, base_rows
                )
            states = output.view(step.n_rows, runs.n_base, *output.shape[1:])
        assert states is not None
        return states[:, :, -1]

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
