"""Facts done unit by unit, beside other processes that may be at the same ones."""

from collections.abc import Callable, Collection, Mapping, Sequence

from ktrace.pipeline.console import progress
from ktrace.pipeline.signals import raise_if_signalled
from ktrace.store import PartWriter, work_through

# By store: the facts that each lacks.
Lacking = Mapping[str, frozenset[int]]


def work(
    title: str,
    units: Sequence[Sequence[int]],
    writers: Mapping[str, PartWriter],
    compute: Callable[[Sequence[int], Lacking], None],
) -> None:
    """Do every unit of facts, beside other processes that may be at the same ones.

    Args:
        title: of the progress bar.
        units: indices of facts that are worked on together.
        writers: by store; a unit is claimed on all of them.
        compute: takes a unit, and what each store lacks of it, and adds that to the writers. Asked
            only where one lacks something.
    """

    def attempt(unit: Sequence[int]) -> bool:
        raise_if_signalled()
        lacking = _claim(writers, unit)
        if lacking is None:
            return False
        if any(lacking.values()):
            compute(unit, lacking)
        advance(len(unit))
        return True

    def let_go() -> None:
        for writer in writers.values():
            writer.flush()

    with progress(title, sum(map(len, units))) as advance:
        work_through(units, attempt, let_go)


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
