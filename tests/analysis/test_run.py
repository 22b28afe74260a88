"""`ktrace.Run`: a stored run by its folder, and the one door for such folders."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ktrace
from ktrace.analysis.analyze import analyze
from ktrace.errors import KtraceError
from tests.support.hostile import write_hostile_run
from tests.support.stores import write_run

BY = ["mediator", "role"]
READERS: dict[str, Callable[[Path], object]] = {
    "Run": ktrace.Run,
    "load_effects": ktrace.load_effects,
    "average": ktrace.average,
    "load_activations": lambda folder: ktrace.load_activations(folder, "mlp", 0),
    "to_xarray": ktrace.to_xarray,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is analysed, with figures made up."""
    run = write_run(tmp_path_factory.mktemp("run")).run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ktrace.analysis.figures.processes._processors", lambda: 1)
        analyze(run)
    return run


@pytest.fixture(scope="module")
def run(folder: Path) -> ktrace.Run:
    return ktrace.Run(folder)


def test_what_a_run_gives_is_what_the_functions_give(folder: Path, run: ktrace.Run) -> None:
    same = pd.testing.assert_frame_equal
    same(run.effects(["logit"], limit=2), ktrace.load_effects(folder, 2, ["logit"]))
    same(run.average(BY, "kl"), ktrace.average(folder, BY, "kl"))
    same(ktrace.average(run, detail=True), run.average(detail=True))
    states, known_ids = run.activations("mlp", 1, role="last")
    expected = ktrace.load_activations(folder, "mlp", 1, "last")
    assert (states == expected.states).all()
    assert known_ids.tolist() == expected.known_ids.tolist()
    # Numbers as they come out of arrays.
    one, _ = run.activations("mlp", np.int64(1), "last", known_id=known_ids[0])
    assert (one == states[:1]).all()
    assert run.effects(limit=np.int64(1))["known_id"].nunique() == 1
    table = pd.read_csv(folder / "analysis" / "candidates.csv", keep_default_na=False)
    found = run.candidates()
    assert list(found.columns) == list(table.columns)
    assert found["known_id"].tolist() == table["known_id"].tolist()
    assert found["left_out"].tolist() == table["left_out"].tolist()
    assert run.layers() == run.summary()["layers"]
    assert run.summary()["n_candidates"] == 5
    assert (run.model, run.dataset, run.noise) == folder.parts[-3:]
    figures = run.figures()
    assert {"aie", "lines", "aie-hidden", "aie-mlp-w3"} <= figures.keys()
    assert all(path.suffix == ".png" and path.is_file() for path in figures.values())


def test_it_is_one_line_and_a_table_with_a_figure(folder: Path, run: ktrace.Run) -> None:
    assert repr(run) == f"<Run {folder}: hidden, mlp-w3>"
    shown = run._repr_html_()
    assert "<td" in shown
    assert "hidden, mlp-w3" in shown
    assert "data:image/png;base64," in shown


def test_a_run_that_is_not_analysed_yet_says_so(tmp_path: Path) -> None:
    run = ktrace.Run(write_run(tmp_path).run)
    assert "<img" not in run._repr_html_()
    for read in (run.figures, run.layers, run.summary):
        with pytest.raises(KtraceError, match=r"seed1 has no analysis: run stage=analyze$"):
            read()
    (run.folder / "analysis").mkdir()
    with pytest.raises(KtraceError, match=r"layers\.json does not exist: run stage=analyze$"):
        run.layers()
    for content in ("{", "[1]", "\0"):
        (run.folder / "analysis" / "layers.json").write_text(content)
        with pytest.raises(KtraceError, match=r"^damaged: .*layers\.json"):
            run.layers()


def test_names_of_folders_cannot_act_in_a_notebook(tmp_path: Path) -> None:
    shown = ktrace.Run(write_hostile_run(tmp_path).run)._repr_html_()
    assert "<i>to" not in shown
    assert "&lt;i&gt;to&amp;y" in shown


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_run_is_refused_with_those_that_are_near(folder: Path, name: str) -> None:
    if name == "to_xarray":
        pytest.importorskip("xarray")
    root, states = folder.parents[2], folder.parent / "activations" / "corrupted"
    states.mkdir(exist_ok=True)  # beside those of the clean runs
    own = "toy/made-up/gaussian-x3-n2-seed1"
    refused = {
        root: f"{root} is not the folder of a run, .*; below {root} there are {own}$",
        root / "toy": r"toy is not the folder of a run, .* made-up/gaussian-x3-n2-seed1$",
        folder.parent: r"made-up is not the folder of a run, .* are gaussian-x3-n2-seed1$",
        folder.parent / "clean": r"clean is not the folder of a run.*; there is none below ",
        states: r"corrupted is not the folder of a run, .*; there is none below ",
        folder / "analysis": rf"analysis is not the folder of a run.*this one is {folder}$",
        folder / "analysis" / "aie.csv": rf"aie\.csv is a file: .*this one is {folder}$",
        folder.parent / "seed2": r"seed2 does not exist: .*<noise>; below .*made-up there are gau",
        root / "gpt2" / "a" / "b": rf"gpt2/a/b does not exist: .*; below {root} there are {own}$",
    }
    for place, message in refused.items():
        with pytest.raises(KtraceError, match=message) as raised:
            READERS[name](place)
        assert "\n" not in str(raised.value)


def test_of_many_runs_a_few_are_named(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / "toy" / "data" / f"noise{number}").mkdir(parents=True)
    (tmp_path / "toy" / "data" / "clean").mkdir()
    named = ", ".join(f"data/noise{number}" for number in range(5))
    with pytest.raises(KtraceError, match=f"there are {named}, \\.\\.\\.$"):
        ktrace.Run(tmp_path / "toy")


def test_a_run_is_found_from_inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    run = ktrace.Run(folder.name)
    assert repr(run) == "<Run gaussian-x3-n2-seed1: hidden, mlp-w3>"
    monkeypatch.chdir("/")
    assert run.mediators == ["hidden", "mlp-w3"]
    assert len(run.candidates()) == 6


def test_it_loads_no_torch() -> None:
    program = (
        "import sys, ktrace; ktrace.Run; assert not {'torch', 'transformers'} & {*sys.modules}"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
