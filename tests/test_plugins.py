"""Presets of another package: found by the command and from Python, through Hydra's search path."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import ROOT

SECTION = (ROOT / "docs" / "configuration.md").read_text("utf-8").split("### Of a package\n")[1]
FILES = re.findall(r"New file `([^`]+)`:\n\n```\w+\n(.*?)```", SECTION.split("\n## ")[0], re.S)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of docs/configuration.md, as its files are written there."""
    folder = tmp_path_factory.mktemp("package")
    assert len(FILES) == 2
    for name, content in FILES:
        path = folder / name
        path.parent.mkdir(parents=True)
        path.write_text(content, "utf-8")
    (folder / "capitals" / "__init__.py").touch()
    (folder / "capitals" / "conf" / "__init__.py").touch()
    return folder


def with_package(package: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Python where the package lies on the path, in an empty folder."""
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    environment |= {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{package}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=package,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_presets_of_a_package_are_listed_and_chosen(package: Path) -> None:
    shown = with_package(package, "-m", "ktrace", "--help")
    assert shown.returncode == 0, shown.stderr
    [listed] = re.findall(r"^model: (.*)$", shown.stdout, re.MULTILINE)
    assert {"capitals_tiny", "tiny", "gpt2_xl"} <= set(listed.split(", "))
    composed = with_package(package, "-m", "ktrace", "--cfg", "job", "model=capitals_tiny")
    assert composed.returncode == 0, composed.stderr
    assert "  name: capitals_tiny\n" in composed.stdout
    assert "  window: 2\n" in composed.stdout
    wrong = with_package(package, "-m", "ktrace", "model=capitals_tinny")
    assert "did you mean capitals_tiny?" in wrong.stderr


def test_presets_of_a_package_are_loaded_from_python(package: Path) -> None:
    program = (
        "import ktrace\n"
        "model = ktrace.load_model('capitals_tiny')\n"
        "print(model.name, model.model.config.num_hidden_layers)\n"
    )
    loaded = with_package(package, "-c", program)
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout == "capitals_tiny 6\n"


def test_another_program_takes_presets_by_asking(tmp_path: Path) -> None:
    [program] = [code for code in re.findall(r"```python\n(.*?)```", SECTION, re.S) if "@" in code]
    asked = with_package(tmp_path, "-c", program)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout == "openai-community/gpt2-xl\n"
    unasked = with_package(tmp_path, "-c", program.replace("hydra.searchpath=", "+unasked="))
    assert "config group 'model' does not exist" in unasked.stderr


def test_without_the_package_there_are_none(package: Path, tmp_path: Path) -> None:
    missing = with_package(tmp_path, "-m", "ktrace", "model=capitals_tiny")
    assert "model=capitals_tiny is unknown" in missing.stderr
