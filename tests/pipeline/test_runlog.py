"""What a run says about itself: in run.yaml, in runs/, on every part and in summary.json."""

import json
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from ktrace.pipeline import origin, runlog
from ktrace.pipeline import run as pipeline
from ktrace.store import RESTORED, RunFolders, Store
from ktrace.store.layout import UNRECORDED, provenance_of
from ktrace.tracing import engines
from ktrace.tracing.suffix.verdicts import Verdict
from tests.support.command import Ktrace, refused
from tests.support.configs import Compose

pytestmark = pytest.mark.usefixtures("no_figures", "no_proof")


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return content


def records(folder: Path) -> list[dict[str, Any]]:
    """Of every run, the oldest first."""
    return [read(path) for path in sorted((folder / "runs").glob("*.yaml"))]


def test_run_yaml_says_what_made_the_numbers(config: Compose, model_folder: Path) -> None:
    outcome = pipeline.run(config("noise.std=0.5", "noise.seed=4"))
    assert outcome.folder.name == "gaussian-std0.5-n3-seed4"
    content = read(outcome.folder / "run.yaml")
    assert content["status"] == "done"
    assert content["config"]["noise"]["seed"] == content["seeds"]["noise"] == 4
    assert content["model"]["identity"].startswith("sha256:")
    assert content["model"]["path"] == str(model_folder)
    assert content["model"]["dtype"] == "float32"  # the config says auto
    assert set(content["model"]["weights"]) == {"model.safetensors"}
    assert "tokenizer.json" in content["model"]["tokenizer"]
    assert len(content["dataset"]["sha256"]) == 64
    assert content["device"]["device"] == "cpu"
    assert content["engine"] == {"asked": "suffix", "used": "suffix", "prove": "auto"}
    assert content["noise"]["level"] == 0.5
    assert content["noise"]["multiple"] == pytest.approx(0.5 / content["noise"]["sigma"])
    for package in ("torch", "matplotlib", "seaborn", "pyarrow"):
        assert content["versions"][package] == version(package)
    assert content["wall_seconds"] >= sum(content["wall_seconds_by_stage"].values()) > 0
    assert list(content["wall_seconds_by_stage"]) == ["clean", "corrupted", "restore", "analyze"]
    assert {"host", "platform", "python", "git", "started", "fingerprint"} <= content.keys()


@pytest.mark.parametrize("stage", ["filter", "clean", "corrupted"])
def test_a_run_that_stops_early_is_recorded_too(config: Compose, stage: str) -> None:
    folder = pipeline.run(config(f"stage={stage}")).folder
    content = read(folder / "run.yaml")
    assert (content["status"], content["config"]["stage"]) == ("done", stage)
    assert records(folder) == [content]


def test_run_yaml_stays_that_of_the_run_which_made_the_numbers(config: Compose) -> None:
    folder = pipeline.run(config()).folder
    traced = (folder / "run.yaml").read_text()
    pipeline.run(config("stage=analyze"))
    pipeline.run(config())  # computes nothing either
    assert (folder / "run.yaml").read_text() == traced
    assert [r["config"]["stage"] for r in records(folder)] == ["all", "analyze", "all"]
    pipeline.run(config("mediator=mlp"))
    assert read(folder / "run.yaml")["config"]["mediator"]["names"] == ["mlp"]
    assert len({record["run"] for record in records(folder)}) == 4


def test_every_part_names_its_run(config: Compose) -> None:
    folder = pipeline.run(config()).folder
    pipeline.run(config("mediator=mlp", "noise.seed=1"))
    first, second = (record["run"] for record in records(folder))
    found = provenance_of(RunFolders(folder), ["hidden", "mlp-w10"])
    by_store = {name: list(runs) for name, runs in found["stores"].items()}
    assert by_store == {
        "clean": [first],
        "corrupted": [first],
        "restored/hidden": [first],
        "restored/mlp-w10": [second],
    }
    assert found["stores"]["clean"][first]["facts"] == 7
    assert found["stores"]["restored/mlp-w10"][second]["facts"] == 6
    assert found["stores"]["corrupted"][first]["wall_seconds"] > 0
    told = found["runs"][first]
    assert told["engine"]["used"] == "suffix"
    assert told["noise"]["multiple"] == pytest.approx(3)
    assert told["model"]["weights"]
    # The paths of the parts and the numbers are the contract's: nothing is compared with this.
    assert "provenance" not in (RunFolders(folder).clean.fingerprint() or {})
    summary = json.loads((folder / "analysis" / "summary.json").read_text())
    assert summary["provenance"] == found


def test_parts_without_a_record_are_named_so(tmp_path: Path) -> None:
    folders = RunFolders(tmp_path / "noise")
    record = {"index": 0, "known_id": 0}
    store = Store(folders.restored("hidden").folder, {name: RESTORED[name] for name in record})
    with store.writer({}) as writer:
        writer.add(record)
    assert list(provenance_of(folders, ["hidden"])["stores"]["restored/hidden"]) == [UNRECORDED]


def test_the_engine_that_ran_is_told_and_proven_once(
    config: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def judge(lm: Any, *args: Any) -> Verdict:
        asked.append(lm)
        return Verdict("it was made up")

    monkeypatch.setattr(engines, "judge", judge)
    folder = pipeline.run(config("stage=restore")).folder
    told = {"asked": "suffix", "used": "reference", "prove": "auto"}
    assert read(folder / "run.yaml")["engine"] == told
    assert len(asked) == 1, "corrupted runs and restorations share an engine"


def test_a_run_that_fails_says_why(config: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Any:
        raise RuntimeError("the roof is on fire")

    monkeypatch.setattr("ktrace.tracing.suffix.engine.SuffixEngine.restored", fail)
    run = config()
    with pytest.raises(RuntimeError):
        pipeline.run(run)
    [path] = Path(run.output_dir).rglob("run.yaml")
    content = read(path)
    assert (content["status"], content["reason"]) == ("failed", "the roof is on fire")
    assert content["engine"]["used"] == "suffix"


def test_a_killed_run_leaves_its_start(config: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runlog.RunLog, "__exit__", lambda *_: None)
    folder = pipeline.run(config("stage=corrupted")).folder
    content = read(folder / "run.yaml")
    assert content["status"] == "started"
    assert content["noise"]["sigma"] > 0


@pytest.mark.parametrize("others", [False, True])
def test_what_sigma_was_measured_on_is_reported(
    config: Compose, facts_file: Path, tmp_path: Path, others: bool
) -> None:
    """In run.yaml and in summary.json; `dataset.limit` changes nothing about it."""
    facts, given = facts_file, []
    if others:
        facts = tmp_path / "others.jsonl"
        facts.write_text("".join(facts_file.read_text().splitlines(keepends=True)[:2]))
        given = [f"dataset.noise_facts={facts}"]
    outcome = pipeline.run(config("dataset.limit=3", *given))
    subjects = [json.loads(line)["subject"] for line in facts.read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(config().model.path)
    n_tokens = sum(len(tokenizer(s, add_special_tokens=False)["input_ids"]) for s in subjects)
    expected = {"dataset": facts.stem, "facts": len(subjects), "tokens": n_tokens}
    assert read(outcome.folder / "run.yaml")["noise"]["measured_on"] == expected
    assert outcome.analysis is not None
    assert outcome.analysis.summary["sigma_measured_on"] == expected


def test_a_refused_run_leaves_nothing(ktrace: Ktrace, own: tuple[str, ...]) -> None:
    refused(ktrace(*own, "stage=analyze"), "holds no clean runs")
    assert not Path("outputs").exists()


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as ktrace itself, run from a source tree on the path."""
    monkeypatch.setattr(origin, "_PACKAGES", ("no-such-package-anywhere", "numpy"))
    found = origin.package_versions()
    assert found == {"no-such-package-anywhere": None, "numpy": version("numpy")}


def test_the_commit_is_that_of_the_package_not_of_a_repository_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    module = tmp_path / "provenance.py"
    module.write_text("")
    monkeypatch.setattr(origin, "__file__", str(module))
    origin.git_commit.cache_clear()
    assert origin.git_commit() is None, "nothing is committed"
    (tmp_path / "other").write_text("")
    subprocess.run([*git, "add", "other"], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    origin.git_commit.cache_clear()
    assert origin.git_commit() is None, "the module is not tracked: an environment lies there"
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "y"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    origin.git_commit.cache_clear()
    assert origin.git_commit() == head.stdout.strip()
    module.write_text("changed")
    origin.git_commit.cache_clear()
    assert origin.git_commit() == f"{head.stdout.strip()}-dirty"
    origin.git_commit.cache_clear()
