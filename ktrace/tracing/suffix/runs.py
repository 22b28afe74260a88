"""The clean and the corrupted runs of a group of cases, as the suffix engine needs them.

One of the two is the base, which suffixes go on from; the other is the source of the states that
are put into it. Where edges are cut, the clean run is the base, and there is no source.

Shapes: n_cases in the group, n_samples of the noise; n_base rows of the base, n_cases x n_samples,
or n_cases where edges are cut; n_answer tokens of an answer.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from functools import cached_property

import numpy as np
import torch

from ktrace.lm.head import logits_from
from ktrace.lm.hooks import Edit, keep
from ktrace.terms import METRICS
from ktrace.tracing.engine import Case, Scores
from ktrace.tracing.mediators import Mediator
from ktrace.tracing.noise import Noise
from ktrace.tracing.scores import make_targets, score
from ktrace.tracing.suffix.layout import Put
from ktrace.tracing.suffix.limits import Limits
from ktrace.tracing.suffix.memory import head_rows_that_fit
from ktrace.tracing.suffix.recording import Recorder, Recording

# Scores where they are computed: `(metrics, n)`, in the order of `METRICS`.
OnDevice = torch.Tensor


class Base(Enum):
    """Which run is changed, and whether there is one to take states from.

    Attributes:
        corrupted: clean states are put into it. They are one row of a case that serves all samples.
        clean: corrupted states are put into it: it is a row for each sample.
        clean_alone: edges are cut in it: no noise comes in, so that one row serves all samples.
    """

    corrupted = "corrupted"
    clean = "clean"
    clean_alone = "clean_alone"

    @classmethod
    def of(cls, mediator: Mediator) -> "Base":
        """Which run a mediator changes."""
        if mediator.cuts:
            return cls.clean_alone
        return cls.clean if mediator.noises else cls.corrupted

    def sources(self, n_samples: int) -> int:
        """Rows of a case's source."""
        return {Base.corrupted: 1, Base.clean: n_samples, Base.clean_alone: 0}[self]

    def rows(self, n_samples: int) -> int:
        """Rows of a case in the base."""
        return 1 if self is Base.clean_alone else n_samples


def recorded_rows(n_samples: int, base: Base) -> int:
    """Rows of a case in the recorded pass."""
    return base.sources(n_samples) + base.rows(n_samples)


class Runs:
    """Clean and corrupted runs of a group, recorded in one forward pass.

    The first rows are the source, the base rows follow. Corrupted rows, and base rows, are (case,
    sample), with the sample fastest; a run that serves all samples has one row for each case.

    Args:
        recorder: of the model.
        noise: what corrupts.
        group: cases of one shape.
        sites: whose outputs are kept.
        limits: how many rows' logits are taken together.
        kind: which of the two runs is the base. Of a clean run alone, every case has a baseline.
    """

    def __init__(
        self,
        recorder: Recorder,
        noise: Noise,
        group: Sequence[Case],
        sites: Sequence[str],
        limits: Limits,
        kind: Base = Base.corrupted,
    ) -> None:
        lm = recorder.lm
        self.lm = lm
        self.group = group
        self.n_cases = len(group)
        self.n_samples = noise.samples
        self.n_answer = len(group[0].answer_ids)
        self.n_positions = len(group[0].forced_ids)
        self.n_base = self.n_cases * kind.rows(self.n_samples)
        self._kind = kind
        self._n_sources = self.n_cases * kind.sources(self.n_samples)
        self._limits = limits
        self.outputs: dict[str, torch.Tensor] = {}
        edits: dict[str, Edit] = {lm.paths.embedding: self._add_noise(noise, group)}
        for layer in range(lm.n_layers):
            points = (lm.paths.point(site, layer) for site in sites)
            edits |= {point: keep(self.outputs, point) for point in points if point}
        self.recording: Recording = recorder.record(self._ids(group), edits, self.n_answer)
        logits = self.recording.logits
        clean = self._clean(logits)[:, 0]
        # Without a corrupted run, foils are those of the baselines.
        corrupted = (
            clean[:, None].expand(-1, self.n_samples, -1, -1)
            if kind is Base.clean_alone
            else self._corrupted(logits)
        )
        self.targets = make_targets(group, clean, corrupted, noise.foils)
        self._sites = frozenset(sites)

    @cached_property
    def foils(self) -> list[tuple[tuple[int, ...], ...]]:
        """Of each case."""
        return [tuple(map(tuple, of_case)) for of_case in self.targets.foils.tolist()]

    def serves(self, group: Sequence[Case], sites: Collection[str], base: Base) -> bool:
        """Whether these are the runs of a group, with what is needed of them."""
        return (
            base is self._kind
            and self._sites.issuperset(sites)
            and list(map(_unscored, group)) == list(map(_unscored, self.group))
            and all(
                case.baseline is None or case.baseline.foil_ids == foils
                for case, foils in zip(group, self.foils, strict=True)
            )
        )

    def _ids(self, group: Sequence[Case]) -> torch.Tensor:
        device = self.lm.device
        clean = torch.tensor([case.forced_ids for case in group], device=device)
        if self._kind is Base.clean_alone:
            # A pass has two rows at least; what is behind the base is not read.
            return clean if len(clean) > 1 else clean.repeat(2, 1)
        corrupted = torch.tensor([c.corrupted_forced_ids for c in group], device=device)
        is_clean_base = self._kind is Base.clean
        source, base = (corrupted, clean) if is_clean_base else (clean, corrupted)
        rows = [
            ids[:, None].expand(-1, n_rows // self.n_cases, -1).flatten(0, 1)
            for ids, n_rows in ((source, self._n_sources), (base, self.n_base))
        ]
        return torch.cat(rows)

    @property
    def base(self) -> slice:
        """The base rows among all rows."""
        return slice(self._n_sources, self._n_sources + self.n_base)

    def _base_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """The base among all rows, `(n_cases, n_samples, ...)`; a view."""
        return self._by_case(rows[self.base])

    def _source_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """The source among all rows, `(n_cases, n_samples or 1, ...)`; a view."""
        return self._by_case(rows[: self._n_sources])

    def _by_case(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.view(self.n_cases, -1, *rows.shape[1:])

    def _clean(self, rows: torch.Tensor) -> torch.Tensor:
        """The clean run among all rows, `(n_cases, n_samples or 1, ...)`; a view."""
        is_source = self._kind is Base.corrupted
        return self._source_rows(rows) if is_source else self._base_rows(rows)

    def _corrupted(self, rows: torch.Tensor) -> torch.Tensor:
        """The corrupted run among all rows, `(n_cases, n_samples, ...)`; a view."""
        is_base = self._kind is Base.corrupted
        return self._base_rows(rows) if is_base else self._source_rows(rows)

    def _add_noise(self, noise: Noise, group: Sequence[Case]) -> Edit:
        def edit(embeddings: torch.Tensor) -> torch.Tensor | None:
            if self._kind is Base.clean_alone:
                return None
            noised = embeddings.clone()
            own, corrupted = self._corrupted(embeddings), self._corrupted(noised)
            for number, case in enumerate(group):
                start, stop = case.span
                subject = noise.corrupt(case, own[number, 0, start:stop])
                corrupted[number, :, start:stop] = subject
            return noised

        return edit

    def recorded(self, site: str, layer: int) -> torch.Tensor:
        """Outputs of one of `sites` in all runs, `(n_rows, n_positions, d_model)`."""
        return self.outputs[self._point(site, layer)]

    def fill(
        self, puts: Sequence[Put], recorded: torch.Tensor, layer: int, into: torch.Tensor
    ) -> None:
        """Write what recorded runs have where it is put.

        Args:
            puts: which tokens, and from where.
            recorded: of all runs, `(n_rows, n_positions, features)`.
            layer: of which that is.
            into: `(n_base, n_tokens, features)`.
        """
        for put in puts:
            positions = put.positions.on(recorded.device)
            if put.from_source:
                values = self._source_rows(recorded).index_select(2, positions)
                values = values.expand(-1, self.n_samples, -1, -1).flatten(0, 1)
            else:
                values = recorded[self.base].index_select(1, positions)
            own = into
            if put.head is not None:
                features = features_of(put.head, self.lm.n_heads(layer), recorded.shape[-1])
                own, values = into[..., features], values[..., features]
            own.index_copy_(1, put.tokens.on(into.device), values.to(into.device))

    def _point(self, site: str, layer: int) -> str:
        point = self.lm.paths.point(site, layer)
        assert point is not None  # plans name what layers have
        return point

    def source_input(self, layer: int, position: int) -> torch.Tensor:
        """A block's input in the source at one position, for each base row, `(n_base, d_model)`."""
        found = self._source_rows(self.recording.calls[layer].states)[:, :, position]
        return found.expand(-1, self.n_samples, -1).reshape(self.n_base, -1)

    def base_input(self, layer: int, position: int) -> torch.Tensor:
        """A block's input in the base from one position on, `(n_base, tokens, d_model)`."""
        return self.recording.calls[layer].states[self.base, position:]

    def base_block_output(self, layer: int, position: int) -> torch.Tensor:
        """Likewise a block's output; of the last block, at positions that predict."""
        if layer < self.lm.n_layers - 1:
            return self.base_input(layer + 1, position)
        first = self.n_positions - self.n_answer
        return self.recording.final[self.base, position - first :]

    def clean_scores(self) -> OnDevice:
        """Of the clean run, against each sample's foil, `(n_cases x n_samples,)`."""
        clean = self._clean(self.recording.logits).expand(-1, self.n_samples, -1, -1)
        return _stacked(score(clean[None], self.targets))

    def corrupted_scores(self) -> OnDevice:
        """Of the corrupted run, `(n_cases x n_samples,)`."""
        return _stacked(score(self._corrupted(self.recording.logits)[None], self.targets))

    def base_scores(self) -> OnDevice:
        """Of the base, `(n_cases x n_samples,)`."""
        return self.corrupted_scores() if self._kind is Base.corrupted else self.clean_scores()

    def last_put_scores(self) -> OnDevice:
        """With the source's last block's output at the prompt's last position, `(n_base,)`."""
        logits = self._base_rows(self.recording.logits).clone()
        logits[:, :, 0] = self._source_rows(self.recording.logits)[:, :, 0]
        return _stacked(score(logits[None], self.targets))

    def scores(self, states: torch.Tensor) -> OnDevice:
        """From last-layer states, some at a time: logits are large.

        Args:
            states: `(n, n_base, n_answer, d_model)`.

        Returns:
            `(n x n_cases x n_samples,)` for each metric.
        """
        parts = []
        row_bytes = self.recording.logits.shape[-1] * self.recording.logits.element_size()
        n_rows = head_rows_that_fit(self.lm, row_bytes, self._limits)
        for some in torch.split(states, max(1, n_rows // (self.n_base * self.n_answer))):
            by_fact = self._logits(some.flatten(0, 2)).view(
                len(some), self.n_cases, self.n_base // self.n_cases, self.n_answer, -1
            )
            parts.append(_stacked(score(by_fact, self.targets)))
        return torch.cat(parts, dim=1)

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        """From outputs of the last block, `(rows, d_model)`; `(rows, vocabulary)`."""
        lm, in_tuples = self.lm, self.recording.in_tuples
        return logits_from(lm.model, lm.blocks, states, in_tuples=in_tuples, device=lm.device)


def _unscored(case: Case) -> Case:
    return replace(case, baseline=None)


def features_of(head: int, n_heads: int, n_features: int) -> slice:
    """Which features are one head's, of heads side by side."""
    width = n_features // n_heads
    return slice(head * width, (head + 1) * width)


def _stacked(scores: Mapping[str, torch.Tensor]) -> OnDevice:
    return torch.stack([scores[metric].flatten() for metric in METRICS])


def fetched(scores: Sequence[OnDevice]) -> list[Scores]:
    """Scores on the CPU, by one copy: an accelerator is waited for once."""
    # Widened there: not every device has float64.
    values = torch.cat(list(scores), dim=1).cpu().double().numpy()
    ends = np.cumsum([of.shape[1] for of in scores])
    return [dict(zip(METRICS, of, strict=True)) for of in np.split(values, ends[:-1], axis=1)]
