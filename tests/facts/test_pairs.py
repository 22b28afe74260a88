"""Pairs of prompts: as they are read, in the model's tokens, and as they ship."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import ktrace
from ktrace.config import NoiseKind
from ktrace.config.compose import composed
from ktrace.errors import KtraceError
from ktrace.facts import Fact, Span, changed_span, load_facts
from ktrace.facts.dataset import facts_of
from ktrace.lm.model import LanguageModel
from ktrace.pipeline.run import run
from ktrace.tracing import pairs
from ktrace.tracing.measure import pair_noise
from ktrace.tracing.pairs import encoded_for
from tests.support.places import ROOT

PROMPT = "The currency of the Kingdom of Thailand is the"
OTHER = "The capital of the Kingdom of Thailand is the"
PAIR = {"known_id": 3, "prompt": PROMPT, "attribute": "baht", "corrupted_prompt": OTHER}


def written(folder: Path, **changes: object) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text(json.dumps(PAIR | changes) + "\n")
    return path


def test_a_subject_is_optional_in_a_pair(tmp_path: Path) -> None:
    [fact] = load_facts(written(tmp_path, foil=" Bangkok ")).facts
    assert (fact.subject, fact.corrupted_prompt, fact.foil) == ("", OTHER, "Bangkok")
    with pytest.raises(KtraceError, match="no subject"):
        load_facts(written(tmp_path, corrupted_prompt=None))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"corrupted_prompt": f" {PROMPT}"}, "is the prompt: nothing is corrupted"),
        ({"corrupted_prompt": " "}, "corrupted_prompt is empty"),
        ({"corrupted_prompt": 7}, "corrupted_prompt=7 is not text"),
        ({"foil": "baht"}, "foil='baht' is a right answer"),
        ({"corrupted_prompt": f"{OTHER}\n"}, "end in other line breaks"),
    ],
)
def test_a_bad_pair_names_its_line(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(KtraceError, match=rf"line 1: .*{words}"):
        load_facts(written(tmp_path, **changes))


def test_the_digest_is_of_the_pair_and_of_old_files_as_it_was(tmp_path: Path) -> None:
    found = {
        load_facts(written(tmp_path, **changes)).digest
        for changes in ({}, {"foil": "Bangkok"}, {"corrupted_prompt": OTHER.replace("The", "A")})
    }
    assert len(found) == 3
    plain = load_facts(ROOT / "data" / "facts.jsonl")
    assert plain.digest.startswith("f6a7fcf018112b46")


@pytest.mark.parametrize(
    ("ids", "other", "expected"),
    [
        ((1, 2, 3, 4), (1, 5, 3, 4), Span(1, 2)),
        ((1, 2, 3, 4), (1, 5, 3, 6), Span(1, 4)),
        ((1, 2, 3, 4), (5, 2, 3, 4), Span(0, 1)),
        ((1, 2, 3, 4), (1, 5, 6, 3, 4), Span(1, 2)),
        ((1, 2, 3, 4), (1, 4), Span(1, 3)),
        ((1, 2), (1, 2), Span(1, 2)),
        ((1, 2), (1, 2, 3), Span(1, 2)),
        ((1, 1, 2), (1, 2), Span(1, 2)),
    ],
)
def test_what_changed_is_between_what_is_common(
    ids: tuple[int, ...], other: tuple[int, ...], expected: Span
) -> None:
    assert changed_span(ids, other) == expected


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    return ktrace.load_model("tiny")


FACT = Fact(3, PROMPT, "", "baht", corrupted_prompt=OTHER, foil="Bangkok")


@pytest.mark.parametrize(
    ("fact", "problem", "foil_problem"),
    [
        (FACT, "", ""),
        (replace(FACT, corrupted_prompt=""), pairs.NO_PAIR, ""),
        (replace(FACT, corrupted_prompt=f"{OTHER} city"), pairs.OTHER_LENGTH, ""),
        (replace(FACT, foil="baht coins"), "", pairs.SAME_FOIL),
    ],
)
def test_what_cannot_be_read_is_left_out_with_the_reason(
    tiny: LanguageModel, fact: Fact, problem: str, foil_problem: str
) -> None:
    if not fact.corrupted_prompt:
        fact = replace(fact, subject="Thailand", subject_start=PROMPT.index("Thailand"))
    config = composed(["noise=pair", "dataset=pairs"])
    [found] = encoded_for(NoiseKind.pair, tiny, [fact], config.dataset)
    assert found.pair is not None
    assert (found.pair.problem, found.pair.foil_problem) == (problem, foil_problem)
    noise = pair_noise(config.noise, [found])
    assert noise.unusable == ({0: problem or foil_problem} if problem or foil_problem else {})
    if not noise.unusable:
        case = found.case(0)
        differing = [a != b for a, b in zip(case.input_ids, case.corrupted_ids, strict=True)]
        assert (
            Span(differing.index(True), len(differing) - differing[::-1].index(True)) == case.span
        )
        assert noise.noise.foils(case) == [found.pair.foil_ids]
        assert found.span == case.span  # no subject: what differs takes its roles


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["noise=pair"], "no fact has a corrupted_prompt"),
        (["noise=gaussian", "dataset=file"], "known_id=3 has no subject, which noise.kind=gauss"),
        (["noise=pair", "dataset=file", "metric=logit_difference"], "known_id=3 has no foil"),
        (["noise=pair", "noise.samples=2"], "noise.samples=2 has no meaning for noise.kind=pair"),
        (["noise=zero", "noise.foil=given"], "noise.foil=given has no meaning for noise.kind=zero"),
        (["dataset.corrupted_prompt=x"], "dataset.corrupted_prompt='x' is for dataset=prompt"),
    ],
)
def test_what_does_not_fit_is_refused_before_work(
    overrides: list[str], words: str, in_folder: Path
) -> None:
    path = written(in_folder)
    at = [f"dataset.path={path}"] if "dataset=file" in overrides else []
    with pytest.raises(KtraceError, match=words.replace(".", r"\.")) as refused:
        run(composed([*overrides, *at, "stage=restore"]))
    assert "\n" not in str(refused.value)
    assert not list((in_folder / "outputs").rglob("*.h5"))


def test_the_shipped_pairs_keep_their_rules(tiny: LanguageModel) -> None:
    lines = (ROOT / "data" / "pairs.jsonl").read_text("utf-8").splitlines()
    changes = [json.loads(line)["change"] for line in lines]
    assert {kind: changes.count(kind) for kind in changes} == {
        **{"subject": 48, "relation": 36, "both": 36},
    }
    config = composed(["noise=pair", "dataset=pairs"])
    facts = facts_of(config.dataset).facts
    encoded = encoded_for(NoiseKind.pair, tiny, facts, config.dataset)
    for fact, own, change in zip(facts, encoded, changes, strict=True):
        assert own.pair is not None
        assert not own.pair.problem + own.pair.foil_problem, fact
        assert (fact.subject in fact.corrupted_prompt) == (change == "relation"), fact
        template = fact.prompt.replace(fact.subject, "{}").split("{}")
        assert all(part in fact.corrupted_prompt for part in template) == (change == "subject")
