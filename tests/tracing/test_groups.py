"""Groups follow from the dataset and the engine's say; units from the dataset alone."""

import pytest

from ktrace.tracing.engine import Shape
from ktrace.tracing.groups import UNIT_FACTS, group_facts, unit_facts

SHORT, LONG = Shape(5, 1), Shape(9, 1)


def test_facts_of_one_shape_share_groups_in_their_order() -> None:
    shapes = [SHORT, LONG, SHORT, None, SHORT, LONG, SHORT]
    together = {SHORT: 3, LONG: 1}.__getitem__
    assert group_facts(shapes, together) == [[0, 2, 4], [1], [5], [6]]


@pytest.mark.parametrize("together", [1, 5, 20, UNIT_FACTS, 50])
def test_no_group_crosses_a_unit(together: int) -> None:
    """Whatever the engine takes together: shards deal units, and must not part a group."""
    shapes = [SHORT, LONG, SHORT, None] * 40
    units = [set(unit) for unit in unit_facts(shapes)]
    assert sorted(map(len, units)) == [8, 16, UNIT_FACTS, UNIT_FACTS, UNIT_FACTS]
    for group in group_facts(shapes, lambda shape: together):
        assert len(group) <= together
        assert any(set(group) <= unit for unit in units)


def test_a_longer_dataset_moves_nobody() -> None:
    """Facts that come later join the last groups, and part none."""
    shapes = [SHORT, LONG] * 5
    few, all_ = (group_facts(shapes[:n], lambda shape: 2) for n in (5, 10))
    for group in few:
        assert any(whole[: len(group)] == group for whole in all_)


def test_answers_of_another_length_are_another_shape() -> None:
    assert group_facts([Shape(5, 1, 1), Shape(5, 1, 2)], lambda shape: 9) == [[0], [1]]
