"""Composing beside other programs' Hydra, in threads, and what people write is what it is."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ktrace.config.compose import composed
from ktrace.config.secret_values import TEXT_KEYS
from ktrace.config.typed import taken_as_given
from tests.support.places import ROOT

ONE = ("dataset=prompt", "dataset.name=one")
# Pieces that OmegaConf reads something into.
PIECES = (
    "${",
    "}",
    "\\",
    "$",
    "{",
    ":",
    "oc.env:HOME",
    "dataset.name",
    "???",
    "'",
    '"',
    " ",
    "a",
    "é",
)
# A text of ??? alone is Hydra's word for one that is not given.
texts = (
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=8)
    .map("".join)
    .filter(lambda text: text != "???")
)


def given_in_python(key: str, text: str) -> object:
    values: dict[str, object] = {"prompt": "a", "subject": "a"} | {
        key: [text] if key == "also" else text
    }
    if key == "also":
        values |= {"attribute": "b"}
    return getattr(composed(ONE, {"dataset": values}).dataset, key)


def quoted(text: str) -> str:
    """As Hydra's grammar takes a text."""
    plain = text.replace("'", '"')  # its other quote needs no escape
    slashes = len(plain) - len(plain.rstrip("\\"))
    ending = "\\" * slashes
    return f"'{plain}{ending}'"


@pytest.mark.parametrize("key", TEXT_KEYS)
@settings(max_examples=5, deadline=None, database=None)
@given(text=texts)
@example("${oc.env:HOME} is in")
@example("\\\\${dataset.name} and \\${x}")
def test_text_from_people_is_what_it_is(key: str, text: str) -> None:
    found = given_in_python(key, text)
    assert found == ([text] if key == "also" else text)


@settings(max_examples=10, deadline=None, database=None)
@given(text=texts)
@example("${oc.env:HOME} is in")
@example("\\\\${dataset.name} and \\${x}")
def test_text_on_the_command_line_is_what_it_is(text: str) -> None:
    found = composed([*ONE, f"dataset.prompt={quoted(text)}", "dataset.subject=a"])
    assert found.dataset.prompt == text.replace("'", '"')


TYPED = (
    *("müller is", "中国的首都是", "The Eiffel Tower, in", "a (b), [c] is", "5: 'b', \"c\""),
    *(
        "'Tis in",
        "{} is in",
        "1e3",
        "007",
        "true",
        "1_000",
        "a\nb",
        "${oc.env:HOME} é",
        "range(1,2)",
        "\\${x} is",
    ),
)


@pytest.mark.parametrize("key", ["prompt", "subject", "attribute", "corrupted_prompt", "foil"])
@pytest.mark.parametrize("text", TYPED)
def test_a_text_needs_no_quotes_of_hydra(key: str, text: str) -> None:
    given = {"prompt": "a", "subject": "a"} | {key: text}
    dataset = composed([*ONE, *(f"dataset.{name}={value}" for name, value in given.items())])
    assert getattr(dataset.dataset, key) == text


@settings(max_examples=10, deadline=None, database=None)
@given(text=texts.filter(lambda text: text[0] not in "'\" " and text[-1] not in "\\ "))
def test_any_text_needs_no_quotes_of_hydra(text: str) -> None:
    found = composed([*ONE, f"dataset.prompt=é{text}", "dataset.subject=a"])
    assert found.dataset.prompt == f"é{text}"


def test_texts_in_a_list_and_none() -> None:
    one = (*ONE, "dataset.prompt=a", "dataset.subject=a")
    found = composed([*one, "dataset.attribute=Köln", "dataset.also=[Cöln, Colonia (CCAA)]"])
    assert found.dataset.also == ["Cöln", "Colonia (CCAA)"]
    assert composed([*one, "dataset.attribute=null"]).dataset.attribute is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dataset.path", "données (1).csv"),
        ("output_dir", "/home/müller/out"),
        ("analysis.folder", "Übung"),
        ("dataset.columns.prompt", "Frage (kurz)"),
        ("dataset.noise_facts", "'s.csv"),
        ("model.path", "/home/müller/gpt2 (1)"),
    ],
)
def test_a_path_needs_no_quotes_of_hydra(key: str, value: str) -> None:
    found: Any = composed(["dataset=file", "dataset.path=a", "dataset.name=x", f"{key}={value}"])
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value


def test_places_are_still_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_FACTS", "/tmp/facts")
    path = "dataset.path=${oc.env:MY_FACTS}/é (1).csv"
    assert composed(["dataset=file", path, "dataset.name=x"]).dataset.path == "/tmp/facts/é (1).csv"


def test_in_a_sweep_commas_part_texts() -> None:
    kept = ["dataset.subject=Rome,Paris", "dataset.prompt='a, b',c", "model.path=a,é"]
    assert taken_as_given(["-m", *kept]) == ["-m", *kept]
    assert taken_as_given(["-m", "dataset.subject=é"]) == ["-m", "dataset.subject='é'"]
    assert taken_as_given(kept[:1]) == ["dataset.subject='Rome,Paris'"]
    assert taken_as_given(["dataset.subject='a','b'"]) == ["dataset.subject='a','b'"]


def test_within_another_program_of_hydra() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf" / "noise")):
        other = GlobalHydra.instance().hydra
        assert composed(["noise.samples=3"]).noise.samples == 3
        assert GlobalHydra.instance().hydra is other
        assert compose("zero").kind == "zero", "the other program goes on"
    assert not GlobalHydra.instance().is_initialized()


def test_after_initialize_in_a_notebook() -> None:
    held = initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf" / "noise"))
    try:
        assert composed(["noise.samples=3"]).noise.samples == 3
        assert compose("mean").kind == "mean"
    finally:
        del held
        GlobalHydra.instance().clear()


def test_from_several_threads() -> None:
    numbers = range(1, 13)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda n: composed([f"noise.samples={n}"]).noise.samples, numbers))
    assert found == [*numbers]
    assert not GlobalHydra.instance().is_initialized()
