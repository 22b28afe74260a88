"""`stage=check` says of facts what a run would do with them, and loads no weights."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ktrace.config.compose import composed
from ktrace.config.typed import spelled_out
from ktrace.errors import KtraceError
from ktrace.facts import Fact
from ktrace.facts.dataset import facts_of
from ktrace.lm.load import load_language_model
from ktrace.lm.reader import load_reader
from ktrace.lm.source import find_model
from ktrace.pipeline.check import check_facts
from ktrace.pipeline.run import run
from ktrace.tracing.encode import encode_facts
from ktrace.tracing.pairs import encoded_for
from tests.support.command import Ended, Ktrace, refused
from tests.support.places import ROOT

TINY = ROOT / "data" / "tiny"
CELLS = """known_id;prompt;subject;attribute
1.0;The Eiffel Tower stands in the city of;The Eiffel Tower;Paris
2;The language of the Franco-;Franco;-speaking
;;;
3;The Eiffel Tower stands in the city of;The Eiffel Tower;
"""


@pytest.fixture
def tokenizer_alone(tmp_path: Path) -> Path:
    """The embedded model without its weights."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture
def check(ktrace: Ktrace, tokenizer_alone: Path) -> Callable[..., Ended]:
    """`ktrace check my.csv` with that model, in a folder that holds it alone."""

    def checked(*overrides: str, cells: str = CELLS) -> Ended:
        Path("my.csv").write_text(cells)
        return ktrace("check", "my.csv", "model=auto", f"model.path={tokenizer_alone}", *overrides)

    return checked


def test_what_was_read_and_what_a_run_would_do(
    check: Callable[..., Ended], in_folder: Path
) -> None:
    ended = check("dataset.columns.template=")
    assert ended.code == 0
    assert "my.csv: read as table: semicolon between cells; blank rows are skip" in ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0] == "dataset.path=my.csv: table, semicolon between cells, utf-8; 3 facts"
    assert lines[1] == "columns: known_id, prompt, subject, attribute"
    assert lines[2].startswith("tokens of model.path=")
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert cells == [
        ["1", "The·Eiff·el·Tower", "1-4 of 10", "' Paris'"],
        ["2", "Fran·co", "5-6 of 8", "'-'"],
        ["3", "The·Eiff·el·Tower", "1-4 of 10", "what the model predicts"],
    ]
    assert lines[-3:] == [
        "prompt and subject of another: 2 facts (known_id 1, 3)",
        "without an answer: 1 facts, of which what the model predicts is scored",
        "3 of 3 facts can be traced, if the model predicts their answers",
    ]
    assert {path.name for path in in_folder.iterdir()} == {"my.csv", "tokenizer"}, "no store"


def test_facts_that_would_be_left_out(check: Callable[..., Ended]) -> None:
    long = " ".join(["far"] * 128)
    cells = f"{CELLS}4;{long} Rome is in;Rome;Italy\n5;{long} Rome is at;Rome;Italy\n"
    ended = check(cells=cells)
    assert ended.code == 0
    reason = "the prompt is longer than the model's 128 positions"
    assert f"left out: 2 × {reason} (known_id 4, 5)" in ended.stdout
    assert ended.stdout.endswith(
        "3 of 5 facts can be traced, if the model predicts their answers\n"
    )
    assert " left out " in ended.stdout
    assert "can be traced" in check("dataset.limit=3", cells=cells).stdout.splitlines()[-1]
    assert "left out" not in check("dataset.limit=3", cells=cells).stdout


def test_the_reasons_are_those_of_a_run(own: tuple[str, ...], tmp_path: Path) -> None:
    """Tokens, answers and reasons: with a model's weights and without."""
    records = [
        {"prompt": "The capital of France is", "corrupted_prompt": "The capital of Italy is"},
        {"prompt": "The capital of France is", "corrupted_prompt": "The long capital of Rome is"},
        {"prompt": "The capital of France is"},
        {"prompt": "The capital of the French-"},
    ]
    path = tmp_path / "pairs.jsonl"
    common = {"attribute": "Paris"}
    lines = [
        json.dumps({"known_id": n, "subject": "Fr" if "Fr" in r["prompt"] else "", **common, **r})
        for n, r in enumerate(records)
    ]
    path.write_text("\n".join(lines))
    for override in ("noise=pair", "dataset.answer=full", "dataset.separator=none"):
        config = composed([*own, f"dataset.path={path}", override])
        lm = load_language_model(find_model(config.model.path), config.model)
        reader = load_reader(config.model)
        assert (reader.n_embeddings, reader.max_positions) == (lm.n_embeddings, lm.max_positions)
        facts = facts_of(config.dataset).facts
        kind = config.noise.kind
        with_weights, without = (encoded_for(kind, r, facts, config.dataset) for r in (lm, reader))
        assert with_weights == without
    checked = check_facts(composed([*own, f"dataset.path={path}", "noise=pair"]))
    assert checked.table is not None
    assert {row[-1] for row in checked.table.rows} >= {"no corrupted_prompt"}


def test_without_a_tokenizer_the_file_is_read_all_the_same(
    ktrace: Ktrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("my.csv").write_text(CELLS)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for model in ("model.path=nobody/nothing", "model.path=./none", "model.path=my.csv"):
        ended = ktrace("check", "my.csv", "model=auto", model)
        assert ended.code == 0, ended.stderr
        assert f"tokens were not checked: {model}" in ended.stdout
        assert "│ 1        │ The Eiffel Tower │ characters 0-15  │ Paris " in ended.stdout
        assert ended.stdout.endswith("\n3 facts can be read\n")


def test_what_a_run_would_refuse_is_refused(check: Callable[..., Ended]) -> None:
    ended = check(cells=CELLS.replace("1.0;", "Q1;"))
    assert (ended.code, ended.stdout) == (1, "")
    assert "known_id='Q1' is not a whole number" in ended.stderr
    ended = check("noise=pair")
    assert ended.code == 1
    assert "3 facts\n" in ended.stdout, "what was read is told"
    assert ended.stderr.splitlines()[-1].startswith("ktrace: dataset.path=my.csv: no fact has a co")


def test_a_long_list_is_cut_and_fits_a_terminal(
    check: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the pipe for a terminal
    rows = [f"{n};The Eiffel Tower stands in the city of;The Eiffel Tower;Paris" for n in range(50)]
    ended = check("dataset.separator=none", cells="\n".join([CELLS.splitlines()[0], *rows]))
    assert "Facts (the first 20 of 50)" in ended.stdout
    assert ended.stdout.count("The·Eiff·el·Tower") == 20
    assert "50 facts (known_id 0, 1, 2, 3, 4, 5, 6, 7 and 42 more)" in ended.stdout
    assert max(len(line) for line in ended.stdout.splitlines() if "│" in line or "━" in line) <= 80


def test_the_weights_are_never_opened(
    own: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("weights")

    monkeypatch.setattr("ktrace.lm.load.load_language_model", never)
    monkeypatch.setattr("ktrace.lm.source.find_model", never)
    monkeypatch.setattr("ktrace.lm.source.file_digest", never)
    outcome = run(composed([*own, "stage=check"]))
    assert outcome.checked is not None
    assert outcome.checked.table is not None
    assert len(outcome.checked.table.rows) == 7


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["check", "my.csv"], ["stage=check", "dataset=file", "dataset.path=my.csv"]),
        (["check", "a.csv", "x=1"], ["stage=check", "dataset=file", "dataset.path=a.csv", "x=1"]),
        (["check", "dataset=facts"], ["stage=check", "dataset=facts"]),
        (["check"], ["stage=check"]),
        (["-m", "check", "x=1,2"], ["-m", "stage=check", "x=1,2"]),
        (["stage=check", "check"], ["stage=check", "check"]),
        (
            ["--config-dir", "mine", "check", "a.csv"],
            ["--config-dir", "mine", "stage=check", "dataset=file", "dataset.path=a.csv"],
        ),
        (["--config-dir", "status"], ["--config-dir", "status"]),
        ([], []),
    ],
)
def test_the_shorthand(typed: list[str], meant: list[str]) -> None:
    assert spelled_out(typed) == meant


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["chekc", "a.csv"], "'chekc' is no command and no key=value (did you mean check?)"),
        (["status"], "'status' is no command and no key=value (did you mean stage=status?)"),
        (["analyse", "model=gpt2"], "(did you mean stage=analyze?)"),
        (["check", "a.csv", "b.csv"], "check a.csv b.csv: one file is checked at a time"),
        (["dataset=a.csv"], "(did you mean dataset=file dataset.path=a.csv?): choose from counter"),
        (["model=my/own"], "(did you mean model=auto model.path=my/own?): choose from auto"),
        (["check", "own"], "dataset.path=own is a folder: name a file in it"),
    ],
)
def test_what_was_meant_is_said(ktrace: Ktrace, typed: list[str], message: str) -> None:
    Path("own").mkdir()
    refused(ktrace(*typed), message)


def test_every_record_that_is_no_fact_is_told(ktrace: Ktrace) -> None:
    rows = ["1,Rome is in,Rome,Italy", ",a b,b,c", "1,Oslo is in,Oslo,Norway", "2,a b,c,d"]
    Path("my.csv").write_text("\n".join(["known_id,prompt,subject,attribute", *rows]))
    ended = ktrace("check", "my.csv")
    assert (ended.code, ended.stderr) == (1, "ktrace: 3 of 4 records are no facts\n")
    lines = ended.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"my.csv, line {n}" for n in (3, 4, 5)]
    assert lines[0].startswith("my.csv, line 3: known_id is empty")
    assert lines[1] == "my.csv, line 4: known_id=1 is already at my.csv, line 2"
    assert "is not in the prompt" in lines[2]
    many = [f"{n},a b,subject {n},d" for n in range(30)]
    Path("my.csv").write_text("\n".join(["known_id,prompt,subject,attribute", *many]))
    assert ktrace("check", "my.csv").stdout.splitlines()[20:] == ["and 10 more"]
    Path("my.csv").write_text("\n".join(["id,prompt,subject,attribute", *rows]))
    refused(ktrace("check", "my.csv"), "line 2: no known_id", "known_id=id?")


def test_a_file_with_an_equals_sign(in_folder: Path) -> None:
    Path("a=b.csv").write_text(CELLS)
    assert spelled_out(["check", "a=b.csv"])[-1] == "dataset.path=a=b.csv"


def test_in_a_sweep_each_job_is_told(ktrace: Ktrace, own: tuple[str, ...]) -> None:
    ended = ktrace("-m", *own, "stage=check", "dataset.limit=1,2")
    assert ended.code == 0, ended.stderr
    assert "1 of 1 facts can be traced" in ended.stdout
    assert "2 of 2 facts can be traced" in ended.stdout


def test_a_token_beyond_the_config_is_told() -> None:
    reader = replace(load_reader(composed([]).model), n_embeddings=5)
    with pytest.raises(KtraceError, match="is beyond the model's 5 embeddings"):
        encode_facts(reader, [Fact(1, "Rome is", "Rome", "x")], composed([]).dataset)
