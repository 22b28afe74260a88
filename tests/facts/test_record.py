"""Records are normalised where they are read, and what was changed is told once."""

import json
import logging
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from ktrace.errors import KtraceError
from ktrace.facts import Fact, FactSet, load_facts, prompt_facts

PLAIN = {"known_id": 1, "prompt": "The city of Paris is in", "subject": "Paris", "attribute": "x"}
FACT = Fact(1, "The city of Paris is in", "Paris", "x")


def read(tmp_path: Path, *records: dict[str, Any]) -> FactSet:
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return load_facts(path)


@pytest.mark.parametrize("blank", [" ", "  ", "\t", "\u00a0", "\u3000", "\u200b", "\ufeff"])
def test_blank_ends_are_trimmed(tmp_path: Path, blank: str) -> None:
    """A fact with blank ends is the fact without, in its digest, too."""
    plain = read(tmp_path, PLAIN)
    assert plain.facts == (FACT,)
    prompt = f"{blank}The city of{blank}Paris{blank}is in{blank}"
    inner = prompt.strip(blank)
    for subject in ("Paris", f"Paris{blank}", f"{blank}Paris", f"{blank}Paris{blank}"):
        [fact] = read(tmp_path, PLAIN | {"prompt": prompt, "subject": subject}).facts
        assert (fact.prompt, fact.subject) == (inner, "Paris")
        assert fact.subject_start == inner.index("Paris")
    assert read(tmp_path, PLAIN | {"prompt": f"{PLAIN['prompt']}{blank}"}) == plain
    assert read(tmp_path, PLAIN | {"subject": f"Paris{blank}"}) == plain  # not letter by letter


@pytest.mark.parametrize("start", [12, 13])  # of the space, or of the letter behind it
def test_subject_start_counts_in_the_prompt_as_it_is_given(tmp_path: Path, start: int) -> None:
    record = PLAIN | {
        "prompt": "  In Paris,  Paris is",
        "subject": " Paris",
        "subject_start": start,
    }
    [fact] = read(tmp_path, record).facts
    assert (fact.prompt, fact.subject, fact.subject_start) == ("In Paris,  Paris is", "Paris", 11)
    with pytest.raises(KtraceError, match=r"subject_start=9 is not where .* \(5 or 13\)$"):
        read(tmp_path, record | {"subject_start": 9})


def test_a_blank_can_tell_two_subjects_apart(tmp_path: Path) -> None:
    record = PLAIN | {"prompt": "Ana-Maria and Ana met", "subject": " Ana"}
    assert read(tmp_path, record).facts[0].subject_start == 14
    with pytest.raises(KtraceError, match=r"more than once .* \(0 or 14\)$"):
        read(tmp_path, record | {"subject": "Ana"})


def test_a_template_gets_no_blank_of_its_subject(tmp_path: Path) -> None:
    record = {"known_id": 1, "template": " {} and Ana met ", "subject": " Ana ", "attribute": "x"}
    [fact] = read(tmp_path, record).facts
    assert (fact.prompt, fact.subject, fact.subject_start) == ("Ana and Ana met", "Ana", 0)


def test_a_line_break_at_the_end_is_kept_beside_the_prompt(tmp_path: Path) -> None:
    plain = read(tmp_path, PLAIN)
    for end, kept in (("\n", "\n"), (" \r\n ", "\r\n"), ("\n\n", "\n\n")):
        broken = read(tmp_path, PLAIN | {"prompt": PLAIN["prompt"] + end})
        assert broken.facts == (Fact(1, FACT.prompt, "Paris", "x", ending=kept),)
        assert broken.digest != plain.digest
    # At the beginning it is a blank as any other.
    assert read(tmp_path, PLAIN | {"prompt": f"\n{PLAIN['prompt']}"}) == plain


@pytest.mark.parametrize("given", ["NFC", "NFD"])
def test_a_subject_is_taken_as_its_prompt_spells_it(tmp_path: Path, given: str) -> None:
    other = "NFD" if given == "NFC" else "NFC"
    prompt = unicodedata.normalize(given, "In Córdoba, Córdoba is")
    subject = unicodedata.normalize(other, "Córdoba")
    with pytest.raises(KtraceError, match="more than once"):
        read(tmp_path, PLAIN | {"prompt": prompt, "subject": subject})
    start = prompt.rindex("C")
    record = PLAIN | {"prompt": prompt, "subject": subject, "subject_start": start}
    [fact] = read(tmp_path, record).facts
    assert fact.subject == unicodedata.normalize(given, "Córdoba")
    assert fact.subject_start == start
    assert read(tmp_path, record | {"subject": fact.subject}).facts == (fact,)


def test_a_subject_that_only_looks_alike_is_told_in_code_points(tmp_path: Path) -> None:
    record = PLAIN | {"prompt": "In New\u00a0York is", "subject": "New York "}
    with pytest.raises(KtraceError) as raised:
        read(tmp_path, record)
    assert str(raised.value) == (
        f"{tmp_path / 'facts.jsonl'}, line 1: subject 'New York ' is not in the prompt "
        "'In New\\xa0York is'; it holds 'New\\xa0York', with U+00A0 in place of U+0020"
    )


def test_what_was_changed_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    read(tmp_path, PLAIN)
    assert not caplog.messages
    records = [
        PLAIN | {"known_id": 1, "subject": "Paris "},
        PLAIN | {"known_id": 2, "prompt": " The city of Paris is"},
        PLAIN | {"known_id": 3, "prompt": "The city of Paris is\n"},
        PLAIN | {"known_id": 4, "prompt": "Zoe\u0308 is", "subject": "Zoë"},
        {key: value for key, value in (PLAIN | {"known_id": 5}).items() if key != "attribute"},
        PLAIN | {"known_id": 6, "attribute": ""},
    ]
    facts = read(tmp_path, *records)
    assert [fact.attribute for fact in facts.facts[4:]] == ["", ""]
    path = tmp_path / "facts.jsonl"
    assert caplog.messages == [
        f"{path}: blank ends of prompts and subjects are trimmed (2; the first is {path}, line 1: "
        "subject='Paris ')",
        f"{path}: subjects are taken in the code points of their prompts (1; the first is {path}, "
        "line 4: subject='Zoë')",
        f"{path}: without an attribute, what the model predicts is scored (2; the first is {path}, "
        "line 5)",
    ]


def test_one_prompt_is_normalised_as_well(caplog: pytest.LogCaptureFixture) -> None:
    [fact] = prompt_facts(" Ana met Ana at ", " Ana", subject_start=8).facts
    assert fact == Fact(0, "Ana met Ana at", "Ana", "", subject_start=8)
    [message] = caplog.messages  # and nothing about the answer, which none need name
    assert message.startswith("dataset.prompt: blank ends of prompts and subjects are trimmed (2; ")


@pytest.mark.parametrize("name", ["facts.csv", "facts.json"])
def test_an_answer_may_be_left_out_of_a_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "facts.csv":
        path.write_text("known_id,prompt,subject,attribute\n1,Ana is,Ana,\n2,Bo is,Bo,x\n")
    else:
        two = {"known_id": 2, "prompt": "Bo is", "subject": "Bo", "attribute": "x"}
        one = {"known_id": 1, "prompt": "Ana is", "subject": "Ana", "attribute": None}
        path.write_text(json.dumps([one, two]))
    assert load_facts(path).facts == (Fact(1, "Ana is", "Ana", ""), Fact(2, "Bo is", "Bo", "x"))


def test_several_right_answers(tmp_path: Path) -> None:
    """Each once; a list of one is that one, in the digest, too."""
    plain = read(tmp_path, PLAIN)
    assert read(tmp_path, PLAIN | {"attribute": ["x"]}) == plain
    several = read(tmp_path, PLAIN | {"attribute": ["x", "y", "x", "z"]})
    [fact] = several.facts
    assert fact.answers == ("x", "y", "z")
    assert plain.facts[0].answers == ("x",)
    assert several.digest != plain.digest
    [one] = prompt_facts("Ana is", "Ana", "x", also=["y"]).facts
    assert one.answers == ("x", "y")


@pytest.mark.parametrize("empty", ["", " ", "\u200b"])
def test_an_empty_answer_of_one_prompt_is_refused(empty: str) -> None:
    """Where nothing need be given, only nothing is left out."""
    assert prompt_facts(FACT.prompt, "Paris").facts[0].attribute == ""
    with pytest.raises(KtraceError, match=r"^dataset\.attribute=.* is empty: give the answer, or"):
        prompt_facts(FACT.prompt, "Paris", empty)
    for answers in ((empty, "Rome"), ("Rome", empty)):
        with pytest.raises(KtraceError, match="empty"):
            prompt_facts(FACT.prompt, "Paris", answers[0], also=answers[1:])


def without_answers(suffix: str) -> str:
    """Two facts whose answers are in a column of another name."""
    rows = [[n, "The city of Paris is in", "Paris", "France"] for n in (1, 2)]
    names = ["known_id", "prompt", "subject", "object"]
    if suffix == ".csv":
        return "\n".join(",".join(map(str, row)) for row in [names, *rows])
    return json.dumps([dict(zip(names, row, strict=True)) for row in rows])


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_a_file_without_any_answer_is_asked_for_their_column(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"facts{suffix}"
    path.write_text(without_answers(suffix), "utf-8")
    with pytest.raises(KtraceError) as raised:
        load_facts(path)
    assert str(raised.value) == (
        f"{path}: no record has an attribute, the answer; here are known_id, prompt, subject, "
        "object: name its column with dataset.columns.attribute=object, or take what the model "
        "predicts by null in a record or an empty dataset.columns.attribute="
    )
    named = load_facts(path, columns={"attribute": "object"})
    assert {fact.attribute for fact in named.facts} == {"France"}
    meant = load_facts(path, columns={"attribute": ""})
    assert {fact.attribute for fact in meant.facts} == {""}


def test_an_explicit_null_is_an_answer_left_out(tmp_path: Path) -> None:
    left_out = read(tmp_path, PLAIN | {"attribute": None})
    assert left_out.facts[0].attribute == ""
    some = {key: value for key, value in PLAIN.items() if key != "attribute"}
    both = read(tmp_path, PLAIN, some | {"known_id": 2})  # the column is known
    assert [fact.attribute for fact in both.facts] == ["x", ""]
