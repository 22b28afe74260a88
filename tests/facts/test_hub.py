"""A dataset repository becomes facts, or one line says why not: a folder, read as the hub's are."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from ktrace.config import DatasetConfig
from ktrace.errors import KtraceError
from ktrace.facts import Fact, FactSet, load_facts
from ktrace.facts.hub import _require_inside, load_hub_facts
from tests.support.command import Ktrace
from tests.support.configs import configured
from tests.support.places import ROOT

ROME = {"known_id": 3, "prompt": "Rome is in", "subject": "Rome", "attribute": "Italy"}
PARIS = {"known_id": 4, "prompt": "Paris is in", "subject": "Paris", "attribute": "France"}
OTHER_SCHEMA = {"text": "Oslo is in", "about": {"name": "Oslo"}, "answer": "Norway"}
TWO_SUBSETS = """---
configs:
- config_name: en
  data_files: cities.jsonl
- config_name: fr
  data_files: cities.jsonl
---
"""


@pytest.fixture
def cities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A repository with two splits, in Parquet and JSON; and a cache that is nobody else's."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "cities"
    folder.mkdir()
    pd.DataFrame([ROME, PARIS]).to_parquet(folder / "train-00000.parquet")
    pd.DataFrame([PARIS]).to_parquet(folder / "test-00000.parquet")
    return str(folder)


def repository(folder: Path, **files: str) -> str:
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content)
    return str(folder)


def hub_facts(repository: str, **keys: Any) -> FactSet:
    keys = {"name": "facts", "path": None} | keys
    return load_hub_facts(configured(DatasetConfig, hub=repository, **keys))


def as_lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_a_split_is_the_dataset_that_a_file_of_it_is(cities: str, tmp_path: Path) -> None:
    facts = hub_facts(cities, split="train")
    assert facts.facts == (Fact(**ROME), Fact(**PARIS))
    assert facts.origin == f"dataset.hub={cities} dataset.split=train"
    (tmp_path / "same.jsonl").write_text(as_lines(ROME, PARIS))
    assert facts == load_facts(tmp_path / "same.jsonl")
    assert hub_facts(cities, split="test").facts == (Fact(**PARIS),)
    assert hub_facts(cities, split="train[1:]").facts == (Fact(**PARIS),)
    assert hub_facts(cities, split="train", path="test-*.parquet").facts == (Fact(**PARIS),)


def test_columns_of_another_schema(cities: str, tmp_path: Path) -> None:
    named = repository(tmp_path / "named", train_jsonl=as_lines(OTHER_SCHEMA))
    columns = {
        **{"known_id": "_row", "prompt": "text"},
        **{"subject": "about.name", "attribute": "answer"},
    }
    facts = hub_facts(named, split="train", columns=columns)
    assert facts.facts == (Fact(0, "Oslo is in", "Oslo", "Norway"),)
    with pytest.raises(KtraceError, match=r"row 1: there is no 'title' \(dataset\.columns\.prompt"):
        hub_facts(named, split="train", columns=columns | {"prompt": "title"})
    with pytest.raises(KtraceError, match=r"row 1: no known_id, prompt, subject, attribute; a fac"):
        hub_facts(named, split="train")


def test_a_table_without_types_is_the_text_that_it_is(cities: str, tmp_path: Path) -> None:
    """NA, None and null are answers; `datasets` alone would take them for missing."""
    head = "known_id,prompt,subject,attribute,subject_start\n"
    table = head + "".join(f"{n},Na is in,Na,{text},\n" for n, text in enumerate(("NA", "None")))
    facts = hub_facts(repository(tmp_path / "tables", train_csv=table), split="train")
    assert [fact.attribute for fact in facts.facts] == ["NA", "None"]
    (tmp_path / "same.csv").write_text(table)
    assert facts == load_facts(tmp_path / "same.csv")


def test_what_a_repository_lacks_is_named(cities: str, tmp_path: Path) -> None:
    subsets = repository(tmp_path / "subsets", cities_jsonl=as_lines(ROME), README_md=TWO_SUBSETS)
    assert hub_facts(subsets, split="train", subset="fr").facts == (Fact(**ROME),)
    broken = repository(tmp_path / "broken", train_jsonl="{")
    cases: list[tuple[str, dict[str, Any], str]] = [
        (cities, {"split": "valid"}, "Unknown split \"valid\". Should be one of ['train', 'test']"),
        (cities, {"path": "none.csv"}, "none.csv"),
        (subsets, {}, "Please pick one among the available configs: ['en', 'fr']"),
        (subsets, {"subset": "de"}, "BuilderConfig 'de' not found. Available: ['en', 'fr']"),
        (broken, {}, "JSON parse error"),
        (repository(tmp_path / "empty"), {}, "doesn't contain any data files"),
        (repository(tmp_path / "blank", train_jsonl=""), {}, ""),
        (repository(tmp_path / "script", script_py="import os"), {}, "scripts are no longer supp"),
        (cities, {"revision": "v1"}, "a folder has no revisions"),
        ("json", {}, "is neither a folder here nor a hub id (owner/name)"),
        ("https://x/y", {}, "is neither a folder here nor a hub id (owner/name)"),
        ("owner/none", {"revision": "v1"}, "Couldn't reach 'owner/none' on the Hub (Offline"),
    ]
    for hub, keys, message in cases:
        with pytest.raises(KtraceError) as raised:
            hub_facts(hub, **{"split": "train", **keys})
        line = str(raised.value)
        assert line.startswith(f"dataset.hub={hub} "), line
        assert message in line
        assert "\n" not in line
        assert len(line) < 700
        for key, value in keys.items():
            assert f"dataset.{key}={value}" in line


@pytest.mark.parametrize(
    "named", ["{outside}/secret.jsonl", "../outside/secret.jsonl", "linked.jsonl", "linked/*.jsonl"]
)
def test_files_outside_of_a_repository_are_not_read(
    cities: str, tmp_path: Path, named: str
) -> None:
    outside = Path(repository(tmp_path / "outside", secret_jsonl=as_lines(ROME)))
    folder = Path(repository(tmp_path / "stranger", train_jsonl=as_lines(PARIS)))
    (folder / "linked.jsonl").symlink_to(outside / "secret.jsonl")
    (folder / "linked").symlink_to(outside)
    files = named.format(outside=outside)
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: a\n  data_files: {files}\n---\n"
    )
    for keys in ({}, {"path": files}):  # as the README or as the config says
        with pytest.raises(KtraceError) as raised:
            hub_facts(str(folder), split="train", **keys)
        assert "secret.jsonl" in str(raised.value) or named in str(raised.value)
        assert "which is not within it" in str(raised.value)


@pytest.mark.parametrize(
    "file",
    [
        "https://elsewhere.example/secret.jsonl",
        "hf://datasets/another/one@main/train.jsonl",
        "hf://datasets/owner/cities@main/../../x.jsonl",
        "hf://datasets/owner/cities-of-another@main/train.jsonl",
        "/etc/passwd",
    ],
)
def test_files_elsewhere_are_not_read(tmp_path: Path, file: str) -> None:
    """Of a folder and of a repository on the hub, which both may name them."""
    own = {"owner/cities": "hf://datasets/owner/cities@main/train.jsonl"}
    for source in (str(tmp_path), "owner/cities"):
        files = [own.get(source, f"{tmp_path}/train.jsonl")]
        builder = SimpleNamespace(config=SimpleNamespace(data_files={"train": files}))
        _require_inside(builder, source, "asked")  # type: ignore[arg-type]
        files.append(file)
        with pytest.raises(KtraceError, match=re.escape(f"asked: its data_files name {file}")):
            _require_inside(builder, source, "asked")  # type: ignore[arg-type]


@pytest.mark.usefixtures("cities", "no_figures", "no_proof")
def test_the_command_line_reads_a_repository(ktrace: Ktrace, in_folder: Path) -> None:
    """From the config to the store, and again from the stores alone."""
    folder = repository(
        in_folder / "known",
        train_jsonl="".join((ROOT / "data" / "facts.jsonl").open().readlines()[:3]),
    )
    command = ("dataset=hub", f"dataset.hub={folder}", "noise.samples=1")
    ended = ktrace(*command)
    assert ended.code == 0, ended.stderr
    assert "3 of 3 facts are candidates" in ended.stdout
    assert Path("outputs/tiny/known-train/clean").is_dir()
    ended = ktrace(*command, "stage=analyze")
    assert ended.code == 0, ended.stderr
    assert f"dataset.hub={folder}: not read by stage=analyze" in ended.stderr


def test_without_the_package(cities: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(KtraceError, match=r"needs the extra hub: pip install 'ktrace\[hub\]'"):
        hub_facts(cities, split="train")
