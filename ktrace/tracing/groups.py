"""Which facts share a batch. A matter of the dataset alone, so that a fact always meets the same
company, and with it the same bits: however often a run was interrupted and on whichever shard.
"""

from collections.abc import Callable, Sequence

from ktrace.tracing.engine import Case, Shape


def group_facts(
    shapes: Sequence[Shape | None], together: Callable[[Shape], int]
) -> list[list[int]]:
    """Cut a dataset into groups of equal shape, in its order.

    Args:
        shapes: of every fact of the dataset, whether it is traced or not; None for one that never
            is, because it cannot be encoded.
        together: most facts of a shape in one group (`Engine.cases_together`).

    Returns:
        Indices into `shapes`, by group; groups in the order of their first facts.
    """
    open_groups: dict[Shape, list[int]] = {}
    groups: list[list[int]] = []
    for index, shape in enumerate(shapes):
        if shape is None:
            continue
        group = open_groups.get(shape)
        if group is None or len(group) >= together(shape):
            group = open_groups[shape] = []
            groups.append(group)
        group.append(index)
    return groups


def group_cases(cases: Sequence[Case], together: Callable[[Shape], int]) -> list[list[Case]]:
    """Cut cases that are a dataset of their own into groups."""
    rows = group_facts([case.shape for case in cases], together)
    return [[cases[row] for row in group] for group in rows]
