"""The documents name what exists: links, config choices, config keys, and a snippet that runs."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from ktrace.config import ModulesConfig, RunConfig
from ktrace.lm.families import FAMILIES
from ktrace.store.schema import CLEAN, CORRUPTED, RESTORED
from tests.support.places import ROOT
from tests.support.stores import CANDIDATES, known_id, p_corrupted, p_restored, write_run

DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
README = (ROOT / "README.md").read_text("utf-8")
GROUPS = sorted(path.name for path in (ROOT / "conf").iterdir() if path.is_dir())


def anchors(document: Path) -> set[str]:
    """What `#...` may name in a document: its headings, as they are written in links."""
    headings = re.findall(r"^#+ (.+)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8"))
    relative = [link for link in links if "://" not in link]
    assert relative
    for link in relative:
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def named_choices() -> set[tuple[str, str]]:
    """`group=choice` in the README's commands and texts, and the rows of its table of groups."""
    found = set()
    for group in GROUPS:
        for listed in re.findall(rf"(?<![\w.]){group}=([\w,]+)", README):
            found |= {(group, choice) for choice in listed.split(",")}
        for row in re.findall(rf"^\| `{group}` \| (.+) \| .+ \|$", README, re.MULTILINE):
            found |= {(group, choice) for choice in re.findall(r"`(\w+)`", row)}
    # What the reader makes by the section about presets.
    return found - {("model", "my_model")}


def test_choices_in_the_readme_are_those_of_conf() -> None:
    shipped = {
        (group, path.stem)
        for group in GROUPS
        if group != "hydra"
        for path in (ROOT / "conf" / group).glob("*.yaml")
    }
    assert named_choices() == shipped


def user_keys(schema: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a config class, down to the values."""
    for entry in fields(schema):
        part = ModulesConfig if entry.name == "modules" else entry.type
        if is_dataclass(part):
            yield from user_keys(part, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}"


def test_the_readme_has_a_row_for_every_key_and_no_other() -> None:
    table = README.split("\nKeys:\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE)
    assert sorted(rows) == sorted(user_keys(RunConfig))


def test_the_table_of_architectures_is_the_one_in_the_code() -> None:
    text = (ROOT / "docs" / "models.md").read_text("utf-8")
    rows = re.findall(
        r"^\| `(\w+)` \| `(.+)` \| `(.+)` \| (`.+`|none) \| (`.+`|none) \|$", text, re.MULTILINE
    )
    listed = {name: tuple(path.strip("`") for path in paths) for name, *paths in rows}
    assert listed == {
        name: (
            paths.embedding,
            paths.block,
            (paths.attn or "none").removeprefix(paths.block),
            (paths.mlp or "none").removeprefix(paths.block),
        )
        for name, paths in FAMILIES.items()
    }


def test_the_fields_of_the_stores_are_those_of_the_schema() -> None:
    text = (ROOT / "docs" / "store.md").read_text("utf-8").split("### Fields")[1].split("\n## ")[0]
    tables = re.split(r"^`\w+/.*`:$", text, flags=re.MULTILINE)[1:]
    for table, schema in zip(tables, (CLEAN, CORRUPTED, RESTORED), strict=True):
        rows = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
        assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(schema)


def test_the_truths_name_tests_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    rows = re.findall(r"^\| .+ \| (`tests/.+) \|$", text, re.MULTILINE)
    assert rows
    for row in rows:
        for place in row.split("; "):
            path, *names = re.findall(r"`([\w./]+)`", place)
            source = (ROOT / path).read_text("utf-8")
            assert names
            for name in names:
                assert f"def {name}(" in source, f"{path}: {name}"


def test_the_h5py_snippet_reads_a_store(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "store.md").read_text("utf-8")
    [snippet] = re.findall(r"```python\n(.+?)```", text, re.DOTALL)
    assert "ktrace" not in re.sub(r'"[^"]*"', "", snippet)
    folders = write_run(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", snippet, str(folders.run)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    found = {}
    for line in result.stdout.splitlines():
        number, _, rest = line.partition(" ")
        shape, _, largest = rest.rpartition(" ")
        found[int(number)] = (shape, float(largest))
    assert found.keys() == {known_id(index) for index in CANDIDATES}
    for index in CANDIDATES:
        effect = p_restored(index, "hidden") - p_corrupted(index)[:, None, None]
        shape, largest = found[known_id(index)]
        assert shape == str(effect.shape[1:])
        assert largest == pytest.approx(effect.mean(axis=0).max(), abs=1e-6)
