"""Composing beside other programs' Hydra, in threads, and what people write is what it is."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ktrace.config.compose import composed
from ktrace.config.secret_values import TEXT_KEYS
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
