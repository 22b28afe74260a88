"""The split of a dataset: every fact once, groups whole, equal work."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktrace.config import parse_shard
from ktrace.errors import KtraceError
from ktrace.pipeline.shards import Shard, own_facts
from ktrace.tracing.groups import fact_cost


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 4), max_size=40), st.integers(1, 9), st.integers(0, 100), st.data())
def test_every_fact_is_in_one_shard_and_groups_are_whole(
    sizes: list[int], count: int, limit: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(sum(sizes) + 3)))  # three facts are in no group
    groups, start = [], 0
    for size in sizes:
        groups.append(list(order[start : start + size]))
        start += size
    n_facts = min(limit, len(order))
    costs = [data.draw(st.integers(1, 50)) for _ in range(n_facts)]
    own = [own_facts(Shard(number, count), groups, costs) for number in range(1, count + 1)]
    assert sorted(index for facts in own for index in facts) == list(range(n_facts))
    for group in groups:
        inside = {index for index in group if index < n_facts}
        assert sum(bool(inside & facts) for facts in own) <= 1
    # Dealt by cost: no two shards differ by more than the largest unit.
    units = [sum(costs[i] for i in group if i < n_facts) for group in groups]
    loads = [sum(costs[index] for index in facts) for facts in own]
    assert max(loads) - min(loads) <= max([*units, *costs, 0])


def test_the_cost_of_a_fact_is_that_of_the_suffix_engine() -> None:
    # Positions 2, 3, 4 of 5 are restored: 3 + 2 + 1 positions run; and the prompt itself.
    assert fact_cost(5, 2) == 5 + 6


@pytest.mark.parametrize(
    "text", ["0/8", "9/8", "1/0", "1", "a/b", "1/2/3", "-1/2", "1 / 2", "１/2"]
)
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(KtraceError, match=r"shard=.* is out of range: k/n with k from 1 to n"):
        parse_shard(text)


def test_a_shard_is_read() -> None:
    assert Shard.parse("2/8") == Shard(2, 8)
    assert Shard.parse("2/8").is_part
    assert not Shard.parse("1/1").is_part
