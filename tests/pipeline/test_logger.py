"""What a logger is given equals the run's own files, and a logger that fails loses nothing."""

import importlib.util
import json
import shutil
import time
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ktrace.config import LoggerConfig, LoggerKind, RunConfig
from ktrace.config.compose import composed
from ktrace.errors import KtraceError
from ktrace.pipeline.logger import _environment, log_results
from ktrace.pipeline.loggers import Record
from ktrace.pipeline.run import Outcome, run
from tests.support.command import Ktrace, refused
from tests.support.configs import Compose
from tests.support.figures import NO_FIGURES
from tests.support.logged import logged_by
from tests.support.places import ROOT
from tests.support.runs import is_alive

KINDS = [kind.value for kind in LoggerKind if kind is not LoggerKind.none]
KEPT = {"tables/aie", "tables/contrasts", "tables/peaks"}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """A library that logs, where it is installed."""
    pytest.importorskip(request.param, reason=f"needs {request.param}, of the extra `dev`")
    return str(request.param)


@pytest.fixture(scope="module")
def analysed(
    own: tuple[str, ...], stores: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunConfig, Outcome]:
    """A run that was analysed, with a figure."""
    folder = tmp_path_factory.mktemp("analysed") / "out"
    shutil.copytree(stores, folder)
    asked = [*own, f"output_dir={folder}", "noise.samples=3", "stage=analyze"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ktrace.analysis.analyze.draw_figures", lambda *_, **__: NO_FIGURES)
        config = composed(asked)
        outcome = run(config)
    assert outcome.analysis is not None
    files = outcome.analysis.files
    figure = shutil.copy(ROOT / "docs" / "figures" / "aie-tiny.png", files[0].parent / "aie.png")
    analysis = replace(outcome.analysis, files=[*files, Path(figure), files[0].parent / "aie.svg"])
    return config, replace(outcome, analysis=analysis)


def with_logger(config: RunConfig, kind: str, folder: Path, **keys: str) -> RunConfig:
    return replace(config, logger=LoggerConfig(LoggerKind[kind], folder=str(folder), **keys))


def test_what_is_logged_is_what_the_run_wrote(
    kind: str, analysed: tuple[RunConfig, Outcome], tmp_path: Path
) -> None:
    config, outcome = analysed
    own = with_logger(config, kind, tmp_path, project="my-facts", name="first try")
    log_results(own, outcome, group="a sweep")
    [found] = logged_by(kind, tmp_path, "my-facts")
    assert outcome.analysis is not None
    folder = outcome.analysis.files[0].parent
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["ate_ci"][0] is None  # so few facts have no interval, and it has no number
    expected = {name: summary[name] for name in ("n_facts", "p_clean", "p_corrupted", "ate")}
    expected |= {f"metrics/{name}/ate": of["ate"] for name, of in summary["metrics"].items()}
    for role, peak in summary["peaks"]["hidden"].items():
        expected |= {f"peaks/hidden/{role}/{key}": value for key, value in peak.items()}
    expected |= {f"left_out/{why}": count for why, count in summary["left_out"].items()}
    assert len(expected) > 15
    # To the last bit, but for a digit that a database may lose.
    assert {name: found.numbers[name] for name in expected} == pytest.approx(expected, rel=1e-15)
    assert not [name for name in found.numbers if name.startswith(("settings", "provenance"))]
    assert (found.name, found.group, found.answer) == ("first try", "a sweep", summary["answer"])
    assert found.tables.keys() == KEPT
    for name, rows in found.tables.items():
        table = pd.read_csv(folder / f"{Path(name).name}.csv")
        kept = pd.DataFrame(rows, columns=table.columns).fillna(np.nan)
        pd.testing.assert_frame_equal(kept, table, check_dtype=False, rtol=1e-15)
    assert found.figures == {"figures/aie"}
    flat = kind == "mlflow"
    names = found.config["dataset.name"] if flat else found.config["dataset"]["name"]
    assert names == config.dataset.name
    limit = found.config["noise.samples"] if flat else found.config["noise"]["samples"]
    assert limit == ("3" if flat else 3)


def test_an_interval_has_two_numbers_and_other_lists_none(
    analysed: tuple[RunConfig, Outcome], tmp_path: Path
) -> None:
    kind = "trackio"
    pytest.importorskip(kind, reason="needs trackio, of the extra `dev`")
    config, outcome = analysed
    assert outcome.analysis is not None
    summary = dict(outcome.analysis.summary) | {"ate_ci": [-0.25, 0.5], "missing": ["a"] * 3}
    analysis = replace(outcome.analysis, summary=summary, files=[])  # type: ignore[arg-type]
    log_results(with_logger(config, kind, tmp_path), replace(outcome, analysis=analysis))
    [found] = logged_by(kind, tmp_path)
    assert found.numbers["ate_ci/low"] == -0.25
    assert found.numbers["ate_ci/high"] == 0.5
    assert not [name for name in found.numbers if name.startswith("missing")]
    assert found.name == "random known gaussian-x3-n3-seed1 hidden"


@pytest.mark.usefixtures("no_figures", "no_proof")
def test_jobs_of_a_sweep_are_runs_of_one_group(
    ktrace: Ktrace, own: tuple[str, ...], in_folder: Path
) -> None:
    pytest.importorskip("trackio", reason="needs trackio, of the extra `dev`")
    swept = ("-m", "noise.samples=1,2", "compare=true", "logger=trackio")
    ended = ktrace(*swept, *own, "dataset.limit=3")
    assert ended.code == 0, ended.stderr
    assert ended.stdout.count("logged to outputs/loggers/trackio: ") == 3
    found = logged_by("trackio", Path("outputs/loggers"))
    assert [one.name for one in found] == [
        "random known gaussian-x3-n1-seed1 hidden",
        "random known gaussian-x3-n2-seed1 hidden",
        "comparison",
    ]
    [group] = {one.group for one in found}
    [folder] = Path("outputs/sweeps").iterdir()
    assert group is not None
    assert group.startswith(f"{folder.name} ")
    assert found[2].tables.keys() >= {"tables/runs", "tables/aie", "tables/methods"}


@pytest.mark.usefixtures("no_figures", "no_proof")
def test_a_logger_that_fails_loses_nothing(
    ktrace: Ktrace, own: tuple[str, ...], in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("taken").write_text("a file")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: ModuleSpec(name, None, origin="x"))
    for asked, why in (
        (("logger=wandb", "logger.folder=taken"), "File exists: "),
        (
            ("logger=mlflow", "logger.uri=nowhere://x"),
            "UnsupportedModelRegistryStoreURIException: ",
        ),
    ):
        ended = ktrace(*own, *asked, "noise.samples=2")
        assert ended.code == 0
        kind = asked[0].partition("=")[2]
        [line] = [line for line in ended.stderr.splitlines() if "failed" in line]
        assert line.startswith(f"logger={kind} failed, and the results are there without it: ")
        assert why in line
        assert "ATE" in ended.stdout
        assert list(in_folder.glob("outputs/*/*/*/analysis/summary.json"))


HANGING = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
with open(os.environ["STARTED"], "w") as file:
    file.write(str(child.pid))
time.sleep(60)
"""


def test_a_library_that_hangs_is_left(
    analysed: tuple[RunConfig, Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With the processes that it has started."""
    (tmp_path / "hanging.py").write_text(HANGING, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("STARTED", str(tmp_path / "started"))
    monkeypatch.setattr("ktrace.pipeline.logger.ADAPTERS", "hanging")
    monkeypatch.setattr("ktrace.pipeline.logger._SECONDS", 5)
    config, outcome = analysed
    log_results(with_logger(config, "wandb", tmp_path), outcome)
    assert "it did not end within 5 s" in caplog.text
    pid = int((tmp_path / "started").read_text())
    left_by = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < left_by
        time.sleep(0.01)


@pytest.mark.parametrize("found", [None, ModuleSpec("a folder of that name", None)])
def test_a_missing_library_is_refused_before_any_work(
    ktrace: Ktrace,
    own: tuple[str, ...],
    in_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    found: ModuleSpec | None,
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: found if name in KINDS else real(name)
    )
    for kind in KINDS:
        refused(
            ktrace(*own, f"logger={kind}"),
            f"logger={kind} needs the extra {kind}: pip install 'ktrace[{kind}]'",
        )
    assert not list(in_folder.iterdir())


def test_what_is_not_analysed_is_not_logged(ktrace: Ktrace, own: tuple[str, ...]) -> None:
    ended = ktrace(*own, "stage=filter", "logger=wandb", "logger.project=x")
    assert ended.code == 0, ended.stderr
    assert "logger has no effect: stage=filter does not read it" in ended.stderr
    ended = ktrace(*own, "stage=filter", "logger.project=x")
    assert "logger.project has no effect: stage=filter does not read it" in ended.stderr
    assert not Path("outputs/loggers").exists()


def test_a_key_without_a_logger_has_no_effect(config: Compose) -> None:
    from ktrace.pipeline.unread import unread

    [line] = unread(config("logger.project=x"), ["logger=none", "logger.project=x"])
    assert line.startswith("logger.project has no effect: no logger is chosen (logger=trackio")


def test_an_unknown_logger_or_key_is_refused() -> None:
    for asked, why in (
        ("logger=wandbb", "logger=wandbb is unknown (did you mean wandb?): choose from "),
        ("logger.projekt=x", "unknown key logger.projekt (did you mean project?)"),
        ("logger.project=''", "logger.project='': use up to 100 letters"),
        ("logger.project=a/b", "logger.project='a/b': use up to 100 letters"),
        ("logger.name=' '", "logger.name=' ' is empty"),
        ("logger.name=a/b", "logger.name='a/b' is empty, or holds a line break or a slash"),
        (f"logger.name={'a' * 129}", "logger.name is too long: 129 characters of 128"),
        ("logger.folder=''", "logger.folder is empty"),
        ("logger.folder='~/x'", "logger.folder=~/x: write the home folder out"),
    ):
        with pytest.raises(KtraceError) as raised:
            composed([asked])
        assert why in str(raised.value), asked
    for kind, uri in (("wandb", "user/space"), ("trackio", "nowhere"), ("mlflow", "folder/x")):
        with pytest.raises(KtraceError) as raised:
            composed([f"logger={kind}", f"logger.uri={uri}"])
        assert f"logger.uri='{uri}' is no address for logger={kind}: give " in str(raised.value)
    for kind, uri in (("trackio", "user/space"), ("mlflow", "sqlite:////tmp/a.db")):
        assert composed([f"logger={kind}", f"logger.uri={uri}"]).logger.uri == uri


def test_the_shipped_files_are_of_the_kinds_that_there_are() -> None:
    shipped = {kind.value: composed([f"logger={kind}"]).logger for kind in LoggerKind}
    assert {name: found.kind.value for name, found in shipped.items()} == {k: k for k in shipped}
    assert {found.uri for found in shipped.values()} == {None}  # offline


def test_the_environment_decides_neither_where_a_run_goes_nor_which_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the jobs of a sweep would be one run of W&B's."""
    monkeypatch.setenv("WANDB_RUN_ID", "fixed")
    monkeypatch.setenv("WANDB_MODE", "online")
    record = Record("wandb", "p", "n", None, "x", None, {}, {}, "", [], [], [])
    found = _environment(record)
    assert "WANDB_RUN_ID" not in found
    assert found["WANDB_MODE"] == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert _environment(record)["WANDB_MODE"] == "disabled"
