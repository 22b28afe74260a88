"""Typed records, through a store and back."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ktrace.store import (
    ACTIVATIONS,
    CLEAN,
    CORRUPTED,
    RESTORED,
    CleanRecord,
    CorruptedRecord,
    RestoredRecord,
    RunFolders,
    StatesRecord,
    Store,
)
from ktrace.store import store as store_module
from ktrace.store.schema import Schema
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
    places=np.array([0, 5, 6, -2]),
    scores={metric: np.full((2, 3, 1, 4), n, np.float32) for n, metric in enumerate(METRICS)},
)
CLEAN_STATES = StatesRecord(
    index=3,
    known_id=-7,
    layers=np.array([1, 4]),
    positions=np.array([0, 2]),
    roles=("", "last"),
    states={site: np.full((2, 2, 3), 0.5, dtype=np.float16) for site in SITES},
)
CORRUPTED_STATES = replace(
    CLEAN_STATES,
    states={site: np.full((5, 2, 2, 3), n, dtype=np.uint16) for n, site in enumerate(SITES)},
)
ROOM: dict[str, tuple[Schema, Any]] = {
    "clean": (CLEAN, CLEAN_RECORD),
    "corrupted": (CORRUPTED, CORRUPTED_RECORD),
    "restored": (RESTORED, RESTORED_RECORD),
    "clean states": (ACTIVATIONS["clean"], CLEAN_STATES),
    "corrupted states": (ACTIVATIONS["corrupted"], CORRUPTED_STATES),
}


def same(found: Any, stored: Any) -> bool:
    """Equal in value and type; NaN equals itself."""
    if isinstance(stored, dict):
        return found.keys() == stored.keys() and all(same(found[k], stored[k]) for k in stored)
    if isinstance(stored, np.ndarray):
        return found.dtype == stored.dtype and np.array_equal(found, stored)
    return type(found) is type(stored) and (found == stored or found != found)


@pytest.mark.parametrize("kind", ROOM)
def test_a_record_comes_back_as_it_went_in(tmp_path: Path, kind: str) -> None:
    schema, record = ROOM[kind]
    store = Store(tmp_path, schema)
    with store.writer({}) as writer:
        writer.add(record.row())
    [found] = type(record).read(store, *(SITES if "states" in kind else ()))
    for field in fields(record):
        assert same(getattr(found, field.name), getattr(record, field.name)), field.name


def test_a_row_holds_every_column() -> None:
    for schema, record in ROOM.values():
        assert record.row().keys() == schema.keys()
    assert RESTORED_RECORD.shape == (2, 3, 1, 4)


def test_states_are_read_of_the_sites_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are by far the largest columns of a part."""
    store = RunFolders(tmp_path / "model" / "dataset" / "noise").activations("clean")
    with store.writer({"model": {"path": "m"}, "dataset": {"sha256": "d"}}) as writer:
        writer.add(CLEAN_STATES.row())
        writer.add(replace(CLEAN_STATES, index=4, known_id=5).row())
    read: list[str] = []
    original = store_module.read_part

    def noting(path: Path, schema: Any, names: Any, expected: Any = None) -> Any:
        read.extend(names)
        return original(path, schema, names, expected)

    monkeypatch.setattr(store_module, "read_part", noting)
    one, other = StatesRecord.read(store, "attn")
    assert {"attn"} == set(read) & set(SITES)
    assert one.states.keys() == {"attn"}
    assert [one.index, other.index] == [CLEAN_STATES.index, 4]
    read.clear()
    assert [found.states for found in StatesRecord.read(store)] == [{}, {}]
    assert not set(read) & set(SITES)
