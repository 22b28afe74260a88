"""The stages that need a model: clean, corrupted and restored runs of every fact not yet stored.

The model is loaded, and torch with it, only where something is left to run.
"""

import logging
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from ktrace.config import RunConfig, Stage
from ktrace.errors import KtraceError
from ktrace.pipeline.activations import StateStore, run_corrupted_states, state_stores
from ktrace.pipeline.assignment import Assignment, assign
from ktrace.pipeline.bars import waiting
from ktrace.pipeline.records import (
    baseline_of,
    case_of,
    clean_record,
)
from ktrace.pipeline.runlog import RunLog
from ktrace.pipeline.shards import Shard, own_facts
from ktrace.pipeline.shown_facts import require_shown
from ktrace.pipeline.work import Lacking, work
from ktrace.store import (
    CleanRecord,
    CorruptedRecord,
    RunFolders,
    is_complete,
)
from ktrace.tracing.mediators import Mediator

if TYPE_CHECKING:
    from ktrace.pipeline.session import Session
    from ktrace.tracing.engine import Case

log = logging.getLogger(__name__)


class Ended(NamedTuple):
    """What the stages came to.

    Attributes:
        counts: facts by state: `facts`, `candidates`, `traced`, as far as the run got.
        is_whole: whether other shards have nothing left to do.
    """

    counts: dict[str, int]
    is_whole: bool


def run_stages(
    config: RunConfig, folders: RunFolders, mediators: Sequence[Mediator], run_log: RunLog
) -> Ended:
    """Run the stages up to `config.stage`, doing only what is not yet stored.

    Raises:
        KtraceError: something that a person can mend.
    """
    assignment, shard = assign(config, mediators), Shard.parse(config.shard)
    session = cache(lambda: _session(assignment, run_log))
    counts = _run_stages(assignment, folders, shard, session)
    keys = [mediator.key for mediator in mediators]
    is_whole = not shard.is_part or is_complete(folders, keys, assignment.limit)
    return Ended(counts, is_whole)


def _session(assignment: Assignment, run_log: RunLog) -> "Session":
    with waiting("starting torch"):
        from ktrace.pipeline.session import Session

    return Session(assignment, run_log)


def _run_stages(
    assignment: Assignment, folders: RunFolders, shard: Shard, session: Callable[[], "Session"]
) -> dict[str, int]:
    config, prints = assignment.config, assignment.prints
    # Every store is compared with the settings before the first of them is written to.
    own = _own_facts(assignment, folders, shard, session)
    clean_done = folders.clean.done(prints.clean, own)
    corrupted_done = folders.corrupted.done(prints.corrupted, own)
    restored_done = [
        folders.restored(m.key).done(prints.restored(m.key), own) for m in assignment.mediators
    ]
    states = state_stores(assignment, folders)
    facts = [index for index in range(len(assignment.facts)) if index in own]
    known_ids = {fact.known_id for fact in assignment.facts.facts}
    require_shown(config, folders, known_ids)
    _complete_clean(session, folders, facts, clean_done, states.get("clean"))
    require_shown(config, folders, known_ids)
    cases, left_out = _candidates(folders, own)
    counts = {"facts": len(facts), "candidates": len(cases)}
    if not cases and not shard.is_part:
        raise _no_candidates(assignment, folders, len(facts), left_out)
    if config.stage in (Stage.filter, Stage.clean):
        return counts | {f"left out: {reason}": count for reason, count in left_out.items()}
    restored = () if config.stage is Stage.corrupted else assignment.mediators
    cases = _with_baselines(folders, cases)
    if not all(
        case.index in corrupted_done
        and (case.baseline is None or not restored or all(case.index in d for d in restored_done))
        for case in cases
    ):
        from ktrace.pipeline.trace import run_traced  # torch, when it is needed

        run_traced(session(), folders, cases, restored)
        cases = _with_baselines(folders, cases)
    traced = [case for case in cases if case.baseline is not None]
    if not traced and not shard.is_part:
        raise _no_corrupted(config, folders, len(cases), own)
    counts["traced"] = len(traced)
    into = states.get("corrupted")
    if into is not None and (lacking := [c for c in traced if c.index not in into.done]):
        run_corrupted_states(session(), into, lacking)
    return counts


def _complete_clean(
    session: Callable[[], "Session"],
    folders: RunFolders,
    facts: Sequence[int],
    done: Container[int],
    states: StateStore | None,
) -> None:
    """Run what the stores of clean runs and of their states lack."""
    lacking = [index for index in facts if index not in done]
    if states is not None:
        unkept = [index for index in facts if index in done and index not in states.done]
        if unkept:
            log.info(
                "%s lacks %d of %d facts whose clean runs are stored: they run again for their "
                "states (activations.clean=[] stores none)",
                states.store.folder,
                len(unkept),
                len(facts),
            )
        lacking = sorted([*lacking, *unkept])
    if lacking:
        run_clean(session(), folders, lacking, states)


def _no_candidates(
    assignment: Assignment, folders: RunFolders, n_facts: int, left_out: Mapping[str, int]
) -> KtraceError:
    from ktrace.analysis.candidates import write_candidates  # pandas, when it is needed

    config = assignment.config
    reasons = "; ".join(f"{count} × {reason}" for reason, count in left_out.items())
    return KtraceError(
        f"{assignment.facts.origin}: none of its first {n_facts} facts is "
        f"a candidate for model.name={config.model.name} ({reasons}); nothing to trace; "
        f"{write_candidates(folders, config.dataset.limit)} says what was predicted"
    )


def _no_corrupted(
    config: RunConfig, folders: RunFolders, n_candidates: int, own: Container[int]
) -> KtraceError:
    stored = CorruptedRecord.read(folders.corrupted)
    unusable = Counter(record.left_out for record in stored if record.index in own)
    told = "; ".join(f"{count} × {reason}" for reason, count in unusable.items())
    return KtraceError(
        f"noise.kind={config.noise.kind.value} can corrupt none of the {n_candidates} "
        f"candidates ({told}); analysis/summary.json of another noise shows them"
    )


def _own_facts(
    assignment: Assignment, folders: RunFolders, shard: Shard, session: Callable[[], "Session"]
) -> Container[int]:
    """Indices of the facts that this run works on."""
    if not shard.is_part:
        return range(assignment.limit)
    # Other settings are refused before a model is loaded for the split.
    folders.clean.require(assignment.prints.clean)
    folders.corrupted.require(assignment.prints.corrupted)
    if _all_stored(assignment, folders):
        return range(assignment.limit)  # and no model is needed to tell
    from ktrace.tracing.groups import fact_cost, unit_facts

    encoded = session().encoded
    costs = [fact_cost(len(e.prompt.input_ids), e.span.start) for e in encoded[: assignment.limit]]
    # Not by groups: another shard may run on another device, and group otherwise.
    return own_facts(shard, unit_facts([fact.shape for fact in encoded]), costs)


def _all_stored(assignment: Assignment, folders: RunFolders) -> bool:
    """Whether neither this shard nor another one has anything left to do."""
    states = state_stores(assignment, folders)
    keys = [mediator.key for mediator in assignment.mediators]
    if not is_complete(folders, keys, assignment.limit):
        return False
    facts = range(assignment.limit)
    traced = (r.index for r in CorruptedRecord.read(folders.corrupted) if not r.left_out)
    wanted = {"clean": [*facts], "corrupted": [index for index in traced if index in facts]}
    return all(into.done.issuperset(wanted[kind]) for kind, into in states.items())


def _candidates(folders: RunFolders, own: Container[int]) -> tuple[list["Case"], dict[str, int]]:
    """Stored candidates, and the counts of the facts that are none by reason."""
    stored = [record for record in CleanRecord.read(folders.clean) if record.index in own]
    left_out = Counter(record.left_out for record in stored if not record.is_candidate)
    return [case_of(record) for record in stored if record.is_candidate], dict(left_out)


def _with_baselines(folders: RunFolders, cases: Sequence["Case"]) -> list["Case"]:
    """Candidates with the stored scores of those that the noise can corrupt."""
    baselines = {
        record.index: baseline_of(record)
        for record in CorruptedRecord.read(folders.corrupted)
        if not record.left_out
    }
    return [replace(case, baseline=baselines.get(case.index)) for case in cases]


def run_clean(
    session: "Session", folders: RunFolders, lacking: Sequence[int], states: StateStore | None
) -> None:
    """Store the clean runs of some facts, and their states, as far as either store lacks them."""
    from ktrace.tracing.candidates import clean_fact

    facts, lm, run_log = session.assignment.facts.facts, session.lm, session.log
    prints, origin = session.assignment.prints, run_log.on_parts()
    with ExitStack() as stack:
        stack.enter_context(run_log.timed("clean"))
        writers = {"clean": stack.enter_context(folders.clean.writer(prints.clean, origin))}
        if states is not None:
            writers["states"] = stack.enter_context(states.writer(origin))

        def compute(unit: Sequence[int], lacking: Lacking) -> None:
            for index in unit:
                fact, encoded = facts[index], session.encoded[index]
                kept = states.kept_of(lm, encoded) if states and lacking["states"] else None
                run, left_out = clean_fact(lm, fact, encoded, kept)
                if lacking["clean"]:
                    record = clean_record(lm, index, fact, encoded, (run, left_out))
                    writers["clean"].add(record.row())
                if states and lacking["states"]:
                    found = run.states if run and not left_out else None
                    writers["states"].add(states.record(lm, index, fact, encoded, found).row())

        units = [[index] for index in lacking]
        work("clean runs", units, writers, compute, session.workers)
