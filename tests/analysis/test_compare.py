"""Runs side by side: pairs of shared facts, relative depth, and what is no run."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ktrace.analysis.compare import compare
from ktrace.analysis.paired import depth_grid
from ktrace.errors import KtraceError
from ktrace.store import RunFolders
from tests.support.command import Ktrace
from tests.support.figures import KINDS, NOT_SAVED
from tests.support.stores import (
    CANDIDATES,
    FACTS,
    N_LAYERS,
    NOISE,
    p_corrupted,
    p_restored,
    write_clean,
    write_corrupted,
    write_restored,
    write_run,
)


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """The run `toy`, and `deep`: twice the layers, two of the facts, effects larger by 0.125."""
    write_run(tmp_path, keys=["hidden"])
    deep = RunFolders(tmp_path / "outputs" / "deep" / "made-up" / "gaussian-x3-n2-seed1")
    write_clean(deep)
    write_corrupted(deep, CANDIDATES)
    scores = {}
    for index in CANDIDATES:
        twice = np.repeat(p_restored(index, "hidden"), 2, axis=1)
        # Linear between layers 0 and 5, so that layers 0, 2.5 and 5 are known.
        twice[:] = np.linspace(0, 0.5, 2 * N_LAYERS)[None, :, None]
        scores[index] = twice + p_corrupted(index)[:, None, None]
    write_restored(deep, "hidden", CANDIDATES, scores=scores)
    write_restored(deep, "mlp-w3", CANDIDATES, scores=scores)
    return tmp_path / "outputs"


@pytest.fixture
def unsaved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving figures takes most of a comparison; tests of numbers do without."""
    monkeypatch.setattr("ktrace.analysis.figures.style.save", lambda *_: NOT_SAVED)


@pytest.mark.usefixtures("unsaved")
def test_differences_are_paired_by_fact_at_relative_depth(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ktrace.analysis.intervals.FEWEST_FACTS", 2)
    found = compare([f"{outputs}/toy/*/*", f"{outputs}/*/*/*"], outputs / "comparison")
    assert found.runs["run"].tolist() == ["toy", "deep"]
    table = found.differences
    assert set(table["mediator"]) == {"hidden"}, "nothing to compare mlp-w3 with"
    assert set(table["baseline"]) == {"toy"}
    assert sorted(set(table["depth"])) == [0, 0.5, 1]
    for role in ("last subject", "first subject", "further"):
        rows = table[table["role"] == role].sort_values("depth")
        apart = []
        for index in CANDIDATES:
            places = [i for i, name in enumerate(FACTS[index].roles) if name == role]
            if places:
                toy = p_restored(index, "hidden") - p_corrupted(index)[:, None, None]
                apart.append(np.linspace(0, 0.5, 3) - toy.mean(axis=0)[:, places].mean(axis=1))
        np.testing.assert_allclose(rows["difference"], np.mean(apart, axis=0), atol=1e-6)
        assert set(rows["n_facts"]) == {len(apart)}
        # Student's t on one side of the pairs' own spread at least, in the range of two effects.
        quantile = {2: 12.7062, 3: 4.3027}[len(apart)]
        error = np.std(apart, axis=0, ddof=1) / np.sqrt(len(apart))
        for layer, (_, row) in enumerate(rows.iterrows()):
            below, above = (row["difference"] - row["ci_low"], row["ci_high"] - row["difference"])
            inner = min(below, above, key=lambda side: abs(side - quantile * error[layer]))
            clipped = -2 in (row["ci_low"], row["ci_high"]) or 2 in (row["ci_low"], row["ci_high"])
            assert clipped or inner == pytest.approx(quantile * error[layer], abs=1e-5)
            assert -2 <= row["ci_low"] < row["ci_high"] <= 2


@pytest.mark.usefixtures("unsaved")
def test_only_shared_facts_are_paired(outputs: Path) -> None:
    found = compare([f"{outputs}/deep/*/*", f"{outputs}/toy/*/*"], outputs / "c", limit=2)
    assert found.runs["n_shared"].tolist() == [2, 2]
    assert np.isnan(found.runs["ate_difference"][0])
    # Both runs were corrupted alike.
    assert found.runs["ate_difference"][1] == 0
    assert found.differences["n_facts"].max() == 2


@pytest.mark.parametrize(("held", "shared"), [((0, 1), [0]), ((0, 3), [0, 3]), ((1, 4), [])])
def test_unfinished_runs_are_paired_on_the_facts_that_both_hold(
    tmp_path: Path, held: tuple[int, ...], shared: list[int]
) -> None:
    names = ("first", "second")
    for name, indices in zip(names, ((0, 3), held), strict=True):
        folders = RunFolders(tmp_path / "outputs" / name / "made-up" / NOISE)
        write_clean(folders)
        write_corrupted(folders, CANDIDATES)
        write_restored(folders, "hidden", indices)
    found = compare([f"{tmp_path}/outputs/*/*/*"], tmp_path / "comparison", partial=True)
    assert found.runs["n_shared"].tolist() == [5, 5], "all are traced in both"
    note = "hidden: second shares no traced fact with first"
    last = found.differences[found.differences["role"] == "last"]
    assert set(last["n_facts"]) == ({len(shared)} if shared else set())
    assert (note in found.notes) == (not shared)
    assert (tmp_path / "comparison" / "difference-hidden.png").exists() == bool(shared)


def test_tables_and_figures_are_written(outputs: Path) -> None:
    folder = outputs / "comparison"
    folder.mkdir()
    for old in ("models-attn.png", "difference-attn.pdf", "mine.png"):
        (folder / old).touch()
    found = compare([f"{outputs}/*/*/*"], folder)
    stems = ["models-hidden", "models-mlp-w3", "difference-hidden", "methods"]
    figures = {f"{stem}.{kind}" for stem in stems for kind in KINDS}
    tables = {"runs.csv", "aie.csv", "differences.csv", "methods.csv", "agreement.csv"}
    assert {path.name for path in found.files} == figures | tables
    assert {path.name for path in folder.iterdir()} == figures | tables | {"mine.png"}
    aie = pd.read_csv(folder / "aie.csv")
    layers = aie.groupby("model")["layer"].max()
    assert dict(layers) == {"deep": 5, "toy": 2}
    assert (aie.groupby("model")["depth"].max() == 1).all()


@pytest.mark.usefixtures("unsaved")
def test_folders_that_are_no_runs_are_passed_over(outputs: Path) -> None:
    (outputs / "sweeps" / "today" / "0").mkdir(parents=True)
    assert len(compare([f"{outputs}/*/*/*"], outputs / "comparison").runs) == 2
    # Of clean runs, of states, and of one noise.
    with pytest.raises(
        KtraceError, match=r"toy.* matches one run .*/toy/made-up/.*: trace another"
    ):
        compare([f"{outputs}/toy/*/*"], outputs / "comparison")
    with pytest.raises(
        KtraceError, match=r"sweeps.* matches no run with restorations \(other folders: 1\)"
    ):
        compare([f"{outputs}/sweeps/*"], outputs / "comparison")
    with pytest.raises(KtraceError, match=r"none/\*' matches nothing: a run's folder is"):
        compare([f"{outputs}/none/*"], outputs / "comparison")


def test_depth_is_that_of_the_shallower_model() -> None:
    np.testing.assert_allclose(depth_grid(12, 5), [0, 0.25, 0.5, 0.75, 1])
    assert depth_grid(1, 5).tolist() == [0]


@pytest.mark.usefixtures("unsaved")
def test_the_command_line(outputs: Path, ktrace: Ktrace) -> None:
    ended = ktrace("stage=compare", f"runs={outputs}/*/*/*", f"output_dir={outputs}")
    assert ended.code == 0, ended.stderr
    assert "minus deep" in ended.stdout
    assert (outputs / "comparison" / "differences.csv").is_file()
