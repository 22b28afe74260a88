"""Corrupted runs and restorations: one pass over each group of facts serves both."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from ktrace.pipeline.records import (
    batch_of,
    corrupted_record,
    restored_record,
    uncorrupted_record,
)
from ktrace.pipeline.session import Session
from ktrace.pipeline.work import Lacking, work
from ktrace.store import PartWriter, RunFolders
from ktrace.terms import METRICS
from ktrace.tracing.answers import baselines, restorations
from ktrace.tracing.checks import require_numbers, require_scores
from ktrace.tracing.engine import Case
from ktrace.tracing.mediators import Mediator

_CORRUPTED = "corrupted"  # among the stores that work is claimed on; others are of mediators


def run_traced(
    session: Session,
    folders: RunFolders,
    cases: Sequence[Case],
    mediators: Sequence[Mediator],
) -> None:
    """Store corrupted runs, why the noise cannot corrupt others, and restorations.

    Args:
        session: of the run.
        folders: of its stores.
        cases: candidates; those whose corrupted runs are stored have a baseline.
        mediators: what is restored; nothing, where corrupted runs are all that is asked for.
    """
    unusable = [case for case in cases if case.index in session.noise.unusable]
    if unusable:
        _note_unusable(session, folders, unusable)
    cases = session.corrupted([c for c in cases if c.index not in session.noise.unusable])
    if not cases:
        return
    units = [[case.index for case in group] for group in session.tracer.grouped(cases)]
    prints, origin = session.assignment.prints, session.log.on_parts()
    with ExitStack() as stack:
        stack.enter_context(session.log.timed("restore" if mediators else "corrupted"))
        corrupted = stack.enter_context(folders.corrupted.writer(prints.corrupted, origin))
        restored = {
            m.key: stack.enter_context(
                folders.restored(m.key).writer(prints.restored(m.key), origin, ["together"])
            )
            for m in mediators
        }
        by_index = {case.index: case for case in cases}
        tracing = _Tracing(session, mediators, corrupted, restored)

        def compute(unit: Sequence[int], lacking: Lacking) -> None:
            tracing.add([by_index[index] for index in unit], lacking)

        named = f"{len(restored)} mediators" if len(restored) > 1 else "".join(restored)
        title = f"restoring {named}" if restored else "corrupted runs"
        work(title, units, {_CORRUPTED: corrupted, **restored}, compute, session.workers)


def _note_unusable(session: Session, folders: RunFolders, cases: Sequence[Case]) -> None:
    """Store why the noise cannot corrupt some cases."""
    noise, facts = session.noise, session.assignment.facts.facts
    by_index = {case.index: case for case in cases}
    prints, origin = session.assignment.prints, session.log.on_parts()
    with folders.corrupted.writer(prints.corrupted, origin) as writer:

        def note(unit: Sequence[int], lacking: Lacking) -> None:
            for index in unit:
                case, reason = by_index[index], noise.unusable[index]
                record = uncorrupted_record(facts[index].known_id, case, noise, reason)
                writer.add(record.row())

        units = [[index] for index in by_index]
        work("facts that cannot be corrupted", units, {_CORRUPTED: writer}, note, session.workers)


@dataclass(frozen=True)
class _Tracing:
    """Computes groups of facts, and adds what is found to the writers of their stores."""

    session: Session
    mediators: Sequence[Mediator]
    corrupted: PartWriter
    restored: Mapping[str, PartWriter]

    def add(self, group: Sequence[Case], lacking: Lacking) -> None:
        """What stores lack of a group, which is computed as a whole: other company, other bits."""
        batch = batch_of(self.restored, {key: lacking[key] for key in self.restored})
        chosen = [mediator for mediator in self.mediators if mediator.key in batch]
        if lacking[_CORRUPTED] or any(case.baseline is None for case in group):
            group = self._with_baselines(group, lacking[_CORRUPTED], chosen)
        if chosen:
            self._restore(group, lacking, chosen)

    def _with_baselines(
        self, group: Sequence[Case], lacking: Collection[int], then: Sequence[Mediator]
    ) -> list[Case]:
        lm, facts = self.session.lm, self.session.assignment.facts.facts
        bare = [replace(case, baseline=None) for case in group]
        found = {}
        for case, baseline in baselines(self.session.tracer.engine, bare, then):
            found[case.index] = baseline
            if case.index in lacking:
                fact = facts[case.index]
                require_numbers(lm, fact, "corrupted run", baseline.corrupted[METRICS[0]])
                record = corrupted_record(lm, fact.known_id, case, self.session.noise, baseline)
                self.corrupted.add(record.row())
        # What is stored stays what restorations are compared with.
        return [replace(case, baseline=case.baseline or found[case.index]) for case in group]

    def _restore(self, group: Sequence[Case], lacking: Lacking, chosen: Sequence[Mediator]) -> None:
        together = " ".join(mediator.key for mediator in chosen)
        for case, found in restorations(self.session.tracer.engine, group, chosen):
            fact = self.session.assignment.facts.facts[case.index]
            for mediator in (m for m in chosen if case.index in lacking[m.key]):
                scores = found[mediator.key]
                require_scores(self.session.lm, fact, mediator, scores)
                record = restored_record(fact.known_id, case, mediator, together, scores)
                self.restored[mediator.key].add(record.row())
