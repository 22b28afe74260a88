"""Several right answers of a fact: what engines give of each, and their sum.

Right answers exclude each other, as none begins another (`distinct`): so their probabilities add
up. Answers that part in their last token alone share a run, which the engines score by itself; each
other one is a run of its own, with the same noise. Only the probability and its logarithm are of
all answers; the other metrics are of `Case.answer_ids`, the one that is predicted (docs/datasets.md
says why).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np

from ktrace.tracing.engine import Baseline, Case, Engine, Scores, Shape
from ktrace.tracing.mediators import Mediator

T = TypeVar("T")


def distinct(answers: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Each answer once, without those that another begins: who says these says that one, too."""
    once = list(dict.fromkeys(answers))
    return [ids for ids in once if not any(o == ids[: len(o)] for o in once if len(o) < len(ids))]


def branches(answers: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Answers that share a run, as they part in their last token alone; by run."""
    runs: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for ids in answers:
        runs.setdefault(ids[:-1], []).append(ids)
    return list(runs.values())


def baselines(
    engine: Engine, group: Sequence[Case], then: Sequence[Mediator] = ()
) -> Iterator[tuple[Case, Baseline]]:
    """As `Engine.baseline`, of all right answers; of cases that have no baseline yet."""
    others: dict[int, list[Baseline]] = {}
    for case, baseline in _run(engine.baseline, _other_runs(group)):
        others.setdefault(case.index, []).append(baseline)
    for case, own in _run(partial(engine.baseline, then=then), group):
        more = others.get(case.index, [])
        clean = _summed(own.clean, [baseline.clean for baseline in more])
        corrupted = _summed(own.corrupted, [baseline.corrupted for baseline in more])
        yield case, replace(own, clean=clean, corrupted=corrupted)


def restorations(
    engine: Engine, group: Sequence[Case], mediators: Sequence[Mediator]
) -> Iterator[tuple[Case, Mapping[str, Scores]]]:
    """As `Engine.restored`, of all right answers."""

    def run(cases: Sequence[Case]) -> Iterator[tuple[Case, Mapping[str, Scores]]]:
        return engine.restored(cases, mediators)

    others: dict[int, list[Mapping[str, Scores]]] = {}
    for case, scores in _run(run, _other_runs(group)):
        others.setdefault(case.index, []).append(scores)
    whole = {case.index: case.baseline for case in group}
    for case, own in _run(run, _of_own_answer(engine, group)):
        if case.index not in others:
            yield case, own
            continue
        summed = {
            key: _summed(scores, [other[key] for other in others[case.index]])
            for key, scores in own.items()
        }
        baseline = whole[case.index]
        if baseline is not None:  # what a mediator does not change keeps the very scores
            for mediator in mediators:
                places = np.array(mediator.places(case.span, len(case.input_ids)))
                before = (places < case.span.start) & (not mediator.cuts)
                for metric, values in summed[mediator.key].items():
                    unchanged = baseline.base(mediator)[metric]
                    unchanged = unchanged.reshape(-1, *[1] * (values.ndim - 1))
                    kept = np.where(before & ~np.isnan(values), unchanged, values)
                    summed[mediator.key][metric] = kept
        yield case, summed


def _runs_of(case: Case) -> list[list[tuple[int, ...]]]:
    return branches((case.answer_ids, *case.also))


def _other_runs(group: Sequence[Case]) -> list[Case]:
    """A case for each answer that needs a run of its own beside the case's own answer."""
    return [
        replace(case, answer_ids=answers[0], also=tuple(answers[1:]), baseline=None)
        for case in group
        for answers in _runs_of(case)[1:]
    ]


def _of_own_answer(engine: Engine, group: Sequence[Case]) -> list[Case]:
    """Cases whose baseline is of their first run alone, against the foils that are stored."""
    several = [replace(case, baseline=None) for case in group if len(_runs_of(case)) > 1]
    own = {case.index: baseline for case, baseline in _run(engine.baseline, several)}
    found = []
    for case in group:
        baseline = own.get(case.index, case.baseline)
        if baseline is not None and case.baseline is not None:
            baseline = replace(baseline, foil_ids=case.baseline.foil_ids)
        found.append(replace(case, baseline=baseline))
    return found


def _run(work: Callable[[Sequence[Case]], Iterator[T]], cases: Sequence[Case]) -> Iterator[T]:
    """Cases of one shape together; within a group, shapes differ by their answers alone."""
    by_shape: dict[Shape, list[Case]] = {}
    for case in cases:
        by_shape.setdefault(case.shape, []).append(case)
    for part in by_shape.values():
        yield from work(part)


def _summed(own: Scores, others: Sequence[Scores]) -> Scores:
    """Of one run, with the probabilities of the others added."""
    if not others:
        return own
    every = [own, *others]
    log_probability = np.logaddexp.reduce([scores["log_probability"] for scores in every])
    return {**own, "probability": np.exp(log_probability), "log_probability": log_probability}
