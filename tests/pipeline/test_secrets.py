"""User information and queries of URLs, and values from the environment, reach nothing."""

import json
import logging
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from ktrace import redaction
from ktrace.config.compose import composed
from ktrace.errors import KtraceError
from ktrace.redaction import keep_secret, redacted
from tests.support.command import Ended, Ktrace, refused
from tests.support.logged import logged_by

pytestmark = pytest.mark.usefixtures("no_figures", "no_proof", "own_secrets")

USER, PASSWORD, SIGNATURE = "robin.hood", "pa55-of-robin", "s1gn4ture"
FOLDER, VALUE = "t0ken-in-a-path", "va1ue-of-the-environment"
SECRETS = (USER, PASSWORD, SIGNATURE, FOLDER, VALUE)
URL = f"http://{USER}:{PASSWORD}@127.0.0.1:9/facts.jsonl?sig={SIGNATURE}&part=1"
QUOTED = f"dataset.url='{URL}'"


@pytest.fixture
def own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test keeps secret is nothing to the others."""
    monkeypatch.setattr(redaction, "_shown", {})
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for number in range(1, 9):
        monkeypatch.delenv(f"KTRACE_SECRET_{number}", raising=False)


@pytest.fixture
def given(own: tuple[str, ...], in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run whose dataset lies in a folder that only the environment names."""
    [path] = (text.partition("=")[2] for text in own if text.startswith("dataset.path="))
    folder = in_folder / FOLDER / VALUE
    folder.mkdir(parents=True)
    shutil.copy(path, folder / "facts.jsonl")
    monkeypatch.setenv("FACTS_OF_MINE", f"{in_folder}/{FOLDER}")
    monkeypatch.setenv("VERSION_OF_MINE", VALUE)
    others = [text for text in own if not text.startswith("dataset.path=")]
    place = "dataset.path=${oc.env:FACTS_OF_MINE}/${oc.env:VERSION_OF_MINE}/facts.jsonl"
    return [*others, place, QUOTED, "noise.samples=2"]


def told(ended: Ended, *folders: str) -> list[str]:
    """Where a secret is found: in what was printed, in files and in their names."""
    found = [f"{secret} is printed" for secret in SECRETS if secret in ended.stdout + ended.stderr]
    for path in (path for folder in folders for path in Path(folder).rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        # Attributes of HDF5 files, where parts say where they come from, are not packed.
        found += [
            f"{secret} in {path}"
            for secret in SECRETS
            if secret.encode() in content or secret in path.name
        ]
    return found


def test_a_whole_run_tells_no_secret_and_goes_on(ktrace: Ktrace, given: list[str]) -> None:
    ended = ktrace(*given)
    assert ended.code == 0, ended.stderr
    assert told(ended, "outputs") == []
    [run_yaml] = Path("outputs").glob("*/*/*/run.yaml")
    config = yaml.safe_load(run_yaml.read_text("utf-8"))["config"]["dataset"]
    assert config["url"] == "http://***@127.0.0.1:9/facts.jsonl?***"
    assert config["path"] == "${oc.env:FACTS_OF_MINE}/${oc.env:VERSION_OF_MINE}/facts.jsonl"
    # The same command adds nothing, and so does an analysis.
    parts = {path: path.stat().st_mtime_ns for path in Path("outputs").rglob("part-*.h5")}
    assert parts
    for again in (ktrace(*given), ktrace(*given, "stage=analyze")):
        assert again.code == 0, again.stderr
        assert told(again, "outputs") == []
    assert {p: p.stat().st_mtime_ns for p in Path("outputs").rglob("part-*.h5")} == parts


@pytest.mark.parametrize("kind", ["trackio", "wandb", "mlflow"])
def test_a_logger_is_told_no_secret(ktrace: Ktrace, given: list[str], kind: str) -> None:
    pytest.importorskip(kind, reason=f"needs {kind}, of the extra `dev`")
    name = f"logger.name='{URL.rpartition('/')[2]} of ${{oc.env:VERSION_OF_MINE}}'"
    ended = ktrace(*given, "dataset.limit=2", f"logger={kind}", name)
    assert ended.code == 0, ended.stderr
    assert f"logged to outputs/loggers/{kind}: " in ended.stdout
    assert told(ended, "outputs") == []
    [found] = logged_by(kind, Path("outputs/loggers"))
    dataset = found.config if kind == "mlflow" else found.config["dataset"]
    prefix = "dataset." if kind == "mlflow" else ""
    assert dataset[f"{prefix}url"] == "http://***@127.0.0.1:9/facts.jsonl?***"
    place = "${oc.env:FACTS_OF_MINE}/${oc.env:VERSION_OF_MINE}/facts.jsonl"
    assert dataset[f"{prefix}path"] == place


def test_a_name_for_a_logger_is_told_by_its_variable(
    ktrace: Ktrace, own: tuple[str, ...], in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a variable that no other key takes."""
    pytest.importorskip("wandb", reason="needs wandb, of the extra `dev`")
    monkeypatch.setenv("ONLY_HERE", "only-here-4711")
    asked = (*own, "dataset.limit=2", "noise.samples=1", "logger=wandb")
    refused(ktrace(*asked, "logger.project=${oc.env:ONLY_HERE}"), "logger.project would hang on")
    ended = ktrace(*asked, "logger.name=${oc.env:ONLY_HERE}")
    assert ended.code == 0, ended.stderr
    assert "${oc.env:ONLY_HERE}, in the project ktrace" in ended.stdout
    assert "only-here-4711" not in ended.stdout + ended.stderr
    files = [path for path in in_folder.rglob("*") if path.is_file()]
    assert [path for path in files if b"only-here-4711" in path.read_bytes()] == []


def test_a_failing_download_tells_no_secret(ktrace: Ktrace, given: list[str]) -> None:
    ended = ktrace(*given, "dataset.path=${oc.env:FACTS_OF_MINE}/none.jsonl")
    refused(ended, "${oc.env:FACTS_OF_MINE}/none.jsonl", "http://***@127.0.0.1:9/facts.jsonl?***")
    assert told(ended, ".") == [f"{FOLDER} in {FOLDER}", f"{VALUE} in {FOLDER}/{VALUE}"]


def test_an_error_in_python_tells_no_secret() -> None:
    assert str(KtraceError(f"{URL} is bad")) == "http://***@127.0.0.1:9/facts.jsonl?*** is bad"


def test_a_traceback_tells_no_secret(
    ktrace: Ktrace,
    given: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Python shows what escapes by the hook that the command sets."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(KtraceError) as raised:
        ktrace(*given, "dataset.path=${oc.env:FACTS_OF_MINE}/none.jsonl")
    bug = ValueError(f"{URL} in {Path.cwd() / FOLDER}")
    bug.__cause__ = raised.value
    sys.excepthook(ValueError, bug, None)
    shown = capsys.readouterr().err
    assert "Error executing job with overrides" in shown  # Hydra's own words, above a traceback
    assert "Traceback" in shown
    assert "ValueError: http://***@127.0.0.1:9/facts.jsonl?*** in ${oc.env:FACTS_OF_MINE}" in shown
    assert not any(secret in shown for secret in SECRETS)


def test_hydras_record_of_a_run_tells_no_secret(ktrace: Ktrace, given: list[str]) -> None:
    ended = ktrace(*given, "stage=filter", "hydra.output_subdir=.hydra")
    assert ended.code == 0, ended.stderr
    assert {path.name for path in Path(".hydra").iterdir()} > {"config.yaml", "overrides.yaml"}
    assert told(ended, ".hydra") == []


def test_a_sweep_tells_no_secret(ktrace: Ktrace, given: list[str]) -> None:
    """One of its jobs fails; Hydra's own folders are asked for, too."""
    url = f"http://{USER}:{PASSWORD}@127.0.0.1:9/a"
    bare = f"dataset.url={url}?{SIGNATURE},{url}?b{SIGNATURE}"
    place = "dataset.path=${oc.env:FACTS_OF_MINE}/none.jsonl"
    own = [text for text in given if not text.startswith("dataset.")]
    sweep = ("-m", "dataset=file", "hydra.output_subdir=.hydra", "stage=restore")
    ended = ktrace(*sweep, *own, place, bare)
    assert ended.code == 1
    assert "2 jobs (0, 1) failed" in ended.stdout
    assert told(ended, "outputs") == []
    ended = ktrace(*sweep, *given, "mediator=hidden,mlp", "output_dir=out")
    assert ended.code == 0, ended.stderr
    assert told(ended, "out") == []
    [multirun] = Path("out/sweeps").glob("*/multirun.yaml")
    assert "${oc.env:KTRACE_SECRET_" in multirun.read_text("utf-8")
    jobs = [json.loads(path.read_text()) for path in Path("out/sweeps").glob("*/jobs/*/[01].json")]
    assert [job["status"] for job in jobs] == ["done", "done"]
    assert "dataset.url='http://***@127.0.0.1:9/facts.jsonl?***'" in jobs[0]["overrides"]


def test_a_sweep_compares_what_lies_where_only_the_environment_says(
    ktrace: Ktrace, given: list[str], in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESULTS_OF_MINE", str(in_folder / "results"))
    where = ("output_dir=${oc.env:RESULTS_OF_MINE}", "compare=true")
    ended = ktrace("-m", *given, *where, "noise.seed=1,2")
    assert ended.code == 0, ended.stderr
    assert (in_folder / "results" / "comparison").is_dir()
    assert told(ended, "results") == []
    assert "results/" not in ended.stdout.replace("${oc.env:RESULTS_OF_MINE}", "")


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["dataset=file", "dataset.path=x/${oc.env:MINE}.jsonl"], "dataset.name"),
        (["dataset=hub", "dataset.hub=a/b", "dataset.subset=${oc.env:MINE}"], "dataset.name"),
        (["model=auto", "model.path=${oc.env:MINE}"], "model.name"),
        (["model.name=${oc.env:MINE}"], "model.name"),
    ],
)
def test_no_folder_is_named_by_the_environment(
    overrides: list[str], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", VALUE)
    with pytest.raises(KtraceError, match=f"{key} would hang on .*: give {key}=") as raised:
        composed(overrides)
    assert VALUE not in str(raised.value)
    composed([*(text for text in overrides if not text.startswith(key)), f"{key}=own"])


def test_jobs_folders_are_not_named_by_secrets(ktrace: Ktrace, given: list[str]) -> None:
    subdir = "hydra.sweep.subdir=${hydra.job.override_dirname}"
    ended = ktrace("-m", *given, subdir)
    refused(ended, "hydra.sweep.subdir", "exclude_keys=[dataset.path]")
    assert told(ended) == []
    assert not Path("outputs").exists()


def test_numbers_and_words_of_ktrace_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEED_OF_MINE", "2026")
    monkeypatch.setenv("DTYPE_OF_MINE", "float64")
    config = composed(["noise.seed=${oc.env:SEED_OF_MINE}", "model.dtype=${oc.env:DTYPE_OF_MINE}"])
    assert config.noise.seed == 2026
    assert redacted("float64 with seed 2026") == "float64 with seed 2026"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see https://u:p@h/x?a=1#b now", "see https://***@h/x?*** now"),
        ("https://p@ss:w@rd@h/x", "https://***@h/x"),
        ("'https://h/x?a=1' 'https://h/y'", "'https://h/x?***' 'https://h/y'"),
        ("https://h/x#part", "https://h/x#***"),
        ("hf://datasets/a/b@main/x", "hf://datasets/a/b@main/x"),
        ("https://h/x", "https://h/x"),
        ("me@h and a?b=c", "me@h and a?b=c"),
    ],
)
def test_what_urls_hold_beside_their_place_is_redacted(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown


def test_short_secrets_are_words_and_long_ones_are_not() -> None:
    keep_secret("1234", "${oc.env:PIN}")
    keep_secret("quote's and \\", "${oc.env:ODD}")
    keep_secret("longer-than-a-word")
    assert redacted("1234, 51234 x1234") == "${oc.env:PIN}, 51234 x1234"
    assert redacted(repr("quote's and \\")) == '"${oc.env:ODD}"'
    assert redacted("alonger-than-a-words") == "a***s"


def test_log_lines_and_their_tracebacks_are_redacted() -> None:
    try:
        raise ValueError(URL)
    except ValueError as error:
        kind = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "", 0, "bad %s", (URL,), kind)
    line = redaction.RedactingFormatter("%(message)s").format(record)
    assert "ValueError: http://***@127.0.0.1:9/facts.jsonl?***" in line
    assert not re.search("|".join(SECRETS), line)
