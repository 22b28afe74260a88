"""Small parts merged into larger ones: what is read stays, whatever comes in between."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ktrace.errors import KtraceError
from ktrace.store import CORRUPTED, RunFolders, Store, compact
from ktrace.store import compaction as compaction_module
from ktrace.store.claims import Claims
from ktrace.terms import RUN_KINDS
from tests.support.claimants import claimed_elsewhere
from tests.support.stores import CANDIDATES, write_activations, write_run

FIELDS = {name: CORRUPTED[name] for name in ("index", "known_id", "sigma", "probability")}


def record(index: int, probability: float | None = None) -> dict[str, Any]:
    value = index / 100 if probability is None else probability
    values = np.full(2 + index % 3, value, dtype=np.float32)
    return {"index": index, "known_id": 100 + index, "sigma": 0.5, "probability": values}


def put(store: Store, *indices: int, run: str = "one", probability: float | None = None) -> None:
    with store.writer({"a": 1}, {"run": run}) as writer:
        for index in indices:
            writer.add(record(index, probability))


def content(store: Store) -> dict[int, bytes]:
    return {row["index"]: row["probability"].tobytes() for row in store.read(*FIELDS)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Five parts of one run."""
    made = Store(tmp_path / "corrupted", FIELDS)
    for indices in ((0, 7), (1,), (2, 9, 30), (3,), (4,)):
        put(made, *indices)
    return made


def sizes(store: Store) -> list[int]:
    alone = [Store(path.parent, store.schema) for path in store.parts()]
    assert len(alone) == len(store.parts())
    return [n_facts for _, n_facts in store.provenance()]


def test_every_kind_of_store_reads_as_before(tmp_path: Path) -> None:
    folders: RunFolders = write_run(tmp_path)
    write_activations(folders, CANDIDATES[3:], kind="corrupted")
    write_activations(folders, CANDIDATES[:3], kind="corrupted")
    stores = [folders.clean, folders.corrupted, folders.restored("hidden")]
    stores += [folders.activations(kind) for kind in RUN_KINDS]
    n_before = []
    for store in stores:
        before, read = len(store.parts()), sorted(map(repr, store.read(*store.schema)))
        done = store.done(store.fingerprint() or {})
        assert compact(store) == (before, 1)
        n_before.append(before)
        assert sorted(map(repr, store.read(*store.schema))) == read
        assert store.done(store.fingerprint() or {}) == done
        assert [path.name for path in store.folder.iterdir() if path.name.startswith(".")] == []
    assert sum(count > 1 for count in n_before) > 2


def test_parts_of_a_run_stay_together_and_say_so(store: Store) -> None:
    put(store, 11, run="two")
    put(store, 12, run="two")
    before = content(store)
    seconds = {"one": 0.0, "two": 0.0}
    for about, _ in store.provenance():
        seconds[about["run"]] += about["wall_seconds"]
    assert compact(store) == (7, 2)
    assert content(store) == before
    told = {about["run"]: (n_facts, about["wall_seconds"]) for about, n_facts in store.provenance()}
    assert told == {
        "one": (8, pytest.approx(seconds["one"], abs=0.01)),
        "two": (2, pytest.approx(seconds["two"], abs=0.01)),
    }
    assert compact(store) == (2, 2)


def test_parts_grow_no_larger_than_readers_hold(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = max(path.stat().st_size for path in store.parts())
    monkeypatch.setattr(compaction_module, "_MOST_BYTES", int(2.5 * largest))
    before = content(store)
    assert compact(store) == (5, 3)
    assert content(store) == before


def test_nothing_is_done_while_another_process_works_there(store: Store) -> None:
    with claimed_elsewhere(store.folder, [99]) as other:
        names = [path.name for path in store.parts()]
        assert compact(store) is None
        assert [path.name for path in store.parts()] == names
        assert not Claims(store.folder).take([99]), "the other's claim was taken away"
        other.communicate()
    assert compact(store) == (5, 1)


class Killed(BaseException):
    """Stands for a process that ends here."""


@pytest.mark.parametrize("n_steps", range(9))
def test_killed_at_any_step_it_reads_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch, n_steps: int
) -> None:
    """A step is a file that comes or goes."""
    before, steps = content(store), iter(range(n_steps))

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **options: Any) -> Any:
            if next(steps, None) is None:
                raise Killed
            return original(*args, **options)

        return step

    is_killed = False
    with monkeypatch.context() as patched:
        for name in ("replace", "unlink"):
            patched.setattr(Path, name, counted(getattr(Path, name)))
        try:
            compact(store)
        except Killed:
            is_killed = True
    assert is_killed == (n_steps < 8)  # a name given and let go, five parts, the claims
    assert content(store) == before
    assert compact(store) is not None
    assert content(store) == before
    assert sizes(store) == [8]


def test_facts_that_two_parts_tell_otherwise_stay_as_they_are(store: Store) -> None:
    """Where locks are not kept two processes may compute one fact; readers take the first."""
    put(store, 5, 7, probability=0.5)
    put(store, 6, 20)
    before = content(store)
    assert compact(store) == (7, 3)
    assert content(store) == before
    assert sorted(sizes(store)) == [2, 2, 8]


def test_damage_is_left_where_it_is(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    path = store.parts()[1]
    path.write_bytes(path.read_bytes()[:-1])
    assert compact(store) == (5, 2)
    assert f"damaged: {path}" in caplog.text
    assert path.exists()
    with h5py.File(store.parts()[0]) as file:
        assert sorted(file["index"][()].tolist()) == [0, 2, 3, 4, 7, 9, 30]


def test_a_reader_goes_on_while_parts_are_merged(store: Store) -> None:
    before = content(store)
    reading: Iterator[dict[str, Any]] = store.read(*FIELDS)
    found = [next(reading)]
    assert compact(store) == (5, 1)
    found += reading
    assert {row["index"]: row["probability"].tobytes() for row in found} == before
    assert len(found) == len(before)


def test_a_store_of_one_part_or_none_is_not_touched(tmp_path: Path) -> None:
    store = Store(tmp_path / "corrupted", FIELDS)
    assert compact(store) == (0, 0)
    assert not store.folder.exists()
    put(store, 1)
    stamp = store.folder.stat().st_mtime_ns
    assert compact(store) == (1, 1)
    assert store.folder.stat().st_mtime_ns == stamp
    with pytest.raises(KtraceError, match="other settings"):
        store.require({"a": 2})
