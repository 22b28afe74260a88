"""Facts done unit by unit, by one process or several, beside other runs that may be at the same."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from ktrace.pipeline.bars import progress
from ktrace.pipeline.crew import crew
from ktrace.pipeline.signals import raise_if_signalled
from ktrace.store import Owner, PartWriter, work_through

if TYPE_CHECKING:
    from ktrace.pipeline.workers import Workers

# By store: the facts that each lacks.
Lacking = Mapping[str, frozenset[int]]


def work(
    title: str,
    units: Sequence[Sequence[int]],
    writers: Mapping[str, PartWriter],
    compute: Callable[[Sequence[int], Lacking], None],
    workers: "Workers",
) -> None:
    """Do every unit of facts, beside other runs that may be at the same ones.

    Args:
        title: of the progress bar.
        units: indices of facts that are worked on together.
        writers: by store; a unit is claimed on all of them. Nothing is in their hands yet.
        compute: takes a unit, and what each store lacks of it, and adds that to the writers. Asked
            only where one lacks something.
        workers: who computes.
    """
    left = dict(enumerate(units))

    def attempt(number: int) -> bool:
        raise_if_signalled()
        lacking = _claim(writers, units[number])
        if lacking is None:
            return False
        if any(lacking.values()):
            compute(units[number], lacking)
        return True

    def share(tell: Callable[[int], None]) -> None:
        """What a worker does: every unit that is nobody's when it comes by."""
        with ExitStack() as stack:
            for writer in writers.values():  # copies of the parent's, which writes nothing by them
                stack.push(writer)
            for number in range(len(units)):
                if attempt(number):
                    tell(number)

    def let_go() -> None:
        for writer in writers.values():
            writer.flush()

    def note(number: int) -> bool:
        advance(len(left.pop(number, ())))
        return True

    count = min(workers.count, len(units))
    with (
        workers.as_threaded(),
        # Before the bar, which has a thread that holds locks.
        crew(count if count > 1 else 0, share) as told,
        progress(title, sum(map(len, units))) as advance,
    ):
        for number in told:
            note(number)
        # What is left is in the hands of other runs, which are waited for; without workers it is
        # everything.
        holder = partial(_holder, writers, units)
        work_through(list(left), lambda number: attempt(number) and note(number), let_go, holder)


def _holder(
    writers: Mapping[str, PartWriter], units: Sequence[Collection[int]], number: int
) -> Owner | None:
    """Who else is at a unit."""
    told = (writer.holder(units[number]) for writer in writers.values())
    return next((owner for owner in told if owner is not None), None)


def _claim(writers: Mapping[str, PartWriter], indices: Collection[int]) -> Lacking | None:
    """`PartWriter.claim` on several stores: the lacking facts of each, or None and no claim."""
    lacking: dict[str, frozenset[int]] = {}
    for key, writer in writers.items():
        found = writer.claim(indices)
        if found is None:
            for claimed, facts in lacking.items():
                writers[claimed].unclaim(facts)
            return None
        lacking[key] = found
    return lacking
