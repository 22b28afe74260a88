"""What runs on systems with other modules and other paths than this one's."""

import os
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from ktrace.config.compose import register
from tests.support.places import ROOT


def test_nothing_is_imported_that_only_unix_has() -> None:
    """`--help`, and every module that can be, where there is no `fcntl`."""
    program = (
        "import importlib, pkgutil, sys\n"
        "for name in ('fcntl', 'pwd', 'grp', 'resource', 'termios'):\n"
        "    sys.modules[name] = None\n"
        "import ktrace.store, ktrace.pipeline.run, ktrace.analysis\n"
        "sys.argv[1:] = ['--help']\n"
        "from ktrace.__main__ import main\n"
        "main()\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert found.returncode == 0, found.stderr
    assert "claims=auto|locks|files|none" in found.stdout


@pytest.mark.parametrize(
    ("path", "name", "stem"),
    [
        (r"C:\models\gpt2", "gpt2", "gpt2"),
        (r"c:\data\my facts.jsonl", "my-facts.jsonl", "my-facts"),
        (r"\\server\share\facts.v2.jsonl", "facts.v2.jsonl", "facts.v2"),
        ("D:/models/gpt2/", "gpt2", "gpt2"),
        ("models/gpt2", "gpt2", "gpt2"),
        ("/data/a\\b.jsonl", "a-b.jsonl", "a-b"),
        ("fakten_größe (1).csv", "fakten_grose-1-.csv", "fakten_grose-1"),
        ("Straße.v2_+-9.csv", "Strase.v2_+-9.csv", "Strase.v2_+-9"),
        ("_Mine.csv", "Mine.csv", "Mine"),
    ],
)
def test_folders_are_named_by_the_end_of_a_path(path: str, name: str, stem: str) -> None:
    register()
    config = OmegaConf.create(
        {"path": path, "name": "${basename:${path}}", "stem": "${stem:${path}}"}
    )
    assert (config.name, config.stem) == (name, stem)
