"""Typed records, through a store and back."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ktrace.store import (
    CLEAN,
    CORRUPTED,
    RESTORED,
    CleanRecord,
    CorruptedRecord,
    RestoredRecord,
    RunFolders,
    Store,
)
from ktrace.store import store as store_module
from ktrace.terms import METRICS, SITES

CLEAN_RECORD = CleanRecord(
    index=3,
    known_id=-7,
    prompt="Zü is",
    subject="Zü",
    attribute=" in",
    relation_id="P1",
    left_out="",
    is_candidate=True,
    input_ids=np.array([5, 9]),
    tokens=("Zü", " is"),
    offsets=np.array([[0, 2], [2, 5]]),
    roles=("last subject", "last"),
    span=(0, 1),
    answer_ids=np.array([4]),
    predicted_ids=np.array([], dtype=np.int64),
    predicted="",
    predicted_probability=0.25,
    probability=float("nan"),
    states={site: np.full((2, 2, 3), 0.5, dtype=np.float16) for site in SITES},
)
CORRUPTED_RECORD = CorruptedRecord(
    index=3,
    known_id=-7,
    left_out="",
    sigma=0.1,
    noise_level=0.30000000000000004,
    foil_ids=np.array([[4, 5], [6, 7]]),
    foil=(" Ö", ""),
    clean={metric: np.array([n, 0.5], np.float32) for n, metric in enumerate(METRICS)},
    corrupted={metric: np.array([n, 0.25], np.float32) for n, metric in enumerate(METRICS)},
)
RESTORED_RECORD = RestoredRecord(
    index=3,
    known_id=-7,
    together="hidden mlp-w3",
    scores={metric: np.full((2, 3, 4), n, np.float32) for n, metric in enumerate(METRICS)},
)
ROOM = {"clean": CLEAN_RECORD, "corrupted": CORRUPTED_RECORD, "restored": RESTORED_RECORD}


def same(found: Any, stored: Any) -> bool:
    """Equal in value and type; NaN equals itself."""
    if isinstance(stored, dict):
        return found.keys() == stored.keys() and all(same(found[k], stored[k]) for k in stored)
    if isinstance(stored, np.ndarray):
        return found.dtype == stored.dtype and np.array_equal(found, stored)
    return type(found) is type(stored) and (found == stored or found != found)


@pytest.mark.parametrize("kind", ROOM)
def test_a_record_comes_back_as_it_went_in(tmp_path: Path, kind: str) -> None:
    record = ROOM[kind]
    store = Store(tmp_path, {"clean": CLEAN, "corrupted": CORRUPTED, "restored": RESTORED}[kind])
    with store.writer({}) as writer:
        writer.add(record.row())
    [found] = type(record).read(store)
    for field in fields(record):
        value, stored = getattr(found, field.name), getattr(record, field.name)
        assert same(value, {} if field.name == "states" else stored), field.name


def test_a_row_holds_every_column() -> None:
    assert CLEAN_RECORD.row().keys() == CLEAN.keys()
    assert CORRUPTED_RECORD.row().keys() == CORRUPTED.keys()
    assert RESTORED_RECORD.row().keys() == RESTORED.keys()
    assert RESTORED_RECORD.shape == (2, 3, 4)


def test_states_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are by far the largest columns of a part."""
    folders = RunFolders(tmp_path / "model" / "dataset" / "noise")
    with folders.clean.writer({}) as writer:
        writer.add(CLEAN_RECORD.row())
    read: list[str] = []
    original = store_module.read_part

    def noting(path: Path, schema: Any, names: Any, expected: Any) -> Any:
        read.extend(names)
        return original(path, schema, names, expected)

    monkeypatch.setattr(store_module, "read_part", noting)
    [found] = CleanRecord.read(folders.clean)
    assert set(read) == CLEAN.keys() - set(SITES)
    assert found.states == {}
