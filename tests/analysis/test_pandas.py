"""Frames of effects in plain pandas: put together, grouped, and the numbers of `aie.csv`.

Warnings of pandas are errors here: what it warns of today, it changes tomorrow.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import ktrace
from ktrace.analysis.analyze import analyze
from ktrace.analysis.rows import Averaging, rows
from ktrace.errors import KtraceError
from ktrace.store import RunFolders
from ktrace.terms import METRICS
from tests.support.places import ROOT
from tests.support.stores import (
    CANDIDATES,
    NOISE,
    known_id,
    write_clean,
    write_corrupted,
    write_restored,
    write_run,
)

pytestmark = [
    pytest.mark.filterwarnings("error"),
    # Of pandas 2 where one run has relations and the other none: both its answers are right here.
    pytest.mark.filterwarnings("ignore:The behavior of DataFrame concatenation:FutureWarning"),
]
CELL = ["mediator", "role", "layer"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("toy")).run


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model, of facts that have relations, and another mediator."""
    folders = RunFolders(tmp_path_factory.mktemp("other") / "other" / "made-up" / NOISE)
    write_clean(folders, relations={index: f"r{index % 2}" for index in CANDIDATES})
    write_corrupted(folders, CANDIDATES)
    write_restored(folders, "attn-w3", CANDIDATES)
    return folders.run


def snippet(heading: str, name: str = "analysis.md") -> str:
    """The first Python below a heading of a document."""
    text = (ROOT / "docs" / name).read_text("utf-8").split(f"\n{heading}\n")[1]
    return re.findall(r"```python\n(.+?)```", text, re.DOTALL)[0]


def texts(column: "pd.Series[Any]") -> list[str]:
    return ["" if pd.isna(text) else str(text) for text in column]


def test_types_are_those_that_compute(toy: Path) -> None:
    effects = ktrace.load_effects(toy)
    kinds = {name: str(dtype) for name, dtype in effects.dtypes.items()}
    assert kinds["known_id"] == "int64"
    assert {kinds[name] for name in ("sample", "layer", "position")} == {"int16"}
    assert {kinds[name] for name in ("clean", "corrupted", "restored")} == {"float32"}
    assert isinstance(effects.index, pd.RangeIndex)
    for name, words in (("metric", METRICS), ("role", rows("rome"))):
        assert list(effects[name].cat.categories) == list(words)


def test_frames_of_two_runs_are_one_frame(toy: Path, other: Path) -> None:
    frames = [ktrace.load_effects(run) for run in (toy, other)]
    both = pd.concat(frames, ignore_index=True)
    assert len(both) == sum(map(len, frames))
    # Their categories are the same in every run, and stay; other text is text again.
    for name in ("metric", "role"):
        assert both[name].dtype == frames[0][name].dtype
    for name in ("model", "mediator", "token", "relation_id", "subject", "prompt"):
        assert texts(both[name]) == [text for frame in frames for text in texts(frame[name])]
        assert {type(text) for text in both[name].dropna()} == {str}
    for name in ("known_id", "sample", "layer", "position"):
        assert both[name].dtype == frames[0][name].dtype
    averages = ktrace.average(both, by=["model", *CELL])
    for frame, name in zip(frames, ("toy", "other"), strict=True):
        own = averages[averages["model"] == name].reset_index(drop=True)
        alone = ktrace.average(frame)
        assert own[CELL].astype(str).equals(alone[CELL].astype(str))
        np.testing.assert_array_equal(own["aie"], alone["aie"])
        assert own["n_facts"].equals(alone["n_facts"])
    assert list(averages["role"].unique()) == [
        role for role in rows("rome") if role in set(averages["role"])
    ]


def test_heads_beside_what_has_none(toy: Path) -> None:
    effects = ktrace.load_effects(toy)
    one = effects[effects["mediator"] == "hidden"]
    heads = one.assign(mediator="head", head=pd.array([1] * len(one), dtype="Int16"))
    both = pd.concat([one, heads])
    assert both["head"].dtype == "Int16"
    assert both["head"].isna().sum() == len(one)
    averages = ktrace.average(both).set_index(CELL)["aie"]
    np.testing.assert_array_equal(averages["head"], averages["hidden"])


def test_what_would_be_averaged_together_is_refused(toy: Path, other: Path) -> None:
    frames = [ktrace.load_effects(run) for run in (toy, other)]
    both = pd.concat(frames)
    with pytest.raises(
        KtraceError, match=r"^the frame holds the models toy, other: add 'model' to"
    ):
        ktrace.average(both)
    twice = pd.concat([frames[0], frames[0]])
    message = rf"has known_id={known_id(0)} twice at layer 0, position 0, sample 0 of hidden: give"
    for frame in (twice, twice.drop(columns="prompt"), twice[twice["layer"] == 0]):
        with pytest.raises(KtraceError, match=message):
            ktrace.average(frame, by=["role"])
    apart = pd.concat([frames[0].assign(noise=name) for name in ("a", "b")])
    averages = ktrace.average(apart, by=["noise", *CELL])
    np.testing.assert_array_equal(
        averages[averages["noise"] == "b"]["aie"], ktrace.average(frames[0])["aie"]
    )
    # What was averaged over samples or positions before has nothing twice to tell.
    cells = frames[0].groupby(["known_id", *CELL], observed=True)
    coarse = cells[["clean", "corrupted", "restored"]].mean().reset_index()
    assert len(ktrace.average(coarse)) == len(ktrace.average(frames[0]))


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("pool", ["facts", "positions"])
def test_the_recipes_of_the_document_give_the_table(
    pool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = write_run(tmp_path)
    run = folders.run
    analyze(run, averaging=Averaging(pool=pool))
    place = tmp_path / "outputs" / "tiny" / "facts"
    place.parent.mkdir()
    place.symlink_to(run.parent)
    (run.parent / "gaussian-x3-n10-seed1").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(snippet("### With pandas alone"), names)
    table = pd.read_csv(run / "analysis" / "aie.csv")
    expected = table[table["metric"] == "probability"].set_index(CELL)["aie"]
    found = names["aie" if pool == "facts" else "by_position"]
    assert found.index.names == CELL
    assert len(found) == len(expected)
    for cell, value in found.items():
        assert value == pytest.approx(expected[cell], abs=1e-6)
    assert not np.allclose(names["aie"], names["by_position"], atol=1e-4), "they differ somewhere"
