"""A run's stores, computed once and copied by every test that goes on from them."""

import shutil
from pathlib import Path

import pytest

from ktrace.config.compose import composed
from ktrace.pipeline.run import run
from tests.support.configs import Compose


@pytest.fixture(scope="session")
def stores(own: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder that `config("stage=restore")` leaves."""
    output = tmp_path_factory.mktemp("stores") / "out"
    run(composed([*own, f"output_dir={output}", "noise.samples=3", "stage=restore"]))
    return output


@pytest.fixture
def traced(config: Compose, stores: Path, tmp_path: Path) -> Compose:
    """As `config`, where the stores of its defaults are complete."""
    shutil.copytree(stores, tmp_path / "out")
    return config
