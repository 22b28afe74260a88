"""The shipped facts: their schema, and every rule that `data/README.md` states about them."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, defaultdict
from typing import Any

import pytest

from tests.support.places import ROOT

FACTS = ROOT / "data" / "facts.jsonl"
KEYS = ["known_id", "subject", "attribute", "prompt", "template", "relation_id"]

Fact = dict[str, Any]


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return [json.loads(line) for line in FACTS.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def relations(facts: list[Fact]) -> dict[str, list[Fact]]:
    groups: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        groups[fact["relation_id"]].append(fact)
    return dict(groups)


def fold(text: str) -> str:
    """The text without case and accents."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", fold(text))


def test_fold_and_words_put_case_and_accents_aside() -> None:
    assert fold("Béla BARTÓK") == "bela bartok"
    assert words("Coca-Cola, St. Louis") == ["coca", "cola", "st", "louis"]


def test_schema(facts: list[Fact]) -> None:
    for fact in facts:
        assert list(fact) == KEYS
        assert type(fact["known_id"]) is int
        for key in KEYS[1:]:
            assert isinstance(fact[key], str)
            assert fact[key]
            assert fact[key] == fact[key].strip()
            assert "  " not in fact[key]
            assert fact[key] == unicodedata.normalize("NFC", fact[key])


def test_relation_ids_are_readable_snake_case(relations: dict[str, list[Fact]]) -> None:
    for name in relations:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name), name


def test_file_is_text_with_one_object_a_line() -> None:
    text = FACTS.read_bytes().decode("utf-8")
    assert text.endswith("}\n")
    assert "\r" not in text
    assert all(line.startswith("{") for line in text.splitlines())


def test_size(facts: list[Fact], relations: dict[str, list[Fact]]) -> None:
    assert 380 <= len(facts) <= 420
    assert 14 <= len(relations) <= 18
    assert min(len(group) for group in relations.values()) >= 15


def test_known_ids_count_from_zero(facts: list[Fact]) -> None:
    assert [fact["known_id"] for fact in facts] == list(range(len(facts)))


def test_relations_are_interleaved(facts: list[Fact], relations: dict[str, list[Fact]]) -> None:
    count = len(relations)
    for start in range(0, len(facts) - count + 1):
        assert len({fact["relation_id"] for fact in facts[start : start + count]}) == count


def test_subjects_are_unique_in_their_relation(relations: dict[str, list[Fact]]) -> None:
    for name, group in relations.items():
        subjects = [fold(fact["subject"]) for fact in group]
        assert len(set(subjects)) == len(subjects), name


def test_prompts_are_unique(facts: list[Fact]) -> None:
    prompts = [fact["prompt"] for fact in facts]
    assert len(set(prompts)) == len(prompts)


def test_prompt_is_the_filled_template(facts: list[Fact]) -> None:
    for fact in facts:
        assert fact["template"].count("{}") == 1
        assert fact["prompt"] == fact["template"].format(fact["subject"])


def test_subject_is_in_the_prompt_once_and_not_at_its_end(facts: list[Fact]) -> None:
    for fact in facts:
        assert fold(fact["prompt"]).count(fold(fact["subject"])) == 1, fact["prompt"]
        after = fact["template"].split("{}")[1]
        assert re.match(r"\s\w", after), fact["template"]


def test_most_templates_put_several_words_after_the_subject(facts: list[Fact]) -> None:
    templates = {fact["template"] for fact in facts}
    several = [t for t in templates if len(words(t.split("{}")[1])) >= 3]
    assert len(several) >= 0.9 * len(templates)


def test_some_templates_of_each_relation_put_words_before_the_subject(
    relations: dict[str, list[Fact]],
) -> None:
    for name, group in relations.items():
        assert any(len(words(fact["template"].split("{}")[0])) >= 2 for fact in group), name


def test_templates_are_used_evenly(relations: dict[str, list[Fact]]) -> None:
    owners: dict[str, str] = {}
    for name, group in relations.items():
        uses = Counter(fact["template"] for fact in group)
        assert len(uses) >= 3, name
        assert max(uses.values()) - min(uses.values()) <= 1, name
        for template in uses:
            assert owners.setdefault(template, name) == name, template


def test_answers_are_varied(relations: dict[str, list[Fact]]) -> None:
    for name, group in relations.items():
        answers = Counter(fact["attribute"] for fact in group)
        assert len(answers) >= 5, name
        assert max(answers.values()) <= 0.4 * len(group), name


def test_answers_mostly_start_with_different_words(relations: dict[str, list[Fact]]) -> None:
    for name, group in relations.items():
        answers = {fact["attribute"] for fact in group}
        starts = {words(answer)[0] for answer in answers}
        assert len(starts) >= 0.75 * len(answers), name


def test_answer_cannot_be_read_off_the_subject(facts: list[Fact]) -> None:
    for fact in facts:
        subject, answer = fold(fact["subject"]), fold(fact["attribute"])
        assert subject not in answer, fact
        assert answer not in subject, fact
        prefixes = [
            {word[:4] for word in words(text) if len(word) >= 4} for text in (subject, answer)
        ]
        assert not prefixes[0] & prefixes[1], fact


def test_answer_is_not_in_the_prompt(facts: list[Fact]) -> None:
    for fact in facts:
        prompt, answer = " ".join(words(fact["prompt"])), " ".join(words(fact["attribute"]))
        assert f" {answer} " not in f" {prompt} ", fact


def test_most_subjects_are_of_several_words(facts: list[Fact]) -> None:
    several = [fact for fact in facts if len(words(fact["subject"])) >= 2]
    assert len(several) >= 0.85 * len(facts)
