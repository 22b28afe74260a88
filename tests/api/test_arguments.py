"""What `ktrace.trace` makes of its arguments: numbers of other libraries, other names, mistakes."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import ktrace
from ktrace.config.compose import composed
from ktrace.lm.model import LanguageModel
from tests.support.known_facts import PROMPTS

PROMPT, SUBJECT = PROMPTS[0][0].format(PROMPTS[0][1]), PROMPTS[0][1]


@pytest.fixture(scope="module")
def model(model_folder: Path) -> LanguageModel:
    return ktrace.load_model(model_folder)


@pytest.mark.usefixtures("no_proof")
def test_numbers_of_other_libraries_are_numbers(model_folder: Path, facts_file: Path) -> None:
    """Whatever takes an int, a float or a bool takes numpy's and torch's, too."""
    plain = {"window": 2, "samples": 2, "seed": 5, "multiple": 2.5, "replace": True}
    strange = {
        "window": np.int64(2),
        "samples": torch.tensor(2),
        "seed": np.uint8(5),
        "multiple": np.float32(2.5),
        "replace": np.bool_(True),
    }
    texts = [
        {"subject_start": 22, "positions": ["last_subject", "last"], "known_id": 7},
        {
            "subject_start": np.int16(22),
            "positions": np.array(["last_subject", "last"]),
            "known_id": np.int64(7),
            "noise_facts": None,
            "whole_answer": np.bool_(False),
            "chat": np.False_,
        },
    ]
    models = [
        ktrace.load_model(model_folder, window=window) for window in (np.int32(3), np.array(3))
    ]
    assert [lm.window for lm in models] == [3, 3]
    found = [
        ktrace.trace(lm, PROMPT, np.str_(SUBJECT), "mlp", **numbers, **rest)
        for lm, numbers, rest in zip(models, (plain, strange), texts, strict=True)
    ]
    pd.testing.assert_frame_equal(*(trace.to_frame() for trace in found), check_exact=True)
    assert [trace.known_id for trace in found] == [7, 7]
    assert {type(trace.known_id) for trace in found} == {int}
    # Paths are as good as texts.
    facts = [
        ktrace.trace(models[0], PROMPT, SUBJECT, noise_facts=path, samples=1).sigma
        for path in (facts_file, str(facts_file))
    ]
    assert facts[0] == facts[1]


def test_every_key_takes_numbers_of_numpy() -> None:
    """At the one door: no key of any group is left out."""
    config = composed(
        ["dataset=prompt", "model=tiny"], {"dataset": {"prompt": "a", "subject": "a"}}
    )
    met = 0
    for group in ("model", "noise", "engine", "analysis"):
        for key, value in vars(getattr(config, group)).items():
            if type(value) in (int, float, bool):
                number = np.asarray(value)[()]
                assert type(number) is not type(value)
                given: dict[str, dict[str, object]] = {
                    "dataset": {"prompt": "a", "subject": "a"},
                    group: {key: number},
                }
                taken = composed(["dataset=prompt", "model=tiny"], given)
                assert getattr(getattr(taken, group), key) == value
                met += 1
    assert met > 8


@pytest.mark.usefixtures("no_proof")
def test_the_kind_of_noise_is_named_as_on_the_command_line(model: LanguageModel) -> None:
    traces = [
        ktrace.trace(model, PROMPT, SUBJECT, samples=1, **{name: "uniform"})
        for name in ("noise", "kind")
    ]
    assert {trace.noise for trace in traces} == {"uniform-x3-n1-seed1"}
    with pytest.raises(ktrace.KtraceError, match="noise='mean' and kind='zero' are one and the sa"):
        ktrace.trace(model, PROMPT, SUBJECT, noise="mean", kind="zero")


@pytest.mark.parametrize(
    ("positional", "named", "message"),
    [
        ((PROMPT, SUBJECT, "Paris"), {}, "mediator='Paris' is unknown: .*; an answer is given by"),
        ((SUBJECT, PROMPT), {}, "subject='The old .* holds prompt='Cape Morrow': the prompt comes"),
        ((7, SUBJECT), {}, "prompt=7 is no text"),
        ((PROMPT, 7), {}, "subject=7 is no text"),
        ((PROMPT, SUBJECT), {"known_id": "Q1"}, "known_id='Q1' is no whole number"),
        (
            (PROMPT, SUBJECT),
            {"windw": 3},
            r"trace has no argument 'windw' \(did you mean window\?\)",
        ),
        ((PROMPT, SUBJECT), {"samplse": 3}, r"trace has no argument 'samplse' \(did you mean samp"),
        ((PROMPT, SUBJECT), {"samples": 2.5}, "noise.samples: Value '2.5' of type 'float' could"),
        ((PROMPT, SUBJECT), {"samples": object()}, "noise.samples: "),
        (
            (PROMPT, SUBJECT),
            {"window": [1, 2], "mediator": "mlp"},
            r"window=\[1, 2\] and .* 2 medi",
        ),
        ((PROMPT, SUBJECT), {"noise": 3}, "noise=3 is unknown: choose from gaussian, mean"),
        ((PROMPT, SUBJECT), {"engine": "sufix"}, r"engine='sufix' is unknown \(did you mean suffi"),
    ],
)
def test_mistakes(
    model: LanguageModel, positional: tuple[Any, ...], named: dict[str, Any], message: str
) -> None:
    with pytest.raises(ktrace.KtraceError) as raised:
        ktrace.trace(model, *positional, **named)
    assert re.match(message, str(raised.value)), raised.value
    assert "\n" not in str(raised.value)


def test_a_model_that_was_not_loaded(model: LanguageModel) -> None:
    """Whose own text runs over many lines."""
    with pytest.raises(ktrace.KtraceError, match=r"^model=LlamaForCausalLM is no model with a tok"):
        ktrace.trace(model.model, PROMPT, SUBJECT)  # type: ignore[arg-type]
