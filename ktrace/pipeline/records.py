"""From what a model gave to the records of the stores, and back to what an engine needs."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ktrace.facts import Fact, Span, role_of_positions
from ktrace.store import CleanRecord, CorruptedRecord, PartWriter, RestoredRecord
from ktrace.terms import METRICS

if TYPE_CHECKING:
    from ktrace.lm.model import LanguageModel
    from ktrace.tracing.clean import CleanRun
    from ktrace.tracing.encoded import EncodedFact
    from ktrace.tracing.engine import Baseline, Case, Scores
    from ktrace.tracing.measure import MeasuredNoise
    from ktrace.tracing.mediators import Mediator


def clean_record(
    lm: "LanguageModel",
    index: int,
    fact: Fact,
    encoded: "EncodedFact",
    found: tuple["CleanRun | None", str],
) -> CleanRecord:
    """The clean run of a fact, and whether it is a candidate.

    Args:
        lm: the model.
        index: the fact's row in its dataset.
        fact: which.
        encoded: the same in tokens.
        found: its clean run, if it has one, and why it is no candidate (`clean_fact`).
    """
    from ktrace.lm.tokens import decoded

    prompt, (run, left_out) = encoded.prompt, found
    roles = role_of_positions(encoded.span, len(prompt.input_ids))
    case = encoded.case(index, run.predicted_ids if run else ())
    return CleanRecord(
        index=index,
        known_id=fact.known_id,
        prompt=fact.prompt,
        subject=fact.subject,
        attribute=" | ".join(fact.answers),
        relation_id=fact.relation_id,
        left_out=left_out,
        is_candidate=not left_out,
        input_ids=np.array(prompt.input_ids, dtype=np.int64),
        tokens=prompt.tokens,
        offsets=np.array(prompt.offsets, dtype=np.int64),
        roles=[role or "" for role in roles],
        span=encoded.span,
        answer_ids=np.array(case.answer_ids, dtype=np.int64),
        also_ids=np.array([token for ids in case.also for token in ids], dtype=np.int64),
        also_lengths=np.array([len(ids) for ids in case.also], dtype=np.int64),
        predicted_ids=np.array(run.predicted_ids if run else (), dtype=np.int64),
        predicted=decoded(lm.tokenizer, run.predicted_ids) if run else "",
        predicted_probability=run.predicted_probability if run else float("nan"),
        probability=run.probability if run else float("nan"),
    )


def corrupted_record(
    lm: "LanguageModel", known_id: int, case: "Case", noise: "MeasuredNoise", baseline: "Baseline"
) -> CorruptedRecord:
    """What the corrupted run of a fact gave."""
    from ktrace.lm.tokens import decoded

    return CorruptedRecord(
        index=case.index,
        known_id=known_id,
        left_out="",
        sigma=noise.sigma,
        noise_level=noise.level,
        foil_ids=np.array(baseline.foil_ids, dtype=np.int64),
        foil=[decoded(lm.tokenizer, ids) for ids in baseline.foil_ids],
        clean=baseline.clean,
        corrupted=baseline.corrupted,
    )


def uncorrupted_record(
    known_id: int, case: "Case", noise: "MeasuredNoise", reason: str
) -> CorruptedRecord:
    """Of a fact that the noise cannot corrupt: the reason in place of scores."""
    nothing = dict.fromkeys(METRICS, np.empty(0))
    return CorruptedRecord(
        index=case.index,
        known_id=known_id,
        left_out=reason,
        sigma=noise.sigma,
        noise_level=noise.level,
        foil_ids=np.empty((0, 0), dtype=np.int64),
        foil=(),
        clean=nothing,
        corrupted=nothing,
    )


def restored_record(
    known_id: int, case: "Case", mediator: "Mediator", together: str, scores: "Scores"
) -> RestoredRecord:
    """What a mediator gave of a fact.

    Args:
        known_id: of the fact.
        case: the fact.
        mediator: which.
        together: keys of the mediators that shared its batches.
        scores: as `Engine.restored` gives them.
    """
    places = mediator.places(case.span, len(case.input_ids))
    with_heads = {
        metric: values if mediator.has_heads else values[:, :, None]
        for metric, values in scores.items()
    }
    return RestoredRecord(
        case.index, known_id, together, np.array(places, dtype=np.int64), with_heads
    )


def case_of(record: CleanRecord) -> "Case":
    """A stored candidate, as an engine needs it."""
    from ktrace.tracing.engine import Case

    ids, answer = (tuple(ids.tolist()) for ids in (record.input_ids, record.answer_ids))
    ends = np.cumsum(record.also_lengths)[:-1]
    also = np.split(record.also_ids, ends) if len(record.also_lengths) else []
    others = tuple(tuple(other.tolist()) for other in also)
    return Case(record.index, ids, Span(*record.span), answer, also=others)


def baseline_of(record: CorruptedRecord) -> "Baseline":
    """A stored corrupted run, as an engine needs it."""
    from ktrace.tracing.engine import Baseline

    return Baseline(
        clean={metric: scores.astype(np.float64) for metric, scores in record.clean.items()},
        corrupted={m: scores.astype(np.float64) for m, scores in record.corrupted.items()},
        foil_ids=tuple(map(tuple, record.foil_ids.tolist())),
    )


def batch_of(writers: Mapping[str, PartWriter], lacking: Mapping[str, Collection[int]]) -> set[str]:
    """Mediators to run on some facts: those that lack one, and those that shared batches with them.

    A run that was killed between writing one mediator and the next has stored some of those that
    ran together. The others get their bits again only in the same company.

    Args:
        writers: of restored stores, by mediator key, opened with `keep=["together"]`.
        lacking: the facts that each lacks (`ktrace.pipeline.stages.work`).

    Returns:
        Keys of mediators.
    """
    wanted = {key for key, facts in lacking.items() if facts}
    facts = {index for some in lacking.values() for index in some}
    company = {
        key
        for key, writer in writers.items()
        for index in facts & writer.stored.keys()
        if wanted.intersection(writer.stored[index]["together"].split())
    }
    return wanted | company
