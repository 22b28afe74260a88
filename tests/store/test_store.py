"""Stores: many parts, many writers, one set of settings."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ktrace.analysis.effects import load_effects
from ktrace.errors import KtraceError
from ktrace.store import CLEAN, CORRUPTED, RESTORED, Row, RunFolders, Store
from ktrace.store import store as store_module
from ktrace.store import writer as writer_module
from ktrace.terms import METRICS
from tests.support.stores import write_run

FIELDS = {name: CORRUPTED[name] for name in ("index", "known_id", "sigma", "probability")}

FINGERPRINT: dict[str, Any] = {"model": {"identity": "a"}, "noise": {"seed": 1}}


def record(index: int, n_samples: int = 2) -> dict[str, Any]:
    """One fact of a corrupted store, told by its numbers."""
    probability = np.full(n_samples, index / 100, dtype=np.float32)
    return {"index": index, "known_id": 100 + index, "sigma": 0.5, "probability": probability}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store whose folder is not there yet."""
    return Store(tmp_path / "noise" / "corrupted", FIELDS)


def sizes(store: Store) -> list[int]:
    """Facts in each part."""
    alone = [Store(path.parent, store.schema) for path in store.parts()]
    assert all(one.folder == store.folder for one in alone)
    return [len(store_module.read_part(path, store.schema, ["index"])) for path in store.parts()]


def test_an_empty_store_holds_nothing(store: Store) -> None:
    assert store.parts() == []
    assert store.done(FINGERPRINT) == frozenset()
    assert store.fingerprint() is None
    assert list(store.read("probability")) == []
    with store.writer(FINGERPRINT):
        pass
    assert not store.folder.exists(), "a writer without facts writes nothing"


def test_resume_sees_the_union_of_all_parts(store: Store) -> None:
    for indices in ([0, 1], [5], [3, 9]):
        with store.writer(FINGERPRINT) as writer:
            for index in indices:
                writer.add(record(index))
    assert store.done(FINGERPRINT) == {0, 1, 3, 5, 9}
    assert store.fingerprint() == FINGERPRINT
    found = {r["index"]: r for r in store.read("known_id", "probability", "sigma")}
    assert sorted(found) == [0, 1, 3, 5, 9]
    assert found[9]["known_id"] == 109
    assert found[9]["sigma"] == 0.5
    np.testing.assert_array_equal(found[9]["probability"], record(9)["probability"])
    assert found[9].keys() == {"index", "known_id", "probability", "sigma"}


def test_a_temporary_file_is_no_part(store: Store) -> None:
    with store.writer(FINGERPRINT) as writer:
        writer.add(record(0))
    (store.folder / ".part-000001-0123abcd.h5.99.tmp").write_bytes(b"half")
    assert store.done(FINGERPRINT) == {0}


def test_other_settings_are_refused_with_both_values(store: Store) -> None:
    with store.writer(FINGERPRINT) as writer:
        writer.add(record(0))
    other = {**FINGERPRINT, "noise": {"seed": 2}}
    with pytest.raises(KtraceError) as caught:
        store.done(other)
    message = str(caught.value)
    assert 'noise: stored {"seed": 1}, now {"seed": 2}' in message
    assert str(store.folder) in message
    assert "model:" not in message, "only what differs is shown"


@pytest.mark.parametrize("changed", [{"model": {"identity": "a"}}, {**FINGERPRINT, "window": 3}])
def test_settings_more_or_fewer_are_refused(store: Store, changed: dict[str, Any]) -> None:
    with store.writer(FINGERPRINT) as writer:
        writer.add(record(0))
    with pytest.raises(KtraceError, match=r"(noise|window): stored .*, now .*null|stored null"):
        store.done(changed)


def test_parts_of_different_settings_are_never_mixed(store: Store) -> None:
    with store.writer({"noise": {"seed": 1}}) as writer:
        writer.add(record(1))
    with pytest.raises(KtraceError, match="holds results of other settings"):
        store.writer({"noise": {"seed": 2}}).__enter__()
    # A part that somebody copied there.
    other = Store(store.folder.parent / "other", store.schema)
    with other.writer({"noise": {"seed": 2}}) as writer:
        writer.add(record(2))
    shutil.copy(other.parts()[0], store.folder)
    for use in (
        store.fingerprint,
        lambda: list(store.read()),
        lambda: store.done({"noise": {"seed": 1}}),
    ):
        with pytest.raises(KtraceError, match=r"holds results of other settings \(noise: "):
            use()


def test_a_folder_is_bound_before_its_first_part(store: Store) -> None:
    """Two runs that begin in one empty folder: only one of them may write."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ktrace.store import CORRUPTED, Store\n"
        "Store(Path(sys.argv[1]), CORRUPTED).bind({'noise': {'seed': int(sys.argv[2])}})\n"
    )

    def bound_elsewhere(seed: int) -> str:
        command = [sys.executable, "-c", program, str(store.folder), str(seed)]
        return subprocess.run(command, capture_output=True, text=True).stderr

    with store.writer({"noise": {"seed": 1}}) as first:
        first.claim([0])
        assert "holds results of other settings (noise: " in bound_elsewhere(2)
        assert not bound_elsewhere(1)
        first.add(record(0))
    assert store.fingerprint() == {"noise": {"seed": 1}}


def test_a_folder_that_got_no_part_is_bound_anew(store: Store) -> None:
    store.bind({"noise": {"seed": 1}})  # as a killed run leaves it
    with store.writer({"noise": {"seed": 2}}) as writer:
        writer.add(record(0))
    assert store.fingerprint() == {"noise": {"seed": 2}}


def test_a_store_of_an_older_version_is_bound_by_its_parts(store: Store) -> None:
    with store.writer({"noise": {"seed": 1}}) as writer:
        writer.add(record(0))
    (store.folder / "store.json").unlink()
    assert store.fingerprint() == {"noise": {"seed": 1}}
    with pytest.raises(KtraceError, match="holds results of other settings"):
        store.writer({"noise": {"seed": 2}}).__enter__()
    with store.writer({"noise": {"seed": 1}}) as writer:
        writer.add(record(1))
    assert store.done({"noise": {"seed": 1}}) == {0, 1}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1]",
        "{}",
        '{"fingerprint": 3, "names": {}}',
        '{"fingerprint": {}, "names": {"model": 3}}',
    ],
)
def test_a_binding_that_is_none_is_said(store: Store, content: str) -> None:
    with store.writer({"noise": {"seed": 1}}) as writer:
        writer.add(record(0))
    (store.folder / "store.json").write_text(content)
    with pytest.raises(KtraceError, match=r"damaged: .*store\.json.* remove that file"):
        list(store.read())


def test_a_fingerprint_compares_as_it_was_written(store: Store) -> None:
    fingerprint = {"x": None, "name": "Zürich 東京", "level": 0.1, "n": 3}
    with store.writer(fingerprint) as writer:
        writer.add(record(0))
    assert store.done(json.loads(json.dumps(fingerprint))) == {0}
    assert store.fingerprint() == fingerprint


def test_a_reader_refuses_damage_and_says_what_mends_it(store: Store) -> None:
    with store.writer(FINGERPRINT) as writer:
        writer.add(record(0))
    path = store.parts()[0]
    path.write_bytes(path.read_bytes()[:-10])
    expected = "damaged: " + re.escape(str(path)) + r".*without stage=analyze, sets it aside"
    for use in (store.fingerprint, lambda: list(store.read())):
        with pytest.raises(KtraceError, match=expected):
            use()
    assert store.parts() == [path], "a reader changes nothing"


def test_a_damaged_part_is_set_aside_and_its_facts_are_lacking(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    for indices in ([0, 1], [2]):
        with store.writer(FINGERPRINT) as writer:
            for index in indices:
                writer.add(record(index))
    path = store.parts()[0]
    for number, aside in enumerate([f"damaged-{path.name}", f"damaged-{path.stem}-2.h5"]):
        with h5py.File(path) as file:
            start = file["probability"]["values"].id.get_offset()
        content = bytearray(path.read_bytes())
        content[start] ^= 1  # `index` can still be read: only a whole look sees it
        path.write_bytes(content)
        assert store.done(FINGERPRINT, wanted=[2]) == {0, 1, 2}, "not looked at: another's facts"
        assert store.done(FINGERPRINT, wanted=[1, 2]) == {2}
        assert (store.folder / aside).read_bytes() == content
        assert [r["index"] for r in store.read("probability")] == [2]
        message = caplog.messages[number]
        assert str(path) in message
        assert f"set aside as {aside}, its facts are computed again" in message
        with store.writer(FINGERPRINT) as writer:
            writer.add(record(0))
            writer.add(record(1))
        assert store.done(FINGERPRINT) == {0, 1, 2}


def test_damage_in_a_store_of_other_settings_stays_where_it_is(store: Store) -> None:
    for index in (0, 1):
        with store.writer(FINGERPRINT) as writer:
            writer.add(record(index))
    path = store.parts()[0]
    path.write_bytes(b"")
    with pytest.raises(KtraceError, match="holds results of other settings"):
        store.done({"noise": {"seed": 2}})
    assert path in store.parts()


def test_a_part_closes_at_32_facts_and_the_rest_on_exit(store: Store) -> None:
    with store.writer(FINGERPRINT) as writer:
        for index in range(31):
            writer.add(record(index))
        assert store.parts() == []
        writer.add(record(31))
        assert sizes(store) == [32]
        for index in range(32, 70):
            writer.add(record(index))
        assert sizes(store) == [32, 32]
    assert sizes(store) == [32, 32, 6]
    assert store.done(FINGERPRINT) == set(range(70))


def test_a_part_closes_by_size(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_PART_BYTES", 100)
    with store.writer(FINGERPRINT) as writer:
        for index in range(5):
            writer.add(record(index, n_samples=10))  # 40 bytes each
        writer.add(record(5, n_samples=100))  # alone, as it is larger than a part
        writer.add(record(6, n_samples=10))
    assert sizes(store) == [2, 2, 1, 1, 1]


def test_a_part_closes_by_age(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(writer_module.time, "monotonic", lambda: now)
    with store.writer(FINGERPRINT) as writer:
        now += 500  # a writer that waits for its first fact has nothing that ages
        writer.add(record(0))
        now += 59
        writer.add(record(1))
        assert store.parts() == []
        now += 1
        writer.add(record(2))
        assert sizes(store) == [3]
        now += 30
        writer.add(record(3))
        assert sizes(store) == [3]
    assert sizes(store) == [3, 1]


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()])
def test_an_exception_loses_no_finished_fact(store: Store, error: BaseException) -> None:
    def interrupted() -> None:
        with store.writer(FINGERPRINT) as writer:
            writer.add(record(0))
            writer.add(record(1))
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert store.done(FINGERPRINT) == {0, 1}


def test_overlapping_writers_give_each_fact_once(store: Store) -> None:
    with store.writer(FINGERPRINT) as one, store.writer(FINGERPRINT) as other:
        for index in (0, 1, 2):
            one.add(record(index))
        for index in (1, 2, 3):
            other.add(record(index))
    assert sizes(store) == [3, 3]
    found = list(store.read("probability"))
    assert sorted(r["index"] for r in found) == [0, 1, 2, 3]
    for fact in found:
        np.testing.assert_array_equal(fact["probability"], record(fact["index"])["probability"])


def test_parts_are_never_changed(store: Store) -> None:
    def state() -> dict[str, tuple[int, int, bytes]]:
        return {
            p.name: (p.stat().st_mtime_ns, p.stat().st_ino, p.read_bytes()) for p in store.parts()
        }

    with store.writer(FINGERPRINT) as writer:
        writer.add(record(0))
    before = state()
    with store.writer(FINGERPRINT) as writer:
        writer.add(record(1))
        writer.add(record(0))
    store.done(FINGERPRINT)
    list(store.read("probability"))
    after = state()
    assert len(after) == 2
    assert {name: after[name] for name in before} == before


def test_one_part_is_in_memory_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(3):
        with store.writer(FINGERPRINT) as writer:
            writer.add(record(index))
    opened: list[Path] = []
    genuine = store_module.read_part

    def counted(path: Path, *rest: Any) -> list[dict[str, Any]]:
        opened.append(path)
        return genuine(path, *rest)

    monkeypatch.setattr(store_module, "read_part", counted)
    facts = store.read("probability")
    next(facts)
    assert opened == store.parts()[:1]
    assert len(list(facts)) == 2
    assert opened == store.parts()


def test_run_folders_are_those_of_the_contract(tmp_path: Path) -> None:
    run = tmp_path / "tiny" / "facts" / "gaussian-x3-n10-seed1"
    folders = RunFolders(run)
    assert folders.clean.folder == tmp_path / "tiny" / "facts" / "clean"
    assert folders.clean.schema is CLEAN
    assert folders.corrupted.folder == run / "corrupted"
    assert folders.restored("mlp-w10").folder == run / "restored" / "mlp-w10"
    assert folders.analysis == run / "analysis"
    assert folders.run_yaml == run / "run.yaml"


def test_only_mediators_with_parts_are_listed(tmp_path: Path) -> None:
    folders = RunFolders(tmp_path / "noise")
    assert folders.mediator_keys() == []
    (tmp_path / "noise" / "restored" / "attn-w3").mkdir(parents=True)
    (tmp_path / "noise" / "restored" / "notes.txt").write_text("")
    for key in ("mlp-w3", "hidden"):
        scores = {metric: np.zeros((1, 1, 1, 1), "f4") for metric in METRICS}
        restored: Row = {"index": 0, "known_id": 0, "together": key, "places": [0], **scores}
        assert folders.restored(key).schema is RESTORED
        with folders.restored(key).writer(FINGERPRINT) as writer:
            writer.add(restored)
    assert folders.mediator_keys() == ["hidden", "mlp-w3"]


RENAMES = {
    "model": lambda run: (run.parent.parent, "other"),
    "dataset": lambda run: (run.parent, "other"),
    "noise": lambda run: (run, "uniform-x3-n2-seed1"),
    "mediator": lambda run: (run / "restored" / "hidden", "attn-w3"),
}


@pytest.mark.parametrize("kind", RENAMES)
@pytest.mark.parametrize("is_old", [False, True])
def test_a_folder_is_not_taken_at_its_name(tmp_path: Path, kind: str, is_old: bool) -> None:
    """Renamed, its content would be averaged under a name that is not its own."""
    folders = write_run(tmp_path, ["hidden"])
    if is_old and kind in ("model", "dataset"):
        pytest.skip("made-up parts of older versions do not say")
    for path in tmp_path.rglob("store.json"):
        if is_old:
            path.unlink()
    folder, name = RENAMES[kind](folders.run)
    moved = folder.rename(folder.with_name(name))
    run = Path(str(folders.run).replace(str(folder), str(moved)))
    with pytest.raises(KtraceError, match=rf"holds results of {kind} .*, and lies in {name}: "):
        load_effects(run)
