"""How prompts and answers are put is part of what stores are bound to, unless it is the default."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from ktrace.config import DatasetConfig, RunConfig
from ktrace.config.identity import Content, dataset_fingerprint, dataset_key
from ktrace.errors import KtraceError
from ktrace.facts import load_facts
from ktrace.pipeline.run import run
from ktrace.store import RunFolders
from tests.support.configs import configured
from tests.support.places import ROOT, SHARED, needs_shared

CONTENT = Content("ab", 3)
OTHERS = ({"separator": "none"}, {"separator": "space"}, {"chat": True}, {"bos": "strip"})


def settings(**keys: Any) -> DatasetConfig:
    return configured(DatasetConfig, name="made-up", path=None, **keys)


def test_fingerprint_and_folder_of_the_defaults_are_what_they_were() -> None:
    """So that stores from before there was a choice are still read."""
    plain = {"sha256": "ab", "n_facts": 3, "answer": "first_token"}
    for keys in ({}, {"separator": "auto", "chat": False, "bos": "keep"}):
        assert dataset_fingerprint(settings(**keys), CONTENT) == plain
        assert dataset_key(settings(**keys)) == "made-up"
    assert dataset_key(settings(answer="full")) == "made-up-full"


@pytest.mark.parametrize(("one", "other"), [*combinations(({}, *OTHERS), 2)])
def test_other_settings_have_another_fingerprint_and_folder(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    prints = [dataset_fingerprint(settings(**keys), CONTENT) for keys in (one, other)]
    assert prints[0] != prints[1]
    assert dataset_key(settings(**one)) != dataset_key(settings(**other))


def test_folders_are_readable() -> None:
    every = settings(answer="full", separator="none", chat=True, bos="strip")
    assert dataset_key(every) == "made-up-full-separator-none-chat-bos-strip"


@needs_shared
def test_digests_of_the_published_facts_are_what_they_were() -> None:
    for path, digest in (
        (
            SHARED / "data" / "known_1000.json",
            "42f941fd5ede5c6ce59bb2d61a68a881182dc1d1922c4a364d72629c653a9285",
        ),
        (
            ROOT / "data" / "facts.jsonl",
            "f6a7fcf018112b465f69dbf7fba124da57f5b3c3dc98c1aab9bb58f823f2a9cf",
        ),
    ):
        assert load_facts(path).digest == digest


def test_the_choice_is_recorded_and_bound(
    config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the folder is called, stores of one choice are none of another."""
    run(config("stage=corrupted"))
    [spaced] = tmp_path.glob("out/random/*/gaussian*/run.yaml")
    about = yaml.safe_load(spaced.read_text())
    assert about["answers"] == {"separators": {"space": 7}, "behind_blank_tokens": 0}
    assert about["config"]["dataset"]["separator"] == "auto"
    monkeypatch.setattr("ktrace.config.identity.dataset_key", lambda dataset: dataset.name)
    monkeypatch.setattr("ktrace.pipeline.run.dataset_key", lambda dataset: dataset.name)
    for stage in ("corrupted", "analyze"):
        with pytest.raises(KtraceError, match=r"separator"):
            run(config(f"stage={stage}", "dataset.separator=space"))


def test_a_folder_of_other_settings_is_known_by_its_parts(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Also where `store.json` is lost; and not by another name."""
    settings = "dataset.separator=space", "dataset.bos=strip"
    run(config("stage=corrupted", *settings))
    [folder] = tmp_path.glob("out/random/*-separator-space-bos-strip")
    for bound in folder.rglob("store.json"):
        bound.unlink()
    run(config("stage=corrupted", *settings))
    [noise] = folder.rename(folder.with_name("known")).glob("gaussian*")
    with pytest.raises(KtraceError, match=r"dataset known-separator-space-bos-strip, and lies in"):
        RunFolders(noise).clean.fingerprint()


def test_answers_that_are_left_out_are_traced(
    config: Callable[..., RunConfig], facts_file: Path, tmp_path: Path
) -> None:
    """What the model predicts is its answer, so every fact is a candidate; also for a noise."""
    lines = facts_file.read_text().splitlines()
    path = tmp_path / "open.csv"
    records = [yaml.safe_load(line) for line in lines]
    rows = [f'{r["known_id"]},"{r["prompt"]}","{r["subject"]}",' for r in records]
    path.write_text("known_id,prompt,subject,attribute\n" + "\n".join(rows))
    outcome = run(config(f"dataset.path={path}", "stage=corrupted"))
    assert outcome.counts["facts"] == outcome.counts["candidates"] == len(lines)
    partners = config(
        f"dataset.noise_facts={path}", "noise=token_replacement", "noise.samples=1", "stage=clean"
    )
    assert run(partners).counts["candidates"] == len(lines) - 1
