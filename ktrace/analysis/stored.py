"""What the stores of a run hold, what they lack, and whether they belong together.

Everything about facts that does not grow with layers is read here, once; restorations are streamed
by `batches`. Neither reads activations.
"""

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

from ktrace.errors import KtraceError
from ktrace.store import CleanRecord, CorruptedRecord, RestoredRecord, RunFolders
from ktrace.terms import panel_order

# Scores of this many cells are in memory at once: a row group of `effects.parquet`.
_BATCH_CELLS = 2**18


class MeasuredOn(TypedDict):
    """What sigma was measured on: a dataset, and the subjects' facts and tokens."""

    dataset: str
    facts: int
    tokens: int


@dataclass(frozen=True)
class Survey:
    """A run's facts.

    Attributes:
        folders: where the stores lie.
        expected: facts that the clean store should hold; None where that is not known.
        clean: clean runs by the fact's index.
        corrupted: corrupted runs of candidates, likewise.
        restored: indices of the traced facts that each stored mediator holds, by its key.
    """

    folders: RunFolders
    expected: int | None
    clean: Mapping[int, CleanRecord]
    corrupted: Mapping[int, CorruptedRecord]
    restored: Mapping[str, frozenset[int]]

    @property
    def model(self) -> str:
        """Its name."""
        return self.folders.run.parent.parent.name

    @property
    def candidates(self) -> frozenset[int]:
        """Facts whose answer the model predicts."""
        return frozenset(i for i, record in self.clean.items() if record.is_candidate)

    @property
    def traced(self) -> tuple[int, ...]:
        """Candidates that the noise corrupted, in the order of the dataset."""
        return tuple(sorted(i for i, record in self.corrupted.items() if not record.left_out))

    @property
    def example(self) -> CorruptedRecord:
        """A corrupted run: its sigma and level of noise are those of all."""
        return self.corrupted[self.traced[0]]

    @cached_property
    def sigma_measured_on(self) -> MeasuredOn | None:
        """None where the parts do not say; all say the same, it follows from their fingerprint."""
        for about, _ in self.folders.corrupted.provenance():
            found: MeasuredOn | None = (about.get("noise") or {}).get("measured_on")
            if found is not None:
                return found
        return None

    @property
    def lacking(self) -> list[str]:
        """What is missing in the clean and corrupted runs, in words; empty when complete."""
        words = []
        if self.expected is not None and len(self.clean) < self.expected:
            words.append(
                f"{self.folders.clean.folder} holds {len(self.clean)} of {self.expected} facts"
            )
        if len(self.corrupted) < len(self.candidates):
            words.append(
                f"{self.folders.corrupted.folder} holds {len(self.corrupted)} of "
                f"{len(self.candidates)} candidates"
            )
        return words

    def lacks(self, key: str) -> str:
        """What is missing of a mediator, in words; empty when it is complete."""
        have = len(self.restored.get(key, ()))
        if have == len(self.traced):
            return ""
        return f"{have} of {len(self.traced)} candidates are restored"


# Sees some restorations of one mediator, by its key, on their way to the averages.
Watch = Callable[[Survey, str, Sequence[RestoredRecord]], None]


def survey(folders: RunFolders, limit: int | None = None, *, whole_dataset: bool) -> Survey:
    """Read what a run's stores hold.

    Args:
        folders: of the run.
        limit: only the first `limit` facts of the dataset.
        whole_dataset: whether the clean store should hold the whole dataset, up to `limit`, where
            its parts do not say what the runs that wrote them were asked for; otherwise they count
            as all there is. A run of `dataset.limit` is whole.

    Raises:
        KtraceError: stores of different settings, restorations without their clean or corrupted
            run, or a damaged part.
    """
    keys = folders.mediator_keys()
    _require_same_settings(folders, keys)
    clean = {
        record.index: record
        for record in CleanRecord.read(folders.clean)
        if limit is None or record.index < limit
    }
    corrupted = {
        record.index: record
        for record in CorruptedRecord.read(folders.corrupted)
        if record.index in clean
    }
    restored = {
        key: _restored(folders, key, limit, clean.keys() & corrupted.keys())
        for key in sorted(keys, key=panel_order)
    }
    expected = expected_facts(folders, limit, whole_dataset)
    return Survey(folders, expected, clean, corrupted, restored)


def _restored(
    folders: RunFolders, key: str, limit: int | None, known: Collection[int]
) -> frozenset[int]:
    """Indices of the facts that a mediator holds; its scores are large, and are not read."""
    have = set()
    for row in folders.restored(key).read("known_id"):
        index = row["index"]
        if limit is not None and index >= limit:
            continue
        if index not in known:
            raise KtraceError(
                f"{folders.run} lacks the clean or corrupted run of the fact with "
                f"known_id={row['known_id']}: finish the run"
            )
        have.add(index)
    return frozenset(have)


def expected_facts(folders: RunFolders, limit: int | None, whole_dataset: bool) -> int | None:
    """Facts that the clean store should hold; None where that is not known."""
    fingerprint = folders.clean.fingerprint()
    if fingerprint is None:
        return None
    n_facts = int(fingerprint["dataset"]["n_facts"])
    expected = _asked_for(folders, n_facts)
    if expected is None and whole_dataset:
        expected = n_facts
    return expected if expected is None or limit is None else min(limit, expected)


def _asked_for(folders: RunFolders, n_facts: int) -> int | None:
    """Facts that the runs which wrote clean parts should have reached, over all their shards."""
    asked = [
        (config.get("dataset") or {}).get("limit") or n_facts
        for about, _ in folders.clean.provenance()
        if (config := about.get("config"))
    ]
    return min(n_facts, max(asked)) if asked else None


def batches(
    found: Survey, key: str, only: Collection[int] | None = None
) -> Iterator[list[RestoredRecord]]:
    """Restorations of one mediator, part by part, some facts at a time.

    Args:
        found: the run.
        key: the mediator's.
        only: indices of the facts that are wanted; None for all that are found.
    """
    batch: list[RestoredRecord] = []
    n_cells = 0
    wanted = found.restored[key] if only is None else found.restored[key] & frozenset(only)
    for record in RestoredRecord.read(
        found.folders.restored(key), None if only is None else wanted
    ):
        if record.index not in wanted:
            continue
        batch.append(record)
        n_cells += math.prod(record.shape)
        if n_cells >= _BATCH_CELLS:
            yield batch
            batch, n_cells = [], 0
    if batch:
        yield batch


def _require_same_settings(folders: RunFolders, keys: Iterable[str]) -> None:
    """Refuse restorations and corrupted runs that do not belong to the clean runs beside them."""
    later = [folders.corrupted, *(folders.restored(key) for key in keys)]
    source, expected = folders.clean, folders.clean.fingerprint() or {}
    for store in later:
        found = store.fingerprint()
        if found is None:
            continue
        differing = [
            f"{name}: {json.dumps(found.get(name))} and {json.dumps(value)}"
            for name, value in expected.items()
            if found.get(name) != value
        ]
        if differing:
            raise KtraceError(
                f"{store.folder} and {source.folder} hold results of different settings "
                f"({'; '.join(differing)}): remove one of them"
            )
        if store.folder == folders.corrupted.folder:
            source, expected = store, found
