"""The whole road on a small random model, from the facts to the figures."""

import numpy as np

import ktrace
from ktrace.pipeline import run as pipeline
from tests.support.configs import Compose
from tests.support.runs import FIVE


def test_all_mediators_end_to_end(config: Compose) -> None:
    outcome = pipeline.run(config("mediator=all"))
    assert outcome.mediator_keys == FIVE
    assert outcome.counts == {"facts": 7, "candidates": 6, "traced": 6}
    effects = ktrace.load_effects(outcome.folder)
    assert set(effects["mediator"]) == set(FIVE)
    assert effects["known_id"].nunique() == 6
    assert set(effects["sample"]) == {0, 1, 2}
    hidden = effects[effects["mediator"] == "hidden"]
    last = hidden[hidden["layer"] == hidden["layer"].max()]
    last = last[(last["role"] == "last") & (last["metric"] == "probability")]
    np.testing.assert_allclose(last["restored"], last["clean"], atol=1e-6)
    before = effects[effects["role"].isna()]
    assert len(before) > 0
    assert (before["restored"] == before["corrupted"]).all()
    assert outcome.analysis is not None
    assert outcome.analysis.summary["left_out"] == {"another answer is predicted": 1}
