"""A file of a dataset repository becomes facts, or one line says why not. All from a cache."""

from pathlib import Path

import pytest
from huggingface_hub import constants, errors

from ktrace import hub
from ktrace.errors import KtraceError
from ktrace.facts import Fact, load_facts, load_hub_facts

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LINE = '{"known_id": 3, "prompt": "Rome is in", "subject": "Rome", "attribute": "Italy"}\n'


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with one dataset, as a download leaves it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "datasets--owner--cities"
    for revision in ("main", "v2"):
        path = repository / "refs" / revision
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(COMMIT if revision == "main" else COMMIT[::-1])
    for commit, line in ((COMMIT, LINE), (COMMIT[::-1], LINE.replace("Italy", "Lazio"))):
        snapshot = repository / "snapshots" / commit / "data"
        snapshot.mkdir(parents=True)
        (snapshot / "train.jsonl").write_text(line)
        (snapshot / "broken.jsonl").write_text("{")
    return tmp_path


def test_a_file_of_a_repository_at_a_revision(cache: Path, tmp_path: Path) -> None:
    facts = load_hub_facts("owner/cities", "data/train.jsonl")
    assert facts.facts == (Fact(3, "Rome is in", "Rome", "Italy"),)
    (tmp_path / "same.jsonl").write_text(LINE)
    assert facts == load_facts(tmp_path / "same.jsonl")  # a copy is the same dataset
    [other] = load_hub_facts("owner/cities", "data/train.jsonl", revision="v2").facts
    assert other.attribute == "Lazio"


@pytest.mark.parametrize(
    ("repository", "path", "message"),
    [
        (
            "owner/cities",
            "data/none.jsonl",
            "dataset.hub=owner/cities dataset.path=data/none.jsonl",
        ),
        ("owner/none", "a.csv", "dataset.hub=owner/none dataset.path=a.csv is no folder here and"),
        ("a/b/c", "a.csv", "dataset.hub=a/b/c dataset.path=a.csv is neither a folder here nor a"),
        ("owner/cities", "data/broken.jsonl", "owner/cities/data/broken.jsonl, line 1: malformed"),
        ("owner/cities", "README.md", "dataset.path=README.md has no known format: .json, .jsonl"),
    ],
)
def test_what_cannot_be_had(
    cache: Path, monkeypatch: pytest.MonkeyPatch, repository: str, path: str, message: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(KtraceError) as raised:
        load_hub_facts(repository, path)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_a_gated_dataset_names_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: object, **kwargs: object) -> str:
        raise errors.GatedRepoError.__new__(errors.GatedRepoError)  # the hub's own need a response

    monkeypatch.setattr(hub, "hf_hub_download", download)
    with pytest.raises(KtraceError, match=r"at https://huggingface\.co/datasets/owner/cities and"):
        load_hub_facts("owner/cities", "a.csv")
