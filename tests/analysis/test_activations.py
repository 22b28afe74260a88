"""Stored states back out of a run, for all facts at once."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import ktrace
from ktrace.analysis.activations import load_activations
from ktrace.errors import KtraceError
from ktrace.store import ACTIVATIONS, RunFolders, StatesRecord
from ktrace.store import opened as opened_module
from ktrace.store.part import read_part
from ktrace.terms import ROLE_KEYS, SITES
from tests.support.stores import (
    CANDIDATES,
    CLEAN_PRINT,
    FACTS,
    N_LAYERS,
    N_SAMPLES,
    NOISE,
    WIDTH,
    activations,
    known_id,
    write_activations,
    write_clean,
    write_corrupted,
    write_run,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> RunFolders:
    """A run that was written out of order."""
    made = write_run(tmp_path_factory.mktemp("states"))
    write_activations(made, CANDIDATES[::-1], kind="corrupted")
    return made


def expected(role: str | None, site: str, layer: int, kind: str) -> tuple[Any, list[int]]:
    """Row by row, as slowly as it is plain."""
    rows, numbers = [], []
    for index in CANDIDATES:
        for position, found in enumerate(FACTS[index].roles):
            if role in (None, found):
                states = activations(index, site, kind=kind)
                rows.append(states[..., layer, position, :])
                numbers.append(known_id(index))
    return np.array(rows), numbers


@pytest.mark.parametrize("kind", ["clean", "corrupted"])
@pytest.mark.parametrize("role", [None, *ROLE_KEYS])
def test_rows_are_those_of_the_facts(folders: RunFolders, kind: str, role: str | None) -> None:
    for site in SITES:
        for layer in range(N_LAYERS):
            found = load_activations(folders.run, site, layer, role, kind)
            name = role and role.replace("_", " ")
            states, known_ids = expected(name, site, layer, kind)
            np.testing.assert_array_equal(found.states, states)
            assert found.known_ids.tolist() == known_ids
    assert found.states.dtype == np.float32
    samples = (N_SAMPLES,) if kind == "corrupted" else ()
    assert found.states.shape == (len(known_ids), *samples, WIDTH)
    if role == "last":
        assert known_ids == [known_id(index) for index in CANDIDATES]
    by_name = load_activations(folders.run, site, layer, name, kind)  # as frames call it
    np.testing.assert_array_equal(by_name.states, states)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Datasets that are opened from now on, by part."""
    found: list[tuple[str, str]] = []
    original = opened_module.bounded_dataset

    def noting(owner: Any, name: str, size: int) -> Any:
        found.append((owner.file.filename, f"{owner.name}/{name}"))
        return original(owner, name, size)

    monkeypatch.setattr(opened_module, "bounded_dataset", noting)
    return found


def test_one_fact(folders: RunFolders, read: list[tuple[str, str]]) -> None:
    """Its states alone are read: they are by far the largest field of a part."""
    index = 5
    found = load_activations(folders.run, "attn", 1, known_id=known_id(index))
    np.testing.assert_array_equal(found.states, activations(index, "attn")[1])
    assert found.known_ids.tolist() == [known_id(index)] * len(FACTS[index].tokens)
    assert len(folders.activations("clean").parts()) == 3
    assert len([name for _, name in read if name == "/attn/values"]) == 1


def test_the_work_grows_with_the_facts_alone(
    folders: RunFolders, read: list[tuple[str, str]]
) -> None:
    """Each part's states are read once, whatever is asked for."""
    load_activations(folders.run, "mlp", 2, "last")
    states = [filename for filename, name in read if name == "/mlp/values"]
    assert len(states) == len(set(states)) == 3
    assert not [name for _, name in read if name.startswith(("/hidden", "/attn"))]


def test_other_layers_are_not_read(folders: RunFolders, tmp_path: Path) -> None:
    """What lies there may be damaged, which is seen where it is asked for."""
    shutil.copytree(folders.run.parent, tmp_path / "toy" / "made-up")
    run = RunFolders(tmp_path / "toy" / "made-up" / NOISE)
    path = run.activations("corrupted").parts()[0]
    content = path.read_bytes()
    index = read_part(path, ACTIVATIONS["corrupted"], ["index"])[0]["index"]
    second = np.ascontiguousarray(activations(index, "attn", kind="corrupted")[1, 1])
    place = content.index(second.tobytes())
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    for layer in (0, 2):
        found = load_activations(run.run, "attn", layer, None, "corrupted")
        np.testing.assert_array_equal(found.states, expected(None, "attn", layer, "corrupted")[0])
    with pytest.raises(KtraceError, match=r"damaged: .*checksum"):
        load_activations(run.run, "attn", 1, None, "corrupted")


def test_parts_without_sums_of_layers_are_read_as_a_whole(
    folders: RunFolders, tmp_path: Path
) -> None:
    shutil.copytree(folders.run.parent, tmp_path / "toy" / "made-up")
    run = RunFolders(tmp_path / "toy" / "made-up" / NOISE)
    for path in run.activations("clean").parts():
        with h5py.File(path, "r+", locking=False) as file:
            for site in SITES:
                del file[site]["layer_crc32"]
    for role in (None, "last"):
        states, known_ids = expected(role, "mlp", 2, "clean")
        found = load_activations(run.run, "mlp", 2, role)
        np.testing.assert_array_equal(found.states, states)
        assert found.known_ids.tolist() == known_ids


def test_a_run_folder_is_found_from_inside(
    folders: RunFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = load_activations(folders.run, "hidden", 0)
    for inside, name in ((folders.run, "."), (folders.run.parent, folders.run.name)):
        monkeypatch.chdir(inside)
        np.testing.assert_array_equal(load_activations(name, "hidden", 0).states, found.states)
    assert ktrace.load_activations is load_activations


@pytest.mark.parametrize(("stored", "widened"), [(np.uint16, np.float32), (np.float16, np.float16)])
def test_half_precision(tmp_path: Path, stored: type, widened: type) -> None:
    folders = RunFolders(tmp_path / "toy" / "made-up" / NOISE)
    write_activations(folders, CANDIDATES, dtype=stored)
    states = load_activations(folders.run, "mlp", 1, known_id=known_id(0)).states
    assert states.dtype == widened
    exact = activations(0, "mlp")[1]
    np.testing.assert_allclose(states, exact, rtol=2**-7, atol=1e-3)
    assert not np.array_equal(states, exact)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"site": "embedding"}, r"site='embedding' is unknown: choose from hidden, attn, mlp"),
        ({"role": "subject"}, r"role='subject' is unknown: choose from .*first_subject, middle"),
        ({"run_kind": "noised"}, r"run_kind='noised' is unknown: choose from clean, corrupted"),
        ({"layer": 3}, r"layer=3 is out of range: 0 to 2"),
        ({"layer": -1}, r"layer=-1 is out of range: 0 to 2"),
        ({"known_id": known_id(2)}, r"known_id=1014: .*clean has no states of it: it is no cand"),
        ({"known_id": 1063}, r"known_id=1063: .*clean has no states of it: no such fact is sto"),
    ],
)
def test_what_is_not_there(folders: RunFolders, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(KtraceError, match=message) as raised:
        load_activations(folders.run, **{"site": "mlp", "layer": 0, **asked})
    assert "\n" not in str(raised.value)


def empty_run(model: Path) -> RunFolders:
    """The folder of a run that has not begun its restorations."""
    folders = RunFolders(model / "made-up" / NOISE)
    (folders.run / "corrupted").mkdir(parents=True)
    return folders


def test_what_is_not_kept_names_its_key(tmp_path: Path) -> None:
    run = empty_run(tmp_path / "toy")
    with pytest.raises(KtraceError, match=r"corrupted.* holds no states: run with .act"):
        load_activations(run.run, "attn", 0, run_kind="corrupted")
    kept = {"sites": ["attn"], "positions": ["last"], "layers": [0, 2]}
    nothing = {site: np.zeros((0, 0, 0), np.float32) for site in SITES}
    states = nothing | {"attn": np.full((2, 1, WIDTH), [[[0.5]], [[np.nan]]], np.float32)}
    layers, positions = np.array([0, 2]), np.array([4])
    record = StatesRecord(0, known_id(0), layers, positions, ("last",), states)
    with run.activations("clean").writer(CLEAN_PRINT | {"activations": kept}) as writer:
        writer.add(record.row())
    assert load_activations(run.run, "attn", 0, "last").states.shape == (1, WIDTH)
    for asked, message in (
        ({"site": "mlp"}, r"site='mlp' is not stored: .* holds attn \(activations\.clean\)"),
        ({"role": "further"}, r"role='further' is not stored: .*last \(activations\.positions\)"),
        ({"layer": 1}, r"layer=1 is not stored: .* holds 0, 2 \(activations\.layers\)"),
        ({"layer": 2}, r"site='attn': the model of .* has none in layer=2"),
    ):
        with pytest.raises(KtraceError, match=message):
            load_activations(run.run, **{"site": "attn", "layer": 0, "role": "last", **asked})


def test_a_role_that_no_fact_has(tmp_path: Path) -> None:
    run = empty_run(tmp_path / "toy")
    write_activations(run, [1])
    with pytest.raises(KtraceError, match=r"role=.further.: no fact in .* has such a position"):
        load_activations(run.run, "attn", 0, "further")


def test_a_site_that_the_model_lacks(tmp_path: Path) -> None:
    run = empty_run(tmp_path / "toy")
    nothing = {site: np.zeros((0, 0, 0), np.float32) for site in SITES}
    record = StatesRecord(0, 1000, np.arange(2), np.arange(1), ("last",), nothing)
    kept = {"sites": [*SITES], "positions": "all", "layers": None}
    with run.activations("clean").writer(CLEAN_PRINT | {"activations": kept}) as writer:
        writer.add(record.row())
    with pytest.raises(KtraceError, match=r"site='mlp': the model of .* has none$"):
        load_activations(run.run, "mlp", 0)


def test_an_unfinished_run_is_refused_unless_partial_is_asked(tmp_path: Path) -> None:
    run = empty_run(tmp_path / "toy")
    write_clean(run)
    write_corrupted(run, CANDIDATES)
    write_activations(run, CANDIDATES[:2])
    write_activations(run, CANDIDATES[1:], kind="corrupted")
    for kind, stored in (("clean", CANDIDATES[:2]), ("corrupted", CANDIDATES[1:])):
        lacking = rf"is not complete \(.*{kind}.* holds {len(stored)} of 5 candidates\): finish"
        with pytest.raises(KtraceError, match=lacking):
            load_activations(run.run, "attn", 0, "last", kind)
        found = load_activations(run.run, "attn", 0, "last", kind, partial=True)
        assert found.known_ids.tolist() == [known_id(index) for index in stored]
    # Clean runs need no corrupted ones.
    write_activations(run, CANDIDATES[2:])
    for path in run.corrupted.parts():
        path.unlink()
    assert len(load_activations(run.run, "attn", 0, "last").known_ids) == len(CANDIDATES)
    for path in run.clean.parts()[3:]:
        path.unlink()
    with pytest.raises(KtraceError, match=r"is not complete \(.*clean holds 3 of 6 facts"):
        load_activations(run.run, "attn", 0, "last")


def test_a_damaged_part_says_what_to_do(tmp_path: Path) -> None:
    """Runs do not read it, so that none sets it aside."""
    run = write_run(tmp_path)
    store = run.activations("clean")
    path = store.parts()[0]
    content = bytearray(path.read_bytes())
    place = content.index(activations(0, "attn").tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert load_activations(run.run, "mlp", 0).states.size
    with pytest.raises(KtraceError, match=r"damaged: .*checksum; remove that file, and the"):
        load_activations(run.run, "attn", 0)
    assert len(store.done(store.fingerprint() or {})) == len(FACTS)


def test_what_a_stranger_wrote_is_refused_in_a_line(tmp_path: Path) -> None:
    """With checksums that fit, and axes or a fingerprint that do not."""
    whole = {"sites": [*SITES], "layers": None, "positions": "all"}
    plain = StatesRecord(
        index=0,
        known_id=1000,
        layers=np.arange(2),
        positions=np.arange(3),
        roles=("", "last subject", "last"),
        states={site: np.ones((2, 3, WIDTH), np.float32) for site in SITES},
    )
    for number, (changes, kept, message) in enumerate(
        (
            (
                {"layers": np.arange(3)},
                whole,
                "damaged: .*mlp has other axes .*: 2, not 3",
            ),
            ({"positions": np.arange(4)}, whole, "damaged: .* differ in their axis position"),
            ({"roles": ("last",)}, whole, "damaged: .* differ in their axis position"),
            ({}, None, "damaged: .* does not say which states it holds"),
            ({}, {"sites": "all"}, "damaged: .* does not say which states it holds"),
        )
    ):
        run = empty_run(tmp_path / str(number))
        with run.activations("clean").writer(CLEAN_PRINT | {"activations": kept}) as writer:
            writer.add(replace(plain, **changes).row())
        with pytest.raises(KtraceError, match=message) as raised:
            load_activations(run.run, "mlp", 0)
        assert "\n" not in str(raised.value)
