"""Which facts are whose when several runs share a dataset: whole units, by cost.

A shard takes whole units of facts (ktrace/tracing/groups.py), so every fact meets the company that
it has in an unsharded run, and its numbers are the same to the last bit. Units do not hang on the
engine or the device, so that all shards come to one split.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from ktrace.config import parse_shard


@dataclass(frozen=True)
class Shard:
    """The `number`-th of `count` parts of a dataset, counted from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """From `k/n`.

        Raises:
            KtraceError: it is not of that form.
        """
        return cls(*parse_shard(text))

    @property
    def is_part(self) -> bool:
        """Whether there are other shards."""
        return self.count > 1


def own_facts(shard: Shard, units: Sequence[Sequence[int]], costs: Sequence[int]) -> frozenset[int]:
    """The facts of one shard.

    Units go to the shards one after another, the most expensive first, each to the shard that has
    least so far. All shards come to the same split without asking each other.

    Args:
        shard: which one.
        units: indices of facts that stay together; a fact in none of them stands alone.
        costs: of each fact; facts beyond are not worked on.
    """
    known = [[index for index in unit if index < len(costs)] for unit in units]
    placed = {index for unit in known for index in unit}
    known += [[index] for index in range(len(costs)) if index not in placed]
    by_cost = sorted((-sum(costs[index] for index in unit), unit) for unit in known if unit)
    loads = [(0, number) for number in range(1, shard.count + 1)]
    own: list[int] = []
    for cost, unit in by_cost:
        load, number = loads[0]
        heapq.heapreplace(loads, (load - cost, number))
        if number == shard.number:
            own += unit
    return frozenset(own)
