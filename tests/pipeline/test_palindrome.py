"""A circuit that an independent author found in his own model, found by tracing it.

A classifier of palindromes, trained and explained by others (../shared/external/README.md): layer 0
compares each number with its mirror image, and the last position reads the result in layer 1.
"""

import numpy as np
import pandas as pd
import pytest

from ktrace.analysis.effects import load_effects
from ktrace.config.compose import composed
from ktrace.pipeline.run import run
from tests.support.places import SHARED

FOLDER = SHARED / "external" / "palindrome"
N_FACTS = {"suffix": 60, "reference": 15}
LAST = 21  # START, twenty numbers, END


@pytest.fixture(
    scope="module", params=[(e, d) for d in ("float32", "float64") for e in ("suffix", "reference")]
)
def traced(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, pd.DataFrame]:
    """The engine, and its mean effects on the logit, by fact, layer and position."""
    if not FOLDER.is_dir():
        pytest.skip("needs the published weights beside the checkout (../shared/external)")
    engine, dtype = request.param
    outcome = run(
        composed(
            [
                *("stage=restore", "model=auto", f"model.path={FOLDER}", f"model.dtype={dtype}"),
                *("dataset=file", f"dataset.path={FOLDER / 'facts.jsonl'}", f"engine={engine}"),
                *("mediator=hidden", "noise.multiple=5", "metric=logit"),
                f"dataset.limit={N_FACTS[engine]}",
                f"output_dir={tmp_path_factory.mktemp('palindrome')}",
            ]
        )
    )
    frame = load_effects(outcome.folder)
    return engine, frame[frame["metric"] == "logit"]


def test_the_circuit_is_found(traced: tuple[str, pd.DataFrame]) -> None:
    """Of a total effect of 8, all that is not the circuit brings back less than 2 %."""
    engine, effects = traced
    assert effects["known_id"].nunique() == N_FACTS[engine]
    effects = effects.assign(
        effect=effects["restored"] - effects["corrupted"],
        total=effects["clean"] - effects["corrupted"],
    )
    subject = effects["position"][effects["role"] == "last subject"].groupby(effects["known_id"])
    place = effects["known_id"].map(subject.first())
    # The later of the two: the model reads from left to right.
    mirror = np.maximum(place, LAST - place).rename("mirror")
    total = effects["total"].groupby(mirror).mean()
    assert total.between(7.5, 8.2).all()
    is_mirror = (effects["layer"] == 0) & (effects["position"] == mirror)
    is_end = (effects["layer"] == 1) & (effects["position"] == LAST)
    at_mirror = effects["effect"][is_mirror].groupby(mirror).mean()
    assert at_mirror.between(6.2, 7.7).all()
    at_end = effects["effect"][is_end].groupby(mirror).mean()
    np.testing.assert_allclose(at_end, total, rtol=1e-6)
    others = effects[~is_mirror & ~is_end]
    by_cell = others.groupby([mirror, "layer", "position"])["effect"].mean().abs()
    assert (by_cell / by_cell.index.get_level_values("mirror").map(total)).max() <= 0.02
    assert len(total) == 3
