"""stage=verify: what is wrong in stores, and what becomes of it."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import pytest

from ktrace.config import RunConfig, Stage
from ktrace.errors import KtraceError
from ktrace.pipeline import run as pipeline
from ktrace.pipeline.verify import verify
from ktrace.store import RunFolders
from ktrace.store.claims import Claims
from ktrace.store.opened import checksum
from ktrace.terms import ClaimKind
from tests.support.stores import write_run

CONFIG = RunConfig(stage=Stage.verify)


@pytest.fixture
def folders(tmp_path: Path) -> RunFolders:
    return write_run(tmp_path, ("hidden",))


def wrong(folders: RunFolders, config: RunConfig = CONFIG) -> dict[str, str]:
    rows = verify(config, folders).rows
    return {Path(path).name: fault for path, fault, _, _ in rows}


def test_a_sound_run_has_nothing_wrong(folders: RunFolders) -> None:
    found = verify(CONFIG, folders)
    assert (found.rows, found.problem) == ([], "")
    assert found.title == "4 stores, 12 parts: 0 things wrong, 0 mended"


def spoil(folders: RunFolders) -> dict[str, str]:
    """One of each kind; by name, what is wrong with it."""
    states = folders.activations("clean")
    damaged = states.parts()[0]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    swapped = folders.corrupted.folder / folders.clean.parts()[0].name
    shutil.copyfile(folders.clean.parts()[0], swapped)
    renamed = folders.restored("hidden").parts()[0]
    named = renamed.rename(renamed.with_name("part-000077-00000000.h5"))
    note = folders.clean.folder / "notes.txt"
    note.write_text("mine")
    dead = folders.run / "analysis" / ".aie.csv.0123abcd.tmp"
    dead.parent.mkdir()
    dead.touch()
    os.utime(dead, (1, 1))
    (folders.clean.folder / ".claims").touch()
    return {
        damaged.name: "damaged",
        swapped.name: "damaged",
        named.name: "foreign",
        note.name: "foreign",
        dead.name: "leftover",
        ".claims": "leftover",
    }


def test_each_kind_is_told_and_mended(folders: RunFolders) -> None:
    expected = spoil(folders)
    before = {path: path.stat().st_mtime_ns for path in folders.run.parent.rglob("*.h5")}
    assert wrong(folders) == expected
    assert "6 things are wrong: mend=true" in verify(CONFIG, folders).problem
    assert {p: p.stat().st_mtime_ns for p in folders.run.parent.rglob("*.h5")} == before
    mend = replace(CONFIG, mend=True)
    assert "2 things are still wrong" in verify(mend, folders).problem
    assert wrong(folders) == {name: why for name, why in expected.items() if why == "foreign"}
    assert len(list(folders.run.parent.rglob("damaged-*.h5"))) == 2


def test_a_store_in_use_is_not_mended(folders: RunFolders) -> None:
    expected = spoil(folders)
    states = folders.activations("clean")
    claims = Claims(states.folder, ClaimKind.files)
    assert claims.take([1])
    used = replace(CONFIG, mend=True, claims=ClaimKind.files)
    verify(used, folders)
    assert set(wrong(folders, used)) >= {n for n, why in expected.items() if why == "foreign"}
    assert not list(states.folder.glob("damaged-*"))
    claims.close()


def test_everything_below_a_folder(folders: RunFolders, tmp_path: Path) -> None:
    spoil(folders)
    config = replace(CONFIG, runs=str(tmp_path / "outputs"))
    elsewhere = RunFolders(tmp_path / "none" / "x" / "y")
    assert len(wrong(elsewhere, config)) == 6
    with pytest.raises(KtraceError, match="no store is there"):
        verify(CONFIG, elsewhere)
    assert pipeline.verify is verify


def test_checksums_of_single_layers_are_held_to_the_layers(folders: RunFolders) -> None:
    """They are what is looked at where one layer is read without the others."""
    part = folders.activations("clean").parts()[0]
    with h5py.File(part, "r+") as file:
        sums = file["hidden/layer_crc32"]
        sums[0] += 1
        sums.attrs["crc32"] = checksum(sums[()])
    assert wrong(folders) == {part.name: "damaged"}
