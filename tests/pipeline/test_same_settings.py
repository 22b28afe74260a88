"""An analysis refuses stores of other settings as far as it can see, and needs no model for it."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from ktrace.errors import KtraceError
from ktrace.pipeline import run as pipeline
from tests.support.command import said
from tests.support.configs import Compose

pytestmark = pytest.mark.usefixtures("no_figures")


def analyzed(make: Compose, *overrides: str) -> None:
    pipeline.run(make("stage=analyze", *overrides))


def notes(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged, but for how far the analysis was."""
    return said("".join(f"{message}\n" for message in caplog.messages)).splitlines()


def test_the_same_settings_are_analyzed_without_a_word(
    traced: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="ktrace"):
        analyzed(traced, "model.dtype=float32", "dataset.limit=3")
        analyzed(traced)  # in this order no smaller analysis replaces a larger one
    assert notes(caplog) == []


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model.dtype=float64"], ['"dtype": "float32"', '"dtype": "float64"']),
        (["model.quantization=int8"], ['"quantization": null', '"quantization": "int8"']),
        (
            [f"model.modules.{site}=x" for site in ("embedding", "block", "attn", "mlp")],
            ['"modules": null', '"embedding": "x"'],
        ),
    ],
    ids=["dtype", "quantization", "modules"],
)
def test_another_model_setting_is_refused_with_both_values(
    traced: Compose, overrides: list[str], parts: list[str]
) -> None:
    with pytest.raises(KtraceError, match="holds results of other settings") as raised:
        analyzed(traced, *overrides)
    for part in ("clean", "model: stored", *parts):
        assert part in str(raised.value)


def test_the_dtype_of_another_checkpoint_is_refused(
    traced: Compose, model_folder: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(model_folder, tmp_path / "random")
    content = json.loads((other / "config.json").read_text()) | {"dtype": "bfloat16"}
    (other / "config.json").write_text(json.dumps(content))
    with pytest.raises(KtraceError, match=r'"dtype": "float32".*"dtype": "bfloat16"'):
        analyzed(traced, f"model.path={other}")


def test_other_facts_are_refused(traced: Compose, facts_file: Path, tmp_path: Path) -> None:
    fewer = tmp_path / facts_file.name
    fewer.write_text("".join(facts_file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(KtraceError, match=r'dataset: stored .*"n_facts": 7.*"n_facts": 6'):
        analyzed(traced, f"dataset.path={fewer}")


def test_another_noise_in_the_folder_is_refused(traced: Compose) -> None:
    folder = pipeline.run(traced("stage=analyze")).folder
    folder.rename(folder.with_name("gaussian-x3-n3-seed2"))
    with pytest.raises(
        KtraceError, match="of noise gaussian-x3-n3-seed1, and lies in gaussian-x3-n3-seed2"
    ):
        analyzed(traced, "noise.seed=2")


def test_what_is_not_here_is_noted(
    traced: Compose, caplog: pytest.LogCaptureFixture, facts_file: Path
) -> None:
    with caplog.at_level(logging.INFO, logger="ktrace"):
        analyzed(traced, "model.path=/nowhere", "model.name=random")
        [note] = notes(caplog)
        assert note.startswith("model.path=/nowhere: the stores were computed with model.path=/")
        caplog.clear()
        analyzed(traced, "dataset.path=/nowhere/a.jsonl", f"dataset.name={facts_file.stem}")
        [note] = notes(caplog)
    assert note.startswith("dataset.path=/nowhere/a.jsonl: not on this machine")
