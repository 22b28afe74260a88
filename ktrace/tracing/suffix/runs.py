"""The clean and the corrupted runs of a group of cases, as the suffix engine needs them.

Shapes: n_cases in the group, n_samples of the noise; n_base = n_cases x n_samples rows of the
corrupted run; n_answer tokens of an answer.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ktrace.lm.head import logits_from
from ktrace.lm.hooks import Edit, keep
from ktrace.terms import METRICS
from ktrace.tracing.engine import Case, Scores
from ktrace.tracing.noise import Noise
from ktrace.tracing.scores import make_targets, score
from ktrace.tracing.suffix.limits import Limits
from ktrace.tracing.suffix.memory import LARGEST_CPU_BLOCK
from ktrace.tracing.suffix.recording import Recorder, Recording


class Runs:
    """Clean and corrupted runs of a group, recorded in one forward pass.

    The first rows are clean, one for each case; the base rows follow, (case, sample), with the
    sample fastest.

    Args:
        recorder: of the model.
        noise: what corrupts.
        group: cases of one shape.
        sites: whose outputs are kept.
        limits: how many rows' logits are taken together.
    """

    def __init__(
        self,
        recorder: Recorder,
        noise: Noise,
        group: Sequence[Case],
        sites: Sequence[str],
        limits: Limits,
    ) -> None:
        lm = recorder.lm
        self.lm = lm
        self.n_cases = len(group)
        self.n_samples = noise.samples
        self.n_answer = len(group[0].answer_ids)
        self.n_positions = len(group[0].forced_ids)
        self.n_base = self.n_cases * self.n_samples
        self._head_rows = limits.head_rows
        ids = torch.tensor([case.forced_ids for case in group], device=lm.device)
        self.outputs: dict[str, torch.Tensor] = {}
        edits: dict[str, Edit] = {lm.paths.embedding: self._add_noise(noise, group)}
        for layer in range(lm.n_layers):
            have = lm.paths.sites(layer)
            for path in (have[site] for site in sites if site in have):
                edits[path] = keep(self.outputs, path)
        rows = torch.cat([ids, ids.repeat_interleave(self.n_samples, dim=0)])
        self.recording: Recording = recorder.record(rows, edits, self.n_answer)
        logits = self.recording.logits
        self.targets = make_targets(
            group, self._clean_rows(logits), self._by_case(logits), noise.foils
        )

    @property
    def base(self) -> slice:
        """The base rows among all rows."""
        return slice(self.n_cases, None)

    def _clean_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """The clean rows among all rows, `(n_cases, ...)`; a view."""
        return rows[: self.n_cases]

    def _by_case(self, rows: torch.Tensor) -> torch.Tensor:
        """The base rows among all rows, `(n_cases, n_samples, ...)`; a view."""
        return rows[self.base].view(self.n_cases, self.n_samples, *rows.shape[1:])

    def _add_noise(self, noise: Noise, group: Sequence[Case]) -> Edit:
        def edit(embeddings: torch.Tensor) -> torch.Tensor:
            noised = embeddings.clone()
            base = self._by_case(noised)
            for number, case in enumerate(group):
                start, stop = case.span
                base[number, :, start:stop] = noise.corrupt(case, embeddings[number, start:stop])
            return noised

        return edit

    def clean(self, site: str, layer: int, position: int) -> torch.Tensor:
        """Of one of `sites`, the clean output at one position, `(n_base, d_model)`."""
        return self._clean_at(self.outputs[self.lm.paths.sites(layer)[site]], position)

    def corrupted(self, site: str, layer: int, position: int) -> torch.Tensor:
        """Of one of `sites`, the corrupted output at one position, `(n_base, d_model)`."""
        return self.outputs[self.lm.paths.sites(layer)[site]][self.base, position]

    def clean_input(self, layer: int, position: int) -> torch.Tensor:
        """A block's clean input at one position, for each base row, `(n_base, d_model)`."""
        return self._clean_at(self.recording.calls[layer].states, position)

    def _clean_at(self, rows: torch.Tensor, position: int) -> torch.Tensor:
        return self._clean_rows(rows)[:, position].repeat_interleave(self.n_samples, dim=0)

    def corrupted_input(self, layer: int, position: int) -> torch.Tensor:
        """A block's corrupted input from one position on, `(n_base, tokens, d_model)`."""
        return self.recording.calls[layer].states[self.base, position:]

    def clean_scores(self) -> Scores:
        """Of the clean run, against each base row's foil, `(n_base,)`."""
        logits = self._clean_rows(self.recording.logits)
        clean = logits[:, None].expand(-1, self.n_samples, -1, -1)
        return _as_arrays(score(clean[None], self.targets))

    def corrupted_scores(self) -> Scores:
        """Of the corrupted run, `(n_base,)`."""
        return _as_arrays(score(self._by_case(self.recording.logits)[None], self.targets))

    def last_restored_scores(self) -> Scores:
        """With the last block's output at the prompt's last position restored, `(n_base,)`."""
        logits = self._by_case(self.recording.logits).clone()
        logits[:, :, 0] = self._clean_rows(self.recording.logits)[:, None, 0]
        return _as_arrays(score(logits[None], self.targets))

    def scores(self, states: torch.Tensor) -> Scores:
        """From last-layer states, some at a time: logits are large.

        Args:
            states: `(n, n_base, n_answer, d_model)`.

        Returns:
            `(n x n_base,)` for each metric.
        """
        parts = []
        row_bytes = self.recording.logits.shape[-1] * self.recording.logits.element_size()
        n_rows = min(self._head_rows, LARGEST_CPU_BLOCK // row_bytes)
        for some in torch.split(states, max(1, n_rows // (self.n_base * self.n_answer))):
            by_fact = self._logits(some.flatten(0, 2)).view(
                len(some), self.n_cases, self.n_samples, self.n_answer, -1
            )
            parts.append(_as_arrays(score(by_fact, self.targets)))
        return {metric: np.concatenate([part[metric] for part in parts]) for metric in METRICS}

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        """From outputs of the last block, `(rows, d_model)`; `(rows, vocabulary)`."""
        lm, in_tuples = self.lm, self.recording.in_tuples
        return logits_from(lm.model, lm.blocks, states, in_tuples=in_tuples, device=lm.device)


def _as_arrays(scores: Mapping[str, torch.Tensor]) -> Scores:
    # Widened on the CPU: not every device has float64.
    return {metric: values.cpu().double().numpy().ravel() for metric, values in scores.items()}
