"""Prompt and answer are joined as the prompt and the script ask for."""

import pytest

from ktrace.facts import load_facts
from ktrace.facts.separator import separator
from tests.support.places import ROOT, SHARED, needs_shared

SPACED = [
    ("The capital of France is", "Paris"),
    ("The answer:", "Paris"),
    ("Столица Франции —", "Париж"),
    ("عاصمة فرنسا هي", "باريس"),
    ("फ़्रांस की राजधानी है", "पेरिस"),
    ("프랑스의 수도는", "파리"),
    ("The flag of France is", "🇫🇷"),
    ("It was founded in", "1958"),
    ("A city -", "Paris"),
    ("either this /", "that"),
    ('He said "Hi"', "twice"),
    ("He said 'Hi'", "twice"),
    ("a “b”", "c"),
    ("Die „Stadt“", "Paris"),
    ("Die »Stadt«", "Paris"),
    ("dit « Paris »", "encore"),
    ("the dogs'", "house"),
    ("5 €", "each"),
    ('is 12"', "long"),
    ("The **capital**", "is"),
    ("C#", "code"),
    ("The capital of Japan is", "東京"),
    ("The Tokyo Tower (東京タワー) is in", "日本"),
    ("Answer:", "東京"),
    ("ประเทศฝรั่งเศสมีเมืองหลวงคือ", "Paris"),
    ("It is", ".NET"),
    ("The people are the", "!Kung"),
    ("It is", "-5 degrees"),
    ("It is", '"Paris"'),
    ("It is", "(a city)"),
    ("It is", "“Paris”"),
    ("It is", "’90s music"),
    ("is called", "《红楼梦》"),
]
JOINED = [
    ("法国的首都是", "巴黎"),
    ("法国的首都是", "Paris"),
    ("巴黎铁塔建于", "1889"),
    ("答案:", "巴黎"),
    ("答案：", "Paris"),
    ("他用的是iPhone", "手机"),
    ("列奥纳多·", "达芬奇"),
    ("フランスの首都は", "パリ"),
    ("首都は「", "東京"),
    ("เมืองหลวงของไทยคือ", "กรุงเทพ"),
    ("រដ្ឋធានីនៃប្រទេសកម្ពុជាគឺ", "ភ្នំពេញ"),
    ('It is called "', "Paris"),
    ("It is called '", "Paris"),
    ("It is called “", "Paris"),
    ("Es heißt „", "Paris"),
    ("Es heißt »", "Paris"),
    ("C'est «", "Paris"),
    ('他说"', "巴黎"),
    ("It is called `", "paris"),
    ("It is called **", "Paris"),
    ("France (", "Paris"),
    ("the Franco-", "German"),
    ("the years 1914–", "1918"),
    ("a temperature of -", "5"),
    ("La capitale de l'", "Angleterre"),
    ("La capitale de l’", "Angleterre"),
    ("It costs $", "5"),
    ("http://", "example"),
    ("and/", "or"),
    ("#", "tag"),
    ("me@", "home"),
    ("¿", "Qué"),
    ("France", ", a country"),
    ("France", "'s capital"),
    ("France", "’s capital"),
    ("It costs 5", "%"),
    ("the French", "-speaking"),
    ("France (Paris", ")"),
    ('It is called "Paris', '" by'),
    ("It is called “Paris", "” by"),
    ("e", "\u0301"),
]


@pytest.mark.parametrize(("prompt", "answer"), SPACED)
def test_a_space_is_put_before_an_answer(prompt: str, answer: str) -> None:
    assert separator(prompt, answer) == " "


@pytest.mark.parametrize(("prompt", "answer"), JOINED)
def test_nothing_is_put_before_an_answer(prompt: str, answer: str) -> None:
    assert separator(prompt, answer) == ""


@needs_shared
@pytest.mark.parametrize("file", [SHARED / "data/known_1000.json", ROOT / "data/facts.jsonl"])
def test_answers_of_the_published_facts_stand_behind_a_space(file: str) -> None:
    """As they always did, though some of the prompts end in a comma or a quotation mark."""
    facts = load_facts(file).facts
    assert len(facts) > 400
    assert {separator(fact.prompt, fact.attribute) for fact in facts} == {" "}
