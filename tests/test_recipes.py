"""The recipes of CONTRIBUTING.md, followed as they are written in a copy of the checkout."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.places import ROOT

pytestmark = pytest.mark.check

TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("\n## Recipes\n")[1].split("\n## ")[0]
RECIPES = dict(re.findall(r"### Add a (\w+)\n(.+?)(?=\n### |\Z)", TEXT, re.DOTALL))
BLOCK = re.compile(r"((?:[^\n]+\n)*)\n```(\w+)\n(.*?)```\n", re.DOTALL)
BELOW = re.compile(r"In `([^`]+)`,\s+below\s+`([^`]+)`:\s*\Z")
IN_PLACE = re.compile(r"In `([^`]+)`,\s+in place of\s+`([^`]+)`:\s*\Z")
NEW_FILE = re.compile(r"New file `([^`]+)`:\s*\Z")
COPIED = ("ktrace", "conf", "data", "tests", "pyproject.toml")


class Step(NamedTuple):
    """A code block of a recipe, and what the words before it say is done with it."""

    words: str
    language: str
    code: str


def steps_of(recipe: str) -> list[Step]:
    return [Step(*found) for found in BLOCK.findall(recipe)]


def follow(step: Step, checkout: Path) -> None:
    """Do what a step says; a step that says nothing known is an error."""
    if found := NEW_FILE.search(step.words):
        path = checkout / found[1]
        assert not path.exists(), found[1]
        path.write_text(step.code, "utf-8")
        return
    below, in_place = BELOW.search(step.words), IN_PLACE.search(step.words)
    found = below or in_place
    assert found, f"what is to be done with this?\n{step.words}\n{step.code}"
    path, anchor = checkout / found[1], f"\n{found[2]}\n"
    text = path.read_text("utf-8")
    assert text.count(anchor) == 1, f"{found[1]} has {text.count(anchor)} lines {found[2]!r}"
    before, after = text.split(anchor)
    kept = anchor if below else "\n"
    path.write_text(f"{before}{kept}{step.code}{after}", "utf-8")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy in which every recipe but their commands was followed, one after another."""
    copy = tmp_path_factory.mktemp("recipes")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            skipped = shutil.ignore_patterns("__pycache__", "*.h5")
            shutil.copytree(source, copy / name, ignore=skipped)
        else:
            shutil.copy(source, copy / name)
    for recipe in RECIPES.values():
        for step in steps_of(recipe):
            if step.language != "sh":
                follow(step, copy)
    return copy


def test_a_step_that_says_nothing_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x\none\ny\n")
    with pytest.raises(AssertionError, match="what is to be done"):
        follow(Step("Somewhere:\n", "python", "two\n"), tmp_path)
    with pytest.raises(AssertionError, match="has 0 lines 'three'"):
        follow(Step("In `a.py`, below `three`:\n", "python", "two\n"), tmp_path)
    follow(Step("In `a.py`,\nbelow `one`:\n", "python", "two\n"), tmp_path)
    follow(Step("In `a.py`, in place of `two`:\n", "python", "three\n"), tmp_path)
    assert (tmp_path / "a.py").read_text() == "x\none\nthree\ny\n"


@pytest.mark.parametrize("name", ["family", "mediator", "noise", "dataset", "metric"])
def test_a_recipe_ends_in_what_it_promises(name: str, checkout: Path) -> None:
    commands = [step.code for step in steps_of(RECIPES[name]) if step.language == "sh"]
    assert commands
    for line in "".join(commands).splitlines():
        program, *arguments = shlex.split(line)
        assert program == "python"
        ended = subprocess.run(
            [sys.executable, *arguments],
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout)},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
    if name == "dataset":
        assert "rivers" in ended.stdout
