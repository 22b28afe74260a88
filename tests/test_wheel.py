"""The wheel carries what it needs, and works where there is no checkout."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="building a wheel needs hatchling (the extra `dev`)")

from hatchling.builders.wheel import WheelBuilder

from tests.support.places import ROOT

pytestmark = pytest.mark.check


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as pip would."""
    folder = tmp_path_factory.mktemp("wheel")
    built = list(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"]))
    assert len(built) == 1
    return Path(built[0])


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def shipped(folder: str) -> Iterator[Path]:
    """Files below a folder of the checkout."""
    return (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file())


def test_the_wheel_carries_package_configs_and_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"ktrace/{path}" for path in shipped("conf") if path.suffix == ".yaml"}
    modules = {str(path) for path in shipped("ktrace") if "__pycache__" not in path.parts}
    model = {f"ktrace/{path}" for path in shipped("data/tiny")}
    assert len(configs) > 15
    assert "ktrace/conf/hydra/job_logging/stderr.yaml" in configs
    assert {"ktrace/data/tiny/config.json", "ktrace/data/tiny/tokenizer.json"} <= model
    assert any(name.endswith(".safetensors") for name in model)
    assert "ktrace/analysis/report/template.html" in modules
    wanted = (
        configs
        | modules
        | model
        | {"ktrace/data/facts.jsonl", "ktrace/data/pairs.jsonl", "ktrace/py.typed"}
    )
    assert wanted - names == set()


def test_the_wheel_carries_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ktrace"}
    assert not [name for name in names if "__pycache__" in name or "train_tiny" in name]
    metadata = [name for name in names if ".dist-info/" in name]
    assert {"METADATA", "entry_points.txt", "LICENSE"} <= {Path(name).name for name in metadata}


def run_installed(
    installed: Path, folder: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """`python -m ktrace` in another folder; the checkout is out of reach."""
    environment = os.environ | {
        "PYTHONPATH": str(installed),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # a small model on busy cores: more threads only wait
    }
    environment.pop("HYDRA_FULL_ERROR", None)
    return subprocess.run(
        [sys.executable, "-m", "ktrace", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_unpacked_package_is_the_one_that_runs(installed: Path, in_folder: Path) -> None:
    program = "import ktrace.config.compose as r; print(r.__file__); print(r.resource('data/tiny'))"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines() == [
        str(installed / "ktrace" / "config" / "compose.py"),
        str(installed / "ktrace" / "data" / "tiny"),
    ]


def test_help_from_an_empty_folder(installed: Path, in_folder: Path) -> None:
    result = run_installed(installed, in_folder, "--help")
    assert result.returncode == 0, result.stderr
    assert "known_1000" in result.stdout
    assert "hidden_mlp_severed" in result.stdout
    assert list(in_folder.iterdir()) == []


def test_a_run_from_an_empty_folder(installed: Path, in_folder: Path) -> None:
    result = run_installed(installed, in_folder, "dataset.limit=2")
    assert result.returncode == 0, result.stderr
    assert [path.name for path in in_folder.iterdir()] == ["outputs"]
    dataset = in_folder / "outputs" / "tiny" / "facts"
    run = dataset / "gaussian-x3-n10-seed1"
    states = dataset / "activations" / "clean"
    for folder in (dataset / "clean", states, run / "corrupted", run / "restored" / "hidden"):
        assert list(folder.glob("part-*.h5")), folder
    summary = json.loads((run / "analysis" / "summary.json").read_text())
    assert summary["n_facts"] == 2
    assert str(ROOT) not in (run / "run.yaml").read_text()
