"""Effects of a mediator that noises: what it makes of the clean run, minus the clean run."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ktrace.analysis.analyze import analyze
from ktrace.analysis.average import average
from ktrace.analysis.contrasts import mediator_pairs
from ktrace.analysis.effects import load_effects
from ktrace.errors import KtraceError
from ktrace.terms import METRICS, effects_fall, mediator_title, panel_order
from tests.support.stores import p_clean, p_restored, write_run

KEY = "mlp-w3-noise"
KEYS = ["mlp-w3", KEY]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("noised"), keys=KEYS).run


@pytest.fixture(scope="module")
def effects(run_folder: Path) -> pd.DataFrame:
    return load_effects(run_folder)


def test_the_clean_run_is_subtracted_everywhere(run_folder: Path, effects: pd.DataFrame) -> None:
    """In the tables of the analysis, and in averages of the frame and of the folder."""
    analyze(run_folder)
    aie = pd.read_csv(run_folder / "analysis" / "aie.csv")
    averages = {
        "stage": aie[aie["metric"] == "probability"].set_index(["mediator", "role", "layer"])["aie"]
    }
    for name, given in (("frame", effects), ("folder", run_folder)):
        averages[name] = average(given).set_index(["mediator", "role", "layer"])["aie"]
    expected = np.mean(
        [(p_restored(i, KEY) - p_clean(i)).mean(axis=0)[1, -1] for i in (0, 1, 3, 4, 5)]
    )
    assert expected < -0.05
    for name, found in averages.items():
        assert found[KEY, "last", 1] == pytest.approx(expected, abs=1e-6), name
        assert found["mlp-w3", "last", 1] != pytest.approx(expected, abs=1e-2), name


def test_the_lowest_effect_is_the_peak(run_folder: Path) -> None:
    analyze(run_folder)
    aie = pd.read_csv(run_folder / "analysis" / "aie.csv")
    shown = aie[(aie["metric"] == "probability") & (aie["role"] == "last")]
    peaks = json.loads((run_folder / "analysis" / "summary.json").read_text())["peaks"]
    for key, strongest in ((KEY, "min"), ("mlp-w3", "max")):
        curve = shown[shown["mediator"] == key]["aie"]
        assert peaks[key]["last"]["aie"] == getattr(curve, strongest)()
        assert curve.min() < curve.max()
    facts = pd.read_csv(run_folder / "analysis" / "facts.csv")
    lowest = (p_restored(1, KEY) - p_clean(1)).mean(axis=0)[:, 1].min()
    assert facts[f"{KEY}_peak"][1] == pytest.approx(lowest, abs=1e-6)


def test_effects_fall_where_a_state_that_counts_lowers_the_metric() -> None:
    falling = {(key, metric) for key in KEYS for metric in METRICS if effects_fall(metric, key)}
    assert falling == {("mlp-w3", "kl"), *((KEY, metric) for metric in METRICS if metric != "kl")}


def test_a_frame_without_clean_scores_is_refused(effects: pd.DataFrame) -> None:
    with pytest.raises(KtraceError, match="no column 'clean'"):
        average(effects.drop(columns="clean"))
    restored = effects[effects["mediator"] == "mlp-w3"].copy()
    restored["mediator"] = restored["mediator"].cat.remove_unused_categories()
    assert len(average(restored.drop(columns="clean"))) > 0


def test_the_key_says_which_and_titles_do() -> None:
    assert mediator_title(KEY) == "MLP outputs, window 3, noised"
    keys = ["attn-w3-noise", "hidden-noise", "attn-w3", KEY, "mlp-w3", "hidden"]
    assert sorted(keys, key=panel_order) == [
        *("hidden", "hidden-noise", "mlp-w3", KEY),
        *("attn-w3", "attn-w3-noise"),
    ]
    assert mediator_pairs(keys) == [(KEY, "attn-w3-noise"), ("mlp-w3", "attn-w3")]
