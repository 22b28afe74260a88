"""Pairs of prompts against an independent author's model, by a forward pass written by hand.

`expected.npz` holds the logit of the right answer in float64, for a clean state put into the
corrupted run and for a corrupted one put into the clean run (../shared/external/README.md).
"""

import json
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import ktrace
from ktrace.config.compose import composed
from ktrace.pipeline.run import run
from tests.support.places import SHARED

FOLDER = SHARED / "external" / "palindrome"
N_FACTS = {"suffix": 60, "reference": 6}
KEYS = {"hidden": "hidden", "attn": "attn-w1"}
in_every_way = pytest.mark.parametrize(
    ("engine", "direction"), list(product(N_FACTS, ("denoise", "noise")))
)


@pytest.fixture(scope="module")
def expected() -> dict[str, npt.NDArray[np.float64]]:
    """Logits of the right answer."""
    if not FOLDER.is_dir():
        pytest.skip("needs the published weights beside the checkout (../shared/external)")
    return {name: values[..., 0] for name, values in np.load(FOLDER / "expected.npz").items()}


@in_every_way
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_cell_is_the_one_by_hand(
    dtype: str,
    engine: str,
    direction: str,
    expected: dict[str, npt.NDArray[np.float64]],
    tmp_path: Path,
) -> None:
    """From the command line's settings to the frame; stores round scores to float32."""
    outcome = run(
        composed(
            [
                *("stage=restore", "model=auto", f"model.path={FOLDER}", f"model.dtype={dtype}"),
                *("dataset=file", f"dataset.path={FOLDER / 'pairs.jsonl'}", "noise=pair"),
                *("mediator.names=[hidden,attn]", "mediator.window=1", "metric=logit"),
                *(f"mediator.direction={direction}", f"engine={engine}"),
                f"dataset.limit={N_FACTS[engine]}",
                f"output_dir={tmp_path}",
            ]
        )
    )
    frame = ktrace.load_effects(outcome.folder, metrics=["logit"])
    frame = frame.sort_values(["known_id", "layer", "position"])
    ending = "-noise" if direction == "noise" else ""
    assert set(frame["mediator"]) == {key + ending for key in KEYS.values()}
    for name, key in KEYS.items():
        theirs = expected[f"{direction}_{name}"][: N_FACTS[engine]]
        own = frame[frame["mediator"] == key + ending]
        for column, exact in (
            ("restored", theirs),
            *((one, expected[one][: len(theirs), None, None]) for one in ("clean", "corrupted")),
        ):
            ours = own[column].to_numpy(np.float64).reshape(theirs.shape)
            # Of a run in float64 as near as float32 can be. Of one in float32, one cell of 2,640
            # is beyond 1e-5 as such (1.1e-5, of pair 15), in both engines.
            bound = np.spacing(np.abs(exact).astype(np.float32))
            if dtype == "float32":
                bound = 1e-5 * (1 + np.abs(exact))
            assert (np.abs(ours - exact) <= bound).all(), (key, column)
        base = expected["clean" if direction == "noise" else "corrupted"][: len(theirs)]
        assert np.abs(theirs - base[:, None, None]).max() > 1  # else nothing would be compared


@in_every_way
@pytest.mark.parametrize("name", list(KEYS))
def test_float64_agrees_to_its_own_rounding(
    name: str, engine: str, direction: str, expected: dict[str, npt.NDArray[np.float64]]
) -> None:
    """Before a store rounds: from Python, without a subject.

    The weights beside the arrays are rounded to float32, so that a clean run in float64 is up to
    8e-10 from theirs, whoever runs it.
    """
    model = ktrace.load_model(str(FOLDER), dtype="float64")
    lines = (FOLDER / "pairs.jsonl").read_text("utf-8").splitlines()
    for number, pair in enumerate(map(json.loads, lines[:3])):
        found = ktrace.trace(
            model,
            pair["prompt"],
            mediator=name,
            answer=pair["attribute"],
            window=1,
            direction=direction,
            engine=engine,
            corrupted_prompt=pair["corrupted_prompt"],
        )
        theirs = expected[f"{direction}_{name}"][number]
        np.testing.assert_allclose(found.restored["logit"][0], theirs, rtol=0, atol=5e-9)
        assert found.mediator == KEYS[name] + ("-noise" if direction == "noise" else "")
        assert found.span == (found.span.start, found.span.start + 1)
