"""Heads, windows and chosen positions in the tables of a real run, by hand from its stores."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ktrace
from ktrace.config.compose import composed
from ktrace.pipeline.run import run
from ktrace.terms import METRICS
from tests.support.figures import NO_FIGURES

WINDOWS = (1, 2, 3)
HEADS = ("head", "head-noise")
AT = "at-last_subject+last"
CELL = ["mediator", "metric", "role", "layer"]
OF_HEAD = [*CELL, "head"]
SIZES = ("model=tiny", "dataset.limit=20", "noise.samples=2", "activations.clean=[]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the embedded model; figures are looked at elsewhere."""
    output = tmp_path_factory.mktemp("heads")
    asked = [
        *(*SIZES, f"output_dir={output}", "mediator.names=[mlp,head]", "analysis.share=0.3"),
        f"mediator.window={list(WINDOWS)}".replace(" ", ""),
        "mediator.direction=[denoise,noise]",
    ]
    at = [
        *SIZES,
        f"output_dir={output}",
        "mediator=hidden",
        "mediator.positions=[last_subject,last]",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ktrace.analysis.analyze.draw_figures", lambda *_, **__: NO_FIGURES)
        run(composed([*at, "stage=restore"]))
        return run(composed(asked)).folder


@pytest.fixture(scope="module")
def effects(folder: Path) -> pd.DataFrame:
    """Indirect and total effects of every cell."""
    frame = ktrace.load_effects(folder)
    on_clean = frame["mediator"].astype(str).str.contains("noise")
    score, clean, corrupted = (
        frame[name].astype(np.float64) for name in ("restored", "clean", "corrupted")
    )
    return frame.assign(ie=score - clean.where(on_clean, corrupted), te=clean - corrupted)


def by_hand(effects: pd.DataFrame, by: list[str]) -> pd.Series:
    """Samples, then positions, then facts."""
    rows = effects[effects["role"].notna()]
    by_fact = rows.groupby([*by, "known_id"], observed=True)["ie"].mean()
    return by_fact.groupby(by, observed=True).mean()


def test_every_head_has_its_average_and_interval(folder: Path, effects: pd.DataFrame) -> None:
    table = pd.read_csv(folder / "analysis" / "heads.csv")
    expected = by_hand(effects[effects["head"].notna()], OF_HEAD)
    found = table.set_index(OF_HEAD)["aie"]
    n_layers, n_heads = effects["layer"].nunique(), int(effects["head"].max()) + 1
    assert set(table["mediator"]) == set(HEADS)
    assert set(table["role"]) == {"last subject", "last"}
    assert len(found) == 2 * len(METRICS) * 2 * n_layers * n_heads
    expected.index = expected.index.set_levels(
        [
            level.astype(object if level.dtype == "category" else int)
            for level in expected.index.levels
        ]
    )
    np.testing.assert_allclose(found, expected.loc[found.index], rtol=0, atol=1e-6)
    assert expected.abs().max() > 0.05
    # The same from the frame by the public function, with the intervals.
    averaged = ktrace.average(folder, by=("mediator", "role", "layer", "head"))
    own = table[table["metric"] == "probability"].set_index(["mediator", "role", "layer", "head"])
    other = averaged.astype({"mediator": str, "role": str}).set_index(own.index.names)
    columns = ["aie", "ci_low", "ci_high", "n_facts", "n_clusters"]
    for name in columns:
        np.testing.assert_allclose(own[name], other[name].loc[own.index], rtol=0, atol=1e-6)
    assert (own["ci_low"] < own["ci_high"]).any()


def test_heads_are_in_no_other_table(folder: Path) -> None:
    """Their layers are layers of one head: no peak, no role's line is of them."""
    for name in ("aie", "peaks", "samples", "intervals"):
        table = pd.read_csv(folder / "analysis" / f"{name}.csv")
        assert not table["mediator"].str.startswith("head").any(), name
    assert "head" not in (folder / "analysis" / "contrasts.csv").read_text()
    facts = pd.read_csv(folder / "analysis" / "facts.csv")
    assert not [name for name in facts.columns if name.startswith("head")]


def test_the_strongest_heads_are_in_the_summary(folder: Path, effects: pd.DataFrame) -> None:
    summary = json.loads((folder / "analysis" / "summary.json").read_text())
    table = pd.read_csv(folder / "analysis" / "heads.csv")
    table = table[table["metric"] == summary["metric"]]
    assert set(summary["heads"]) == set(HEADS)
    for key, roles in summary["heads"].items():
        for role, heads in roles.items():
            cells = table[(table["mediator"] == key) & (table["role"] == role)]
            order = cells.sort_values("aie", ascending=key.endswith("noise"))
            assert [(h["layer"], h["head"], h["aie"]) for h in heads] == [
                *order[["layer", "head", "aie"]].head(5).itertuples(index=False, name=None)
            ]
            low, high = order["ci_low"].iloc[0], order["ci_high"].iloc[0]
            assert heads[0]["ci"] == [None if pd.isna(one) else one for one in (low, high)]
    strongest = summary["heads"]["head"]["last"][0]["aie"]
    necessary = summary["heads"]["head-noise"]["last"][0]["aie"]
    assert strongest > 0 > necessary


def test_the_smallest_window_that_is_enough(folder: Path, effects: pd.DataFrame) -> None:
    """Of the sums over facts, at the layer where the average is strongest."""
    layers = json.loads((folder / "analysis" / "layers.json").read_text())
    own = effects[(effects["metric"] == "probability") & effects["role"].notna()]
    own = own[own["mediator"].astype(str).str.startswith("mlp")]
    by_fact = own.groupby(["mediator", "role", "layer", "known_id"], observed=True)[
        ["ie", "te"]
    ].mean()
    sums = by_fact.groupby(["mediator", "role", "layer"], observed=True).sum()
    told = 0
    for name, ending in (("mlp", ""), ("mlp-noise", "-noise")):
        for role, found in layers["windows"][name].items():
            shares = {}
            for window in WINDOWS:
                cells = sums.loc[f"mlp-w{window}{ending}", role]
                peak = (-cells["ie"] if ending else cells["ie"]).idxmax()
                shares[window] = (peak, cells["ie"][peak] / cells["te"][peak])
            enough = [window for window, (_, share) in shares.items() if share >= 0.3]
            assert found["share"] == 0.3
            assert found["window"] == (enough[0] if enough else None), (name, role)
            if enough:
                assert found["layer"] == shares[enough[0]][0]
                assert found["ie_te"] == pytest.approx(shares[enough[0]][1], abs=1e-5)
            else:
                assert found["layer"] is None
                assert found["ie_te"] == pytest.approx(max(s for _, s in shares.values()), abs=1e-5)
            told += bool(enough)
    assert told


def test_heads_alone_end_whole(tmp_path: Path) -> None:
    """No role has an average, so that there is no heatmap or line of one."""
    outcome = run(composed([*SIZES, "mediator=head", f"output_dir={tmp_path}"]))
    assert outcome.analysis is not None
    names = {path.name for path in outcome.analysis.files}
    assert {"report.html", "summary.json", "heads.csv", "head.png", "layers.json"} <= names, names
    assert not [
        name for name in names if name.startswith(("aie-", "aie.png", "lines", "peaks.png"))
    ]
    summary = json.loads((outcome.folder / "analysis" / "summary.json").read_text())
    assert summary["peaks"] == {}
    assert summary["answer"].startswith("No layers can be named: whole outputs were not restored.")
    assert summary["n_traced"] > 10
    page = (outcome.folder / "analysis" / "report.html").read_text("utf-8")
    assert "attention heads, the strongest of each layer" in page


def test_chosen_positions_have_a_store_of_their_own(folder: Path, effects: pd.DataFrame) -> None:
    key = f"hidden-{AT}"
    assert sorted(path.name for path in (folder / "restored").iterdir()) == sorted(
        [key, *HEADS, *(f"mlp-w{w}{end}" for w in WINDOWS for end in ("", "-noise"))]
    )
    own = effects[effects["mediator"] == key]
    assert set(own["role"]) == {"last subject", "last"}
    assert (own.groupby("known_id")["position"].nunique() == 2).all()
    aie = pd.read_csv(folder / "analysis" / "aie.csv")
    found = aie[aie["mediator"] == key].set_index(CELL)["aie"]
    assert set(found.index.get_level_values("role")) == {"last subject", "last"}
    expected = by_hand(own, CELL)
    for cell, value in found.items():
        assert value == pytest.approx(expected[cell], abs=1e-6)
