"""From stores to the tidy frame."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import ktrace
from ktrace.analysis.effects import effect_tables, load_effects
from ktrace.analysis.effects_file import effects_file
from ktrace.analysis.stored import batches, survey
from ktrace.errors import KtraceError
from ktrace.store import RunFolders
from ktrace.terms import METRICS
from tests.support.stores import (
    CANDIDATES,
    CLEAN_PRINT,
    FACTS,
    N_LAYERS,
    N_SAMPLES,
    NOISE,
    NOISE_PRINT,
    clean_scores,
    known_id,
    p_corrupted,
    p_restored,
    subject,
    write_clean,
    write_corrupted,
    write_restored,
    write_run,
)

COLUMNS = [
    *("model", "known_id", "mediator", "metric", "sample", "layer", "position", "token", "role"),
    *("clean", "corrupted", "restored"),
    *("relation_id", "subject", "prompt"),
]


@pytest.fixture
def folders(tmp_path: Path) -> RunFolders:
    """A complete run of two mediators."""
    return write_run(tmp_path)


def test_the_columns_are_those_of_the_contract(folders: RunFolders) -> None:
    effects = load_effects(folders.run)
    assert list(effects.columns) == COLUMNS
    n_cells = sum(len(FACTS[index].tokens) for index in CANDIDATES) * N_SAMPLES * N_LAYERS
    assert len(effects) == 2 * n_cells * len(METRICS)
    assert set(effects["model"]) == {"toy"}
    assert set(effects["mediator"]) == {"hidden", "mlp-w3"}
    assert list(effects["metric"].unique()) == list(METRICS)
    assert [effects[name].dtype for name in COLUMNS[-6:-3]] == [np.float32] * 3
    assert effects["relation_id"].isna().all(), "these facts have none"
    of_fact = effects[["known_id", "subject", "prompt"]].drop_duplicates()
    assert sorted(map(tuple, of_fact.to_numpy().tolist())) == [
        (known_id(index), subject(index), "".join(FACTS[index].tokens)) for index in CANDIDATES
    ]


def test_every_cell_has_its_own_values(folders: RunFolders) -> None:
    by_metric = {metric: load_effects(str(folders.run), metrics=[metric]) for metric in METRICS}
    for metric, key, index in product(METRICS, ("hidden", "mlp-w3"), CANDIDATES):
        effects = by_metric[metric]
        offset = METRICS.index(metric)
        chosen = effects[(effects["mediator"] == key) & (effects["known_id"] == known_id(index))]
        restored = p_restored(index, key)
        assert len(chosen) == restored.size
        for row in chosen.itertuples():
            cell = (row.sample, row.layer, row.position)
            assert row.restored == restored[cell] + np.float32(offset)
            assert row.corrupted == p_corrupted(index)[row.sample] + offset
            assert row.clean == clean_scores(index, row.metric)[row.sample]
            assert row.token == FACTS[index].tokens[row.position]
            role = FACTS[index].roles[row.position]
            assert (row.role == role) if role else pd.isna(row.role)


def test_an_unknown_metric_is_refused(folders: RunFolders) -> None:
    with pytest.raises(KtraceError, match=r"'loss' is unknown: choose from probability, "):
        load_effects(folders.run, metrics=["loss"])


def test_positions_before_the_subject_have_no_role(folders: RunFolders) -> None:
    effects = load_effects(folders.run)
    first = effects[effects["known_id"] == known_id(0)]
    assert first.loc[first["position"] < 2, "role"].isna().all()
    assert first.loc[first["position"] >= 2, "role"].notna().all()
    assert "" not in effects["role"].cat.categories


def test_limit_keeps_the_first_facts_of_the_dataset(folders: RunFolders) -> None:
    kept = set(load_effects(folders.run, limit=2)["known_id"])
    assert kept == {known_id(0), known_id(1)}
    assert len(load_effects(folders.run, limit=99)) == len(load_effects(folders.run))


def test_a_run_folder_is_found_from_inside(
    folders: RunFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_effects(folders.run)
    monkeypatch.chdir(folders.run)
    pd.testing.assert_frame_equal(load_effects("."), expected)
    monkeypatch.chdir(folders.run.parent)
    pd.testing.assert_frame_equal(load_effects(folders.run.name), expected)
    assert ktrace.load_effects is load_effects


def test_a_folder_without_restorations_is_refused(tmp_path: Path) -> None:
    folders = write_run(tmp_path, keys=["hidden"])
    bare = folders.run.parent / "gaussian-x1-n2-seed1"
    bare.mkdir()
    with pytest.raises(KtraceError, match=r"seed1 holds no restorations: run stage="):
        load_effects(bare)
    with pytest.raises(KtraceError, match="holds no restorations of these facts"):
        load_effects(folders.run, limit=0)


@pytest.mark.parametrize("kind", ["clean", "corrupted"])
def test_restorations_without_their_runs_are_refused(folders: RunFolders, kind: str) -> None:
    store = getattr(folders, kind)
    for path in store.parts():
        path.unlink()
    with pytest.raises(KtraceError, match=r"lacks the clean or corrupted run of .*known_id="):
        load_effects(folders.run)


def test_stores_of_different_settings_are_never_mixed(tmp_path: Path) -> None:
    other = {**CLEAN_PRINT, "model": {"identity": "other"}}
    changed = {**NOISE_PRINT, "noise": {"multiple": 3.0, "seed": 2}}
    for name, prints in {
        "clean": (other, NOISE_PRINT, NOISE_PRINT),
        "corrupted": (CLEAN_PRINT, changed, NOISE_PRINT),
        "restored": (CLEAN_PRINT, NOISE_PRINT, changed),
    }.items():
        folders = RunFolders(tmp_path / name / "toy" / "made-up" / NOISE)
        write_clean(folders, fingerprint=prints[0])
        write_corrupted(folders, CANDIDATES, prints[1])
        write_restored(folders, "hidden", CANDIDATES, prints[2])
        with pytest.raises(KtraceError, match="different settings") as caught:
            load_effects(folders.run)
        shown = ('"made up"', '"other"') if name == "clean" else ('"seed": 1', '"seed": 2')
        assert all(value in str(caught.value) for value in shown)


def test_an_unfinished_run_is_refused_unless_partial_is_asked(tmp_path: Path) -> None:
    folders = write_run(tmp_path, keys=["hidden"])
    write_restored(folders, "mlp-w3", CANDIDATES[:1])
    lacking = r"is not complete \(mlp-w3: 1 of 5 candidates are restored\): .*partial=True"
    with pytest.raises(KtraceError, match=lacking):
        load_effects(folders.run)
    effects = load_effects(folders.run, partial=True)
    facts = effects.groupby("mediator", observed=True)["known_id"].nunique()
    assert dict(facts) == {"hidden": 5, "mlp-w3": 1}
    # Of the first fact, nothing is missing.
    assert set(load_effects(folders.run, limit=1)["mediator"]) == {"hidden", "mlp-w3"}


def says_limit(number: int | None) -> dict[str, Any]:
    """What a part says of the run that wrote it."""
    return {"run": "some", "config": {"dataset": {"limit": number}, "shard": "1/2"}}


def test_one_shard_of_two_is_refused_unless_partial_is_asked(tmp_path: Path) -> None:
    """Or a run that was killed between two facts: all that is there is whole, but it is not all."""
    folders = RunFolders(tmp_path / "toy" / "made-up" / NOISE)
    write_clean(folders, (0, 2), provenance=says_limit(None))
    write_corrupted(folders, (0,))
    write_restored(folders, "hidden", (0,))
    with pytest.raises(KtraceError, match=r"clean holds 2 of 6 facts\): .*partial=True"):
        load_effects(folders.run)
    assert set(load_effects(folders.run, partial=True)["known_id"]) == {known_id(0)}
    assert set(load_effects(folders.run, limit=1)["known_id"]) == {known_id(0)}
    write_clean(folders, (1, 3, 4, 5), provenance=says_limit(None))
    write_corrupted(folders, (1, 3, 4, 5))
    write_restored(folders, "hidden", (1, 3, 4, 5))
    assert set(load_effects(folders.run)["known_id"]) == {known_id(i) for i in CANDIDATES}


def test_a_run_of_some_facts_is_whole_when_it_has_them(tmp_path: Path) -> None:
    folders = RunFolders(tmp_path / "toy" / "made-up" / NOISE)
    write_clean(folders, (0, 1), provenance=says_limit(2))
    write_corrupted(folders, (0, 1))
    write_restored(folders, "hidden", (0, 1))
    assert set(load_effects(folders.run)["known_id"]) == {known_id(0), known_id(1)}
    write_clean(folders, (2,), provenance=says_limit(9))  # and was raised, and stopped
    with pytest.raises(KtraceError, match=r"clean holds 3 of 6 facts"):
        load_effects(folders.run)


def test_a_candidate_that_is_not_yet_corrupted_is_missing(tmp_path: Path) -> None:
    folders = RunFolders(tmp_path / "toy" / "made-up" / NOISE)
    write_clean(folders)
    write_corrupted(folders, CANDIDATES[:1])
    write_restored(folders, "hidden", CANDIDATES[:1])
    with pytest.raises(KtraceError, match=r"corrupted holds 1 of 5 candidates"):
        load_effects(folders.run)
    assert set(load_effects(folders.run, partial=True)["known_id"]) == {known_id(0)}


def test_a_file_of_effects_appears_whole_or_not_at_all(folders: RunFolders) -> None:
    found = survey(folders, whole_dataset=True)
    path = folders.analysis / "effects.parquet"

    def write_and_fail() -> None:
        with effects_file(path) as add:
            for batch in batches(found, "hidden"):
                for table in effect_tables(found, "hidden", batch):
                    add(table)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert list(folders.analysis.iterdir()) == []
