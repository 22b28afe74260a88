"""stage=status and stage=compact: what is said of a run, and what becomes of its parts."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from ktrace.config import RunConfig, Stage
from ktrace.errors import KtraceError
from ktrace.pipeline import upkeep as upkeep_module
from ktrace.pipeline.upkeep import compact_run, status_of
from ktrace.store import RunFolders
from tests.support.claimants import claimed_elsewhere
from tests.support.stores import CANDIDATES, FACTS, write_clean, write_corrupted, write_restored

KEYS = ("hidden", "mlp-w3")
CONFIG = RunConfig()


@pytest.fixture
def folders(tmp_path: Path) -> RunFolders:
    """A run that is under way: all facts clean, two of five candidates corrupted, one restored."""
    made = RunFolders(tmp_path / "toy" / "made-up" / "gaussian-x3-n2-seed1")
    write_clean(made)
    write_corrupted(made, CANDIDATES[:2])
    write_restored(made, "hidden", CANDIDATES[:1])
    return made


def cells(folders: RunFolders, config: RunConfig = CONFIG) -> dict[str, list[str]]:
    found = status_of(config, folders, KEYS)
    assert found.columns == ("store", "facts", "done", "claimed", "by", "left", "seconds left")
    return {name: list(others) for name, *others in found.rows}


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_run_that_is_under_way(folders: RunFolders) -> None:
    before = files(folders.run.parent)
    found = cells(folders)
    assert files(folders.run.parent) == before, "asking leaves nothing behind"
    n_facts = str(len(FACTS))
    assert found["clean"] == [n_facts, n_facts, "0", "", "0", "0"]
    assert found["corrupted"][:5] == ["5", "2", "0", "", "3"]
    assert int(found["corrupted"][5]) >= 1
    assert found["restored/hidden"][:5] == ["2", "1", "0", "", "1"]
    assert found["restored/mlp-w3"] == ["2", "0", "0", "", "2", "?"]
    assert "activations/clean" not in found
    limited = replace(CONFIG, dataset=replace(CONFIG.dataset, limit=2))
    assert cells(folders, limited)["clean"] == ["2", "2", "0", "", "0", "0"]
    assert cells(folders, limited)["corrupted"][:3] == ["2", "2", "0"]


def test_who_works_on_it(folders: RunFolders) -> None:
    with claimed_elsewhere(folders.corrupted.folder, [3, 4]) as other:
        assert cells(folders)["corrupted"][2:4] == ["2", f"process {other.pid}"]
        other.communicate()
    assert cells(folders)["corrupted"][2:4] == ["0", ""]


def test_a_run_of_another_name_is_refused(tmp_path: Path) -> None:
    folders = RunFolders(tmp_path / "toy" / "made-up" / "gaussian-x3-n2-seed1")
    for asked in (lambda: status_of(CONFIG, folders, KEYS), lambda: compact_run(folders)):
        with pytest.raises(KtraceError, match=r"output_dir: .* holds no store"):
            asked()
    assert list(tmp_path.iterdir()) == []


def test_compaction_tells_of_each_store(
    folders: RunFolders, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    genuine = upkeep_module.compact
    busy = folders.corrupted.folder
    monkeypatch.setattr(
        upkeep_module, "compact", lambda store: None if store.folder == busy else genuine(store)
    )
    with caplog.at_level(logging.WARNING):
        found = compact_run(folders)
    rows = {name: tuple(others) for name, *others in found.rows}
    assert rows["clean"] == (str(len(FACTS)), "1")
    assert rows["corrupted"][1] == "left as it is"
    [line] = caplog.messages
    assert line.startswith(f"{busy} is left as it is: another process works on it")
    assert {Stage.status.value, Stage.compact.value} == {"status", "compact"}
    assert not list(folders.run.glob(".claims"))
