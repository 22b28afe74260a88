"""Paired differences within a run, against what the frame of its scores gives."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks.analysis_scale import write_store
from ktrace.analysis.averaged_run import RunAverages, average_run
from ktrace.analysis.contrasts import COLUMNS, mediator_pairs
from ktrace.analysis.effects import load_effects
from ktrace.analysis.rows import Averaging
from ktrace.terms import contrast_sides

LAYERS = 3


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 facts without relations, five mediators."""
    run = tmp_path_factory.mktemp("contrasts") / "outputs" / "m" / "d" / "gaussian-x3-n2-seed1"
    write_store(run, facts=48, layers=LAYERS, samples=2)
    return run


@pytest.fixture(scope="module")
def run(stored: Path) -> RunAverages:
    """Averaged."""
    return average_run(stored, Averaging())


@pytest.fixture(scope="module")
def by_fact(stored: Path) -> pd.DataFrame:
    """Facts down, (mediator, role, layer) across, in log probability."""
    frame = load_effects(stored, metrics=["log_probability"])
    frame["ie"] = frame["restored"].astype(float) - frame["corrupted"].astype(float)
    where = ["known_id", "mediator", "role", "layer"]
    by_position = frame.groupby([*where, "position"], observed=True)["ie"].mean()
    return by_position.groupby(where, observed=True).mean().unstack(where[1:])


def row_of(run: RunAverages, **cell: object) -> pd.Series:
    table = run.contrasts.table
    chosen = table[table["metric"] == "log_probability"]
    for name, value in cell.items():
        chosen = chosen[
            chosen[name].isna() if value is None else chosen[name].eq(value).fillna(False)
        ]
    [row] = chosen.to_dict("records")
    return pd.Series(row)


def compare(row: pd.Series, apart: pd.Series) -> None:
    """Mean, count, standard error and one side by Student's t, of the pairs that there are."""
    values = apart.dropna().to_numpy()
    assert row["difference"] == pytest.approx(values.mean(), abs=1e-9)
    assert (row["n_facts"], row["n_clusters"]) == (len(values), len(values))
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    sides = sorted([row["difference"] - row["ci_low"], row["ci_high"] - row["difference"]])
    assert sides[0] == pytest.approx(half, rel=1e-6)
    assert sides[1] >= half * (1 - 1e-9)
    assert row["beyond"] == (
        abs(values.mean()) >= 0.01 and not row["ci_low"] <= 0 <= row["ci_high"]
    )


def test_whole_minus_severed_and_mlp_minus_attention(
    run: RunAverages, by_fact: pd.DataFrame
) -> None:
    table = run.contrasts.table
    assert tuple(table.columns) == COLUMNS
    pairs = table.loc[table["contrast"] == "mediators", ["left", "right"]].drop_duplicates()
    assert set(pairs.itertuples(index=False, name=None)) == {
        ("hidden", "hidden_attn_severed"),
        ("hidden", "hidden_mlp_severed"),
        ("mlp-w10", "attn-w10"),
    }
    for left, right in pairs.itertuples(index=False):
        for role in ("last subject", "middle subject", "last"):
            for layer in range(LAYERS):
                row = row_of(run, left=left, right=right, role=role, layer=layer)
                compare(row, by_fact[left, role, layer] - by_fact[right, role, layer])
    # Only facts with a middle token count, and they are fewer than 40.
    middle = row_of(run, left="hidden", right="hidden_mlp_severed", role="middle subject", layer=0)
    assert middle["n_facts"] < 40
    assert np.isnan(middle["band_low"])
    assert middle["band_note"] == "fewer than 40 units"
    last = row_of(run, left="hidden", right="hidden_mlp_severed", role="last", layer=0)
    assert last["band_note"] == ""


def test_roles_and_layers(run: RunAverages, by_fact: pd.DataFrame) -> None:
    sides = {"left": "mlp-w10: last subject", "right": "mlp-w10: last"}
    row = row_of(run, contrast="roles", role=None, layer=1, **sides)
    compare(row, by_fact["mlp-w10", "last subject", 1] - by_fact["mlp-w10", "last", 1])
    row = row_of(run, contrast="layers", left="hidden: layers 0-0", role="last", layer=None)
    assert row["right"] == "hidden: layers 1-2"
    late = (by_fact["hidden", "last", 1] + by_fact["hidden", "last", 2]) / 2
    compare(row, by_fact["hidden", "last", 0] - late)


def test_bounds_of_a_whole_contrast_are_wider(run: RunAverages) -> None:
    table = run.contrasts.table
    has = table["band_low"].notna()
    assert (table.loc[has, "n_clusters"] >= 40).all()
    wide = has & (table["contrast"] == "mediators")
    assert wide.any()
    inside = (table["band_low"] <= table["ci_low"]) & (table["ci_high"] <= table["band_high"])
    assert inside[wide].all()
    assert not (table["beyond_all"] & ~table["beyond"])[wide].any()


def test_a_small_difference_counts_as_none(stored: Path, run: RunAverages) -> None:
    everything = average_run(stored, Averaging(smallest=0)).contrasts.table
    nothing = average_run(stored, Averaging(smallest=1e9)).contrasts.table
    assert everything["beyond"].sum() >= run.contrasts.table["beyond"].sum() > 0
    assert not nothing["beyond"].any()
    assert not nothing["beyond_all"].any()


def test_only_mediators_of_one_window_are_compared() -> None:
    keys = ["hidden", "mlp-w3", "mlp-w10", "attn-w10", "hidden_mlp_severed"]
    assert mediator_pairs(keys) == [("hidden", "hidden_mlp_severed"), ("mlp-w10", "attn-w10")]
    assert mediator_pairs(["attn-w3", "mlp-w10", "hidden_attn_severed"]) == []


def test_a_contrast_that_is_written_out(stored: Path, by_fact: pd.DataFrame) -> None:
    """Of mediators at a role, of roles in layers, of layers; and what a run cannot give."""
    asked = ("mlp: last subject minus attn: last", "middle subject: layers 1-2 minus last: layer 0")
    asked += ("hidden: layers 0-1 minus hidden_mlp_severed: layer 2", "attn-w3 minus hidden")
    asked += ("layers 0-2 minus layers 1-3",)
    own = average_run(stored, Averaging(contrasts=asked))
    table = own.contrasts.table
    assert set(table["contrast"]) == set(asked[:3])
    names = ["mlp-w10: last subject", "attn-w10: last"]
    row = row_of(own, left=names[0], right=names[1], layer=2, role=None)
    compare(row, by_fact["mlp-w10", "last subject", 2] - by_fact["attn-w10", "last", 2])
    assert len(table[table["contrast"] == asked[1]]) == 5 * 5, "a row for a metric and mediator"
    row = row_of(own, left="attn-w10: middle subject: layers 1-2", layer=None, role=None)
    assert row["right"] == "attn-w10: last: layers 0-0"
    middle = sum(by_fact["attn-w10", "middle subject", layer] for layer in (1, 2)) / 2
    compare(row, middle - by_fact["attn-w10", "last", 0])
    row = row_of(own, left="hidden: layers 0-1", role="last", layer=None)
    early = sum(by_fact["hidden", "last", layer] for layer in (0, 1)) / 2
    compare(row, early - by_fact["hidden_mlp_severed", "last", 2])
    stored_keys = "hidden, hidden_attn_severed, hidden_mlp_severed, mlp-w10, attn-w10"
    assert own.contrasts.notes == [
        f"contrast 'attn-w3 minus hidden' is left out: attn-w3 is not among {stored_keys}",
        "contrast 'layers 0-2 minus layers 1-3' is left out: the model has layers 0-2",
    ]
    # The figure of severed mediators needs theirs, asked for or not.
    assert set(own.mediators_apart["left"]) == {"hidden", "mlp-w10"}
    seed = average_run(stored, Averaging("seed", contrasts=("middle subject minus last",)))
    assert seed.contrasts.table.empty
    assert seed.contrasts.notes[0].endswith("the scheme seed has no row 'middle subject'")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("halves", "is neither mediators, roles, layers nor two sides with minus between"),
        ("mlp minus attn minus hidden", "is neither"),
        ("mlp minus last", "names mediator on one side only"),
        ("mlp minus attn: layers 0-3", "names layers on one side only"),
        ("mlp minus mlp", "has the same on both sides"),
        ("mlp: last: first subject minus attn: last", "names role twice on one side"),
        ("layers 3-1 minus layers 4-5", "names layers that end before they begin: 'layers 3-1'"),
        ("mpl minus attn", "holds 'mpl', which is no mediator \\(hidden, "),
    ],
)
def test_a_contrast_that_says_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        contrast_sides(text)
