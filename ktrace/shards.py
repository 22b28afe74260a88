"""Which facts are whose when several runs share a dataset: whole units, by cost.

A shard takes whole units of facts (ktrace/tracing/groups.py), so every fact meets the company that
it has in an unsharded run, and its numbers are the same to the last bit. Units do not hang on the
engine or the device, so that all shards come to one split.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from ktrace.config import parse_shard
from ktrace.errors import KtraceError
from ktrace.store import RunFolders


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


def fact_cost(n_positions: int, start: int) -> int:
    """Work for a fact, in positions that go through a block.

    Restoring position t runs the positions from t on (ktrace/tracing/suffix.py), and t goes from
    the subject's first token to the last one. Before that the prompt runs as a whole.
    """
    restored = n_positions - start
    return n_positions + restored * (restored + 1) // 2


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


def is_complete(folders: RunFolders, mediator_keys: Sequence[str], n_facts: int) -> bool:
    """Whether the stores hold all that the analysis of the first `n_facts` facts needs."""
    try:
        clean = {record["index"]: record for record in folders.clean.read("is_candidate")}
        if not all(index in clean for index in range(n_facts)):
            return False
        candidates = [index for index in range(n_facts) if clean[index]["is_candidate"]]
        corrupted = {record["index"]: record for record in folders.corrupted.read("left_out")}
        if not all(index in corrupted for index in candidates):
            return False
        traced = {index for index in candidates if not corrupted[index]["left_out"]}
        return all(
            traced <= {record["index"] for record in folders.restored(key).read()}
            for key in mediator_keys
        )
    except KtraceError:  # a damaged part: it is not all there
        return False
