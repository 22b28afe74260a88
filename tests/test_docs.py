"""The documents name what exists: links, paths, choices, keys, and a snippet that runs."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from ktrace.config import ModulesConfig, RunConfig
from ktrace.store.schema import ACTIVATIONS, CLEAN, CORRUPTED, RESTORED
from tests.support.places import ROOT
from tests.support.stores import CANDIDATES, known_id, p_corrupted, p_restored, write_run

DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text("utf-8")
GROUPS = sorted(
    {path.parent.relative_to(ROOT / "conf") for path in (ROOT / "conf").glob("*/**/*.yaml")}
)

# Of these, every path that a document or a config names must be there.
NAMING = [*DOCUMENTS, ROOT / "CHANGELOG.md", *sorted((ROOT / "conf").rglob("*.yaml"))]
FOLDERS = ("ktrace", "conf", "data", "docs", "tests", "benchmarks", ".ci")
# What runs make, git ignores.
IGNORED = [line.strip("/") for line in (ROOT / ".gitignore").read_text("utf-8").splitlines()]


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


def named_paths(text: str) -> set[str]:
    """Files of the checkout that a text names, but for placeholders, patterns and what runs make.

    `docs/{a,b}.png` names two files, `cells.py` a file in any folder, and `python -m a.b` a module.
    """
    folders = "|".join(re.escape(name) for name in FOLDERS)
    letters = r"(?:\{[^}\s]*\}|[^\s`'\"()\[\]{}|,;#])"
    found = set(re.findall(rf"(?<![\w./<>-])(?:{folders})/{letters}*", text))
    found |= set(re.findall(r"`([\w-]+\.(?:py|js|md))`", text))
    modules = re.findall(rf"python -m ((?:{folders})\.[\w.]*\w)", text)
    found |= {module.replace(".", "/") + ".py" for module in modules}
    paths = {path.rstrip(".:") for one in found for path in expanded(one)}
    return {
        path
        for path in paths
        if not re.search(r"[<>*]", path) and not any(fnmatch(path, made) for made in IGNORED)
    }


def expanded(path: str) -> list[str]:
    """`a{b,c}` as a shell expands it."""
    before, brace, rest = path.partition("{")
    choices, _, after = rest.partition("}")
    return [before + choice + after for choice in choices.split(",")] if brace else [path]


def exists(path: str) -> bool:
    if "/" in path or (ROOT / path).exists():
        return (ROOT / path).exists()
    return any(any((ROOT / folder).rglob(path)) for folder in FOLDERS)


def made_by_recipes(text: str) -> set[str]:
    """Paths of the files that a document tells its reader to make."""
    return set(re.findall(r"New file `([^`]+)`:", text))


@pytest.mark.parametrize("document", NAMING, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_that_is_named_exists(document: Path) -> None:
    text = document.read_text("utf-8")
    named = named_paths(text) - made_by_recipes(text)
    assert sorted(path for path in named if not exists(path)) == []


def test_named_paths_are_found_and_results_and_placeholders_are_not() -> None:
    gone = """`ktrace/gone.py`, [a](docs/gone.md#there), # conf/gone.yaml: (tests/gone/b.py).
    `gone.py` docs/figures/{gone,lost}.png `python -m benchmarks.gone --write docs/lost.md`"""
    other = """`conf/model/<name>.yaml` `data/train-*.parquet` `data/known_1000.json` outputs/a/b
    https://a.b/docs/c ../data/README.md `my_conf/model/my_model.yaml` `run.yaml` `python -m c.d`"""
    assert named_paths(other) == set()
    assert named_paths(gone + other) == {
        *("ktrace/gone.py", "docs/gone.md", "conf/gone.yaml", "tests/gone/b.py", "gone.py"),
        *("docs/figures/gone.png", "docs/figures/lost.png", "benchmarks/gone.py", "docs/lost.md"),
    }
    assert not any(exists(path) for path in named_paths(gone))
    assert exists("families.py")


def section(heading: str) -> str:
    """What stands below a heading of docs/configuration.md."""
    return CONFIGURATION.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def shipped_choices(group: Path) -> list[str]:
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def test_the_table_of_groups_lists_the_choices_of_conf() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| .+ \|$", section("Groups"), re.MULTILINE)
    listed = {group: sorted(re.findall(r"`(\w+)`", choices)) for group, choices in rows}
    # What is below hydra/ is Hydra's; the launchers have a table of their own in docs/scale.md.
    assert listed == {
        str(group): shipped_choices(group) for group in GROUPS if group.parts[0] != "hydra"
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_choice_that_a_document_names_is_one_of_conf(document: Path) -> None:
    text = document.read_text("utf-8")
    for group in GROUPS:
        named = re.findall(rf"(?<![\w./-]){group}=([\w,]+)", text)
        choices = {choice for listed in named for choice in listed.split(",")}
        # What the reader makes by the sections about presets, and by recipes.
        made = {"my_model", *(Path(path).stem for path in made_by_recipes(text))}
        assert choices - made <= set(shipped_choices(group)), group


def user_keys(schema: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a config class, down to the values."""
    for entry in fields(schema):
        part = ModulesConfig if entry.name == "modules" else entry.type
        if is_dataclass(part):
            yield from user_keys(part, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}"


def test_there_is_a_row_for_every_key_and_no_other() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \|", section("Keys"), re.MULTILINE)
    assert sorted(rows) == sorted(user_keys(RunConfig))


def test_the_readme_is_short_and_leads_to_every_document() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.encode()) <= 10_000
    for document in (*DOCUMENTS, ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.ipynb")):
        if document.name != "README.md":
            assert f"]({document.relative_to(ROOT)})" in text


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    [version] = re.findall(
        r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE
    )
    assert citation["version"] == version
    assert version in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_fields_of_the_stores_are_those_of_the_schema() -> None:
    text = (ROOT / "docs" / "store.md").read_text("utf-8").split("### Fields")[1].split("\n## ")[0]
    tables = re.split(r"^`\w+/[^`]*`[^|]*?:$", text, flags=re.MULTILINE)[1:]
    schemas = (CLEAN, CORRUPTED, RESTORED, *ACTIVATIONS.values())
    for table, schema in zip(tables, schemas, strict=True):
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
