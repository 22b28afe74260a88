"""Which facts share a batch, and which stay in one shard.

Groups share batches. They follow from the dataset, and from how many facts the engine takes
together, which hangs on the model, the device, noise.samples and engine.row_budget. So with the
same settings a fact always meets the same company, and with it the same bits: however often a run
was interrupted.

Units are what shards deal out. They follow from the dataset and the tokenizer alone, so that shards
on different devices, or with different engines, still split a dataset alike. No group crosses a
unit, so a shard's facts meet the company that they have in an unsharded run.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from ktrace.tracing.engine import Case, Shape

# Facts in a unit, at the most. Changing it splits datasets otherwise: shards of two versions of
# ktrace would not fit together.
UNIT_FACTS = 32


def group_facts(
    shapes: Sequence[Shape | None], together: Callable[[Shape], int]
) -> list[list[int]]:
    """Cut a dataset into groups of equal shape, in its order. None crosses a unit.

    Args:
        shapes: of every fact of the dataset, whether it is traced or not; None for one that never
            is, because it cannot be encoded.
        together: most facts of a shape in one group (`Engine.cases_together`).

    Returns:
        Indices into `shapes`, by group; groups in the order of their first facts.
    """
    open_groups: dict[Shape, list[int]] = {}
    n_before = Counter[Shape]()
    groups: list[list[int]] = []
    for index, shape in enumerate(shapes):
        if shape is None:
            continue
        begins_unit = n_before[shape] % UNIT_FACTS == 0
        n_before[shape] += 1
        if begins_unit or len(open_groups[shape]) >= together(shape):
            open_groups[shape] = []
            groups.append(open_groups[shape])
        open_groups[shape].append(index)
    return groups


def unit_facts(shapes: Sequence[Shape | None]) -> list[list[int]]:
    """Cut a dataset into units: up to `UNIT_FACTS` facts of one shape; see `group_facts`."""
    return group_facts(shapes, lambda shape: UNIT_FACTS)


def group_cases(cases: Sequence[Case], together: Callable[[Shape], int]) -> list[list[Case]]:
    """Cut cases that are a dataset of their own into groups."""
    rows = group_facts([case.shape for case in cases], together)
    return [[cases[row] for row in group] for group in rows]


def fact_cost(n_positions: int, start: int) -> int:
    """Work for a fact, in positions that go through a block.

    Restoring position t runs the positions from t on (ktrace/tracing/suffix), and t goes from
    the subject's first token to the last one. Before that the prompt runs as a whole.
    """
    restored = n_positions - start
    return n_positions + restored * (restored + 1) // 2
