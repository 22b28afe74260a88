"""`ktrace.trace_many`: many facts at once, as one frame and without a store."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa

from ktrace.analysis.effects import effect_tables, frame_of
from ktrace.api.asked import config_of, required_model
from ktrace.api.facts import Facts, facts_in_memory, path_of
from ktrace.config import RunConfig
from ktrace.config.compose import choice
from ktrace.errors import KtraceError
from ktrace.facts import FactSet, role_of_positions
from ktrace.facts.dataset import facts_of, noise_facts_of, require_fit
from ktrace.lm.model import LanguageModel
from ktrace.lm.use import in_use
from ktrace.store import RestoredRecord
from ktrace.store.records import Scores
from ktrace.terms import METRICS, panel_order
from ktrace.tracing.answers import baselines, restorations
from ktrace.tracing.candidates import clean_fact
from ktrace.tracing.checks import (
    require_mediators,
    require_numbers,
    require_places,
    require_scores,
    say_wide_windows,
)
from ktrace.tracing.encoded import EncodedFact
from ktrace.tracing.engine import Baseline, Case, Engine, Use
from ktrace.tracing.engines import make_engine
from ktrace.tracing.groups import group_facts
from ktrace.tracing.measure import measured_noise
from ktrace.tracing.mediators import Mediator, make_mediators
from ktrace.tracing.pairs import encoded_for

log = logging.getLogger(__name__)

LEFT_OUT = "left_out"  # in the frame's attributes


def trace_many(
    model: LanguageModel,
    facts: Facts,
    mediator: str | Sequence[str] = "hidden",
    *,
    window: int | Sequence[int] | None = None,
    direction: str | Sequence[str] = "denoise",
    positions: str | Sequence[str] | None = None,
    query: str = "last",
    whole_answer: bool = False,
    separator: str = "auto",
    chat: bool = False,
    bos: str = "keep",
    engine: str = "suffix",
    noise_facts: str | None = None,
    noise: str | None = None,
    **noise_keys: object,
) -> pd.DataFrame:
    """Trace many facts: every layer and position of each, without a store.

    The numbers are those that a run over these facts stores: facts of one length share batches, and
    the noise is measured on the subjects of all of them. A run (`python -m ktrace`) goes on after
    an interruption, and takes datasets whose scores do not fit into memory.

    Args:
        model: what `ktrace.load_model` gave.
        facts: a file (`.json`, `.jsonl`, `.csv`, `.parquet`), a DataFrame with a row for each fact,
            or an iterable of mappings such as `{"known_id": 7, "prompt": "The Louvre is in",
            "subject": "The Louvre", "attribute": "Paris"}` (docs/datasets.md has other fields). In
            memory, facts without a `known_id` are numbered from 0.
        mediator: one, several in a list, or `all` for the five that were published.
        window: as in `ktrace.trace`; several in a list.
        direction: likewise.
        positions: as in `ktrace.trace`, like everything below.
        query: of `knockout`.
        whole_answer: whether all tokens of answers are scored.
        separator: what stands between prompt and answer.
        chat: whether prompts are the user's turn in the tokenizer's chat template.
        bos: `strip` leaves one of two BOS tokens.
        engine: `suffix` or `reference`.
        noise_facts: a file of facts to measure the noise on, in place of these.
        noise: its kind; `gaussian` by default.
        **noise_keys: other keys `noise.*` of the config.

    Returns:
        The frame of `ktrace.load_effects`, for `ktrace.average`. Facts that the model does not
        answer, and those that the noise cannot corrupt, have no rows: a logged line counts them,
        and `frame.attrs["left_out"]` has their `known_id`, a list for each reason.

    Raises:
        KtraceError: an argument is not allowed, something is no fact, or none can be traced.

    Examples:
        >>> import ktrace
        >>> model = ktrace.load_model("tiny")
        >>> facts = [
        ...     {"prompt": f"{what} was invented by", "subject": what, "attribute": who}
        ...     for what, who in [("The World Wide Web", "Tim Berners-Lee"), ("The wheel", "me")]
        ... ]
        >>> frame = ktrace.trace_many(model, facts, noise="mean")
        >>> frame.attrs["left_out"]
        {'another answer is predicted': [1]}
        >>> ktrace.average(frame, by=["role"]).columns.tolist()
        ['role', 'aie', 'ci_low', 'ci_high', 'n_facts', 'n_clusters']
    """
    lm = required_model(model)
    path = path_of(facts)
    given = None if path is not None else facts_in_memory(facts)
    several = None if isinstance(mediator, str) else list(mediator)
    chosen = ["dataset=file", choice("mediator", "all" if several is not None else mediator)]
    options = {"window": window, "direction": direction, "positions": positions, "query": query}
    options |= {"whole_answer": whole_answer, "separator": separator, "chat": chat, "bos": bos}
    options |= {"engine": engine, "noise_facts": noise_facts}
    options["names"] = several
    # A file's name need not name a folder.
    dataset = {"path": "in memory" if path is None else path, "name": "facts"}
    config = config_of(trace_many, lm, chosen, options, dataset, {"noise": noise, **noise_keys})
    with in_use(lm.model):
        return _traced(lm, config, facts_of(config.dataset) if given is None else given)


def _traced(lm: LanguageModel, config: RunConfig, facts: FactSet) -> pd.DataFrame:
    mediators = make_mediators(config.mediator)
    require_mediators(lm, mediators)
    say_wide_windows(lm, mediators, key="window")
    noise_facts = noise_facts_of(config.dataset, config.noise.kind)
    for some in (facts, *([] if noise_facts is None else [noise_facts])):
        require_fit(some, config.noise, config.metric)
    encoded = encoded_for(config.noise.kind, lm, facts.facts, config.dataset)
    traceable = [(one.span, len(one.prompt.input_ids)) for one in encoded if one.shape]
    require_places(traceable, mediators)
    left_out: dict[str, list[int]] = {}
    cases = dict(_candidates(lm, facts, encoded, left_out))
    measured = measured_noise(lm, config.noise, facts, encoded, config.dataset, noise_facts)
    for index, reason in measured.unusable.items():
        if cases.pop(index, None) is not None:
            left_out.setdefault(reason, []).append(facts.facts[index].known_id)
    _tell_left_out(facts, len(cases), left_out)
    shapes = [one.shape for one in encoded]
    use = Use(mediators, [shape for shape in shapes if shape is not None])
    run = _Run(lm, mediators, make_engine(config.engine, lm, measured.noise, use), facts, encoded)
    for group in group_facts(shapes, run.engine.cases_together):
        run.trace([cases[index] for index in group if index in cases])
    frame = frame_of(run.tables())
    frame.attrs[LEFT_OUT] = left_out
    return frame


def _candidates(
    lm: LanguageModel,
    facts: FactSet,
    encoded: Sequence[EncodedFact],
    left_out: dict[str, list[int]],
) -> Iterator[tuple[int, Case]]:
    """Facts that the model answers; others are noted by why they are none."""
    for index, (fact, own) in enumerate(zip(facts.facts, encoded, strict=True)):
        run, reason = clean_fact(lm, fact, own)
        if run is None or reason:
            left_out.setdefault(reason, []).append(fact.known_id)
        else:
            yield index, own.case(index, run.predicted_ids)


def _tell_left_out(facts: FactSet, n_traced: int, left_out: Mapping[str, Sequence[int]]) -> None:
    """Log what is not traced; where that is everything, there is no frame.

    Raises:
        KtraceError: it is.
    """
    if not left_out:
        return
    told = "; ".join(
        f"{len(ids)} × {reason} (first known_id={ids[0]})" for reason, ids in left_out.items()
    )
    if not n_traced:
        raise KtraceError(f"{facts.origin}: none of its {len(facts)} facts can be traced: {told}")
    log.warning(
        "%s: %d of %d facts are traced; left out: %s", facts.origin, n_traced, len(facts), told
    )


@dataclass(frozen=True)
class _Told:
    """What the frame says of a fact beside its cells; see `CleanRecord` and `CorruptedRecord`."""

    known_id: int
    prompt: str
    subject: str
    relation_id: str
    tokens: Sequence[str]
    roles: Sequence[str]
    clean: Scores
    corrupted: Scores


class _Run:
    """Traces groups of facts, and keeps what is found for the frame.

    Attributes:
        model: its name.
        engine: what computes.
        clean: by index, what is said of each traced fact.
        corrupted: the same.
        restored: by mediator, by index.
    """

    def __init__(
        self,
        lm: LanguageModel,
        mediators: Sequence[Mediator],
        engine: Engine,
        facts: FactSet,
        encoded: Sequence[EncodedFact],
    ) -> None:
        self.model, self.engine = lm.name, engine
        self._lm, self._mediators, self._facts, self._encoded = lm, mediators, facts.facts, encoded
        self.clean: dict[int, _Told] = {}
        keys = sorted((mediator.key for mediator in mediators), key=panel_order)
        self.restored: dict[str, dict[int, RestoredRecord]] = {key: {} for key in keys}

    @property
    def corrupted(self) -> Mapping[int, _Told]:
        return self.clean

    def trace(self, group: Sequence[Case]) -> None:
        """Add what becomes of some facts of one shape."""
        found = dict(self._baselines(group))
        cases = [replace(case, baseline=found[case.index]) for case in group]
        for case, scores in restorations(self.engine, cases, self._mediators):
            for mediator in self._mediators:
                require_scores(self._lm, self._facts[case.index], mediator, scores[mediator.key])
                self.restored[mediator.key][case.index] = self._record(
                    case, mediator, scores[mediator.key]
                )

    def tables(self) -> Iterator[pa.Table]:
        """Rows as in `ktrace.load_effects`, facts in their order."""
        for key, records in self.restored.items():
            yield from effect_tables(self, key, [records[index] for index in sorted(records)])

    def _baselines(self, group: Sequence[Case]) -> Iterator[tuple[int, Baseline]]:
        for case, baseline in baselines(self.engine, group, self._mediators):
            fact, own = self._facts[case.index], self._encoded[case.index]
            require_numbers(self._lm, fact, "corrupted run", baseline.corrupted[METRICS[0]])
            roles = role_of_positions(own.span, len(own.prompt.input_ids))
            self.clean[case.index] = _Told(
                fact.known_id,
                fact.prompt,
                fact.subject,
                fact.relation_id,
                own.prompt.tokens,
                [role or "" for role in roles],
                baseline.clean,
                baseline.corrupted,
            )
            yield case.index, baseline

    def _record(
        self, case: Case, mediator: Mediator, scores: Mapping[str, np.ndarray]
    ) -> RestoredRecord:
        places = np.array(mediator.places(case.span, len(case.input_ids)), dtype=np.int64)
        single = {
            metric: (values if mediator.has_heads else values[:, :, None]).astype(np.float32)
            for metric, values in scores.items()
        }
        known_id = self._facts[case.index].known_id
        return RestoredRecord(case.index, known_id, "", places, single)
