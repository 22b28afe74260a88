"""What the stores of a run hold, what they lack, and whether they belong together.

Everything about facts that does not grow with layers is read here, once; restorations are streamed
by `batches`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ktrace.errors import KtraceError
from ktrace.store import BASELINE_SCORES, RunFolders
from ktrace.terms import METRICS, panel_order

# Scores of this many cells are in memory at once: a row group of `effects.parquet`.
_BATCH_CELLS = 2**18

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Survey:
    """A run's facts.

    Attributes:
        folders: where the stores lie.
        expected: facts that the clean store should hold; None where that is not known.
        clean: records of the clean store by the fact's index, without activations.
        corrupted: records of the corrupted store, of candidates.
        restored: indices of the traced facts that each stored mediator holds, by its key.
    """

    folders: RunFolders
    expected: int | None
    clean: Mapping[int, Record]
    corrupted: Mapping[int, Record]
    restored: Mapping[str, frozenset[int]]

    @property
    def candidates(self) -> frozenset[int]:
        """Facts whose answer the model predicts."""
        return frozenset(i for i, record in self.clean.items() if record["is_candidate"])

    @property
    def traced(self) -> tuple[int, ...]:
        """Candidates that the noise corrupted, in the order of the dataset."""
        return tuple(sorted(i for i, r in self.corrupted.items() if not r["left_out"]))

    @cached_property
    def sigma_measured_on(self) -> Mapping[str, Any] | None:
        """The `dataset`, and how many `facts` and `tokens`, whose subjects sigma is of.

        None where the parts do not say. All say the same: sigma follows from their fingerprint.
        """
        for about, _ in self.folders.corrupted.provenance():
            found: Mapping[str, Any] | None = (about.get("noise") or {}).get("measured_on")
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


def survey(folders: RunFolders, limit: int | None = None, *, whole_dataset: bool) -> Survey:
    """Read what a run's stores hold.

    Args:
        folders: of the run.
        limit: only the first `limit` facts of the dataset.
        whole_dataset: whether the clean store should hold the dataset up to `limit`; otherwise
            only what the runs that wrote it were asked for, so that a run of `dataset.limit` is
            whole. Parts that do not say count as all there is.

    Raises:
        KtraceError: stores of different settings, restorations without their clean or corrupted
            run, or a damaged part.
    """
    keys = folders.mediator_keys()
    _require_same_settings(folders, keys)

    def wanted(records: Iterable[Record]) -> Iterator[Record]:
        return (record for record in records if limit is None or record["index"] < limit)

    names = ("known_id", "prompt", "subject", "attribute", "tokens", "roles", "span")
    clean = {
        record["index"]: record
        for record in wanted(folders.clean.read(*names, "is_candidate", "left_out"))
    }
    corrupted = {
        record["index"]: record
        for record in wanted(
            folders.corrupted.read("left_out", "sigma", "noise_level", *BASELINE_SCORES)
        )
    }
    restored = {}
    for key in sorted(keys, key=panel_order):
        have = set()
        for record in wanted(folders.restored(key).read("known_id")):
            if record["index"] not in clean or record["index"] not in corrupted:
                raise KtraceError(
                    f"{folders.run} lacks the clean or corrupted run of the fact with "
                    f"known_id={record['known_id']}: finish the run"
                )
            have.add(record["index"])
        restored[key] = frozenset(have)
    expected = None
    fingerprint = folders.clean.fingerprint()
    if fingerprint is not None:
        n_facts = int(fingerprint["dataset"]["n_facts"])
        expected = n_facts if whole_dataset else _asked_for(folders, n_facts)
        if expected is not None and limit is not None:
            expected = min(limit, expected)
    kept = {i: record for i, record in corrupted.items() if i in clean}
    return Survey(folders, expected, clean, kept, restored)


def _asked_for(folders: RunFolders, n_facts: int) -> int | None:
    """Facts that the runs which wrote clean parts should have reached, over all their shards."""
    asked = [
        config["dataset"]["limit"] or n_facts
        for about, _ in folders.clean.provenance()
        if (config := about.get("config"))
    ]
    return min(n_facts, max(asked)) if asked else None


def batches(found: Survey, key: str) -> Iterator[list[Record]]:
    """Restorations of one mediator, part by part, some facts at a time.

    Each record has `index` and, for every metric, scores `(n_samples, n_layers, n_positions)`.
    """
    batch: list[Record] = []
    n_cells = 0
    for record in found.folders.restored(key).read(*METRICS):
        if record["index"] not in found.restored[key]:
            continue
        batch.append(record)
        n_cells += record[METRICS[0]].size
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
