"""Estimators on the first three candidates of a store, whose numbers are worked out by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ktrace.analysis.averaged_run import RunAverages, average_run
from ktrace.analysis.estimate import average_total_effect
from ktrace.analysis.peaks import average_peaks, peak_layers
from ktrace.analysis.rows import Averaging
from ktrace.analysis.tables import fact_table
from ktrace.store import RunFolders
from ktrace.terms import METRICS
from tests.support.stores import FACTS, known_id, p_clean, p_corrupted, write_restored, write_run

# Effects at layer 0 by fact and position; roles stand in stores.FACTS. Exact in float32.
EFFECTS = {
    0: [0, 0, 0.5, 0.25, 0.75, 0.125, 0.5, 1.0],
    1: [0, 0.25, 0.5],
    3: [0.25, 0.5, 0, 0.125, 0.25, 0.375, 0],
}
CANDIDATES = tuple(EFFECTS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> RunFolders:
    """`EFFECTS` at layer 0, and one effect of fact 1 at layer 2.

    The noise samples of fact 0 differ by ±0.25 at the last subject token, position 4.
    """
    folders = write_run(tmp_path_factory.mktemp("hand"), keys=[])
    scores = {}
    for index in CANDIDATES:
        effects = np.zeros((2, 3, len(FACTS[index].tokens)), dtype=np.float32)
        effects[:, 0] = EFFECTS[index]
        if index == 0:
            effects[:, 0, 4] += [0.25, -0.25]
        if index == 1:
            effects[:, 2, 1] = 0.375
        scores[index] = p_corrupted(index)[:, None, None] + effects
    write_restored(folders, "hidden", CANDIDATES, scores=scores)
    return folders


def averages(folders: RunFolders, **options: str) -> RunAverages:
    return average_run(folders.run, Averaging(**options), limit=max(EFFECTS) + 1)


def layer(table: pd.DataFrame, column: str, number: int = 0) -> dict[str, float]:
    chosen = table[(table["metric"] == "probability") & (table["layer"] == number)]
    return dict(zip(chosen["role"], chosen[column], strict=True))


def test_every_fact_weighs_the_same(folders: RunFolders) -> None:
    run = averages(folders)
    assert layer(run.aie, "aie") == {
        "first subject": 0.375,  # (0.5 + 0.25) / 2
        "middle subject": 0.25,
        "last subject": 0.5,  # (0.75 + 0.25 + 0.5) / 3
        "first subsequent": 0.0625,  # (0.125 + 0) / 2
        "further": 0.375,  # (0.5 + (0.125 + 0.25 + 0.375) / 3) / 2
        "last": 0.5,  # (1 + 0.5 + 0) / 3
    }
    assert list(layer(run.aie, "n_facts").values()) == [2, 1, 3, 2, 2, 3]
    assert layer(run.aie, "aie", 2)["last subject"] == 0.125


def test_every_position_weighs_the_same(folders: RunFolders) -> None:
    aie = layer(averages(folders, pool="positions").aie, "aie")
    assert aie["further"] == 0.3125  # (0.5 + 0.125 + 0.25 + 0.375) / 4
    assert aie["last subject"] == 0.5
    assert layer(averages(folders, pool="positions").aie, "n_facts")["further"] == 2


def test_the_four_row_scheme_joins_what_follows_and_drops_the_middle(folders: RunFolders) -> None:
    facts = layer(averages(folders, scheme="seed").aie, "aie")
    # Fact 0: (0.125 + 0.5) / 2; fact 3: (0 + 0.125 + 0.25 + 0.375) / 4.
    assert facts == {"first subject": 0.375, "last subject": 0.5, "further": 0.25, "last": 0.5}
    positions = layer(averages(folders, scheme="seed", pool="positions").aie, "aie")
    assert positions["further"] == pytest.approx(1.375 / 6, abs=1e-15)


def test_the_only_token_of_a_subject_counts_once_unless_both_is_asked(folders: RunFolders) -> None:
    run = averages(folders, single_token="both")
    aie = layer(run.aie, "aie")
    assert aie["first subject"] == pytest.approx(1 / 3, abs=1e-15)  # (0.5 + 0.25 + 0.25) / 3
    assert aie["last subject"] == 0.5
    assert layer(run.aie, "n_facts")["first subject"] == 3


def test_the_interval_is_over_facts(folders: RunFolders) -> None:
    run = averages(folders)
    # 0.75, 0.25, 0.5: standard error 0.25 / sqrt(3) = 0.144338; t of 2 degrees is 4.3027.
    assert layer(run.aie, "ci_low")["last subject"] == pytest.approx(0.5 - 0.62104, abs=1e-4)
    assert layer(run.aie, "ci_high")["last subject"] == pytest.approx(0.5 + 0.62104, abs=1e-4)
    assert np.isnan(layer(run.aie, "ci_low")["middle subject"])
    # 1.25 / 4 over positions: see test_few_facts_by_hand.
    pooled = averages(folders, pool="positions").aie
    assert layer(pooled, "ci_high")["further"] == pytest.approx(0.3125 + 1.19121, abs=1e-4)


def test_the_spread_over_noise_samples_stands_apart(folders: RunFolders) -> None:
    spread = averages(folders).samples
    assert set(spread["n_samples"]) == {2}
    found = layer(spread, "sample_sd")
    # Sample 0: (1 + 0.25 + 0.5) / 3; sample 1: (0.5 + 0.25 + 0.5) / 3; they differ by 1/6.
    assert found.pop("last subject") == pytest.approx(1 / 6 / np.sqrt(2), abs=1e-12)
    assert set(found.values()) == {0.0}
    assert layer(spread, "aie") == pytest.approx(layer(averages(folders).aie, "aie"), abs=1e-15)


def test_peaks(folders: RunFolders) -> None:
    run = averages(folders)
    [hidden] = run.effects
    chosen = run.aie[run.aie["metric"] == "probability"]
    assert average_peaks(chosen, "probability")["last subject"] == {"layer": 0, "aie": 0.5}
    assert peak_layers(hidden, "last subject", "rome", "probability").tolist() == [0, 2, 0]
    assert peak_layers(hidden, "middle subject", "rome", "probability").tolist() == [0]
    # A divergence falls: what was strongest is now weakest.
    assert peak_layers(hidden, "last subject", "rome", "kl").tolist() == [1, 1, 1]


def test_the_table_of_facts(folders: RunFolders) -> None:
    run = averages(folders)
    table = fact_table(run, "probability").set_index("known_id")
    assert list(table.index) == [known_id(index) for index in CANDIDATES]
    peaks = table[["hidden_peak_layer", "hidden_peak_position", "hidden_peak"]]
    # Inside the subject only: at the last position of fact 0 stands 1.0.
    assert peaks.to_numpy().tolist() == [[0, 4, 0.75], [2, 1, 0.375], [0, 1, 0.5]]
    assert table["n_positions"].tolist() == [8, 3, 7]
    for index in CANDIDATES:
        row = table.loc[known_id(index)]
        assert row["p_clean"] == p_clean(index)
        assert row["p_corrupted"] == p_corrupted(index).mean()
        assert row["te"] == p_clean(index) - p_corrupted(index).mean()


def test_grids_hold_the_mean_of_every_cell(folders: RunFolders) -> None:
    [hidden] = averages(folders).effects
    for index, row in EFFECTS.items():
        for number in range(len(METRICS)):  # they differ by a constant, which the effect cancels
            np.testing.assert_array_equal(hidden.grids[index].mean[number, 0], row)


def test_total_effect() -> None:
    # The second sample of the second fact has a foil of its own.
    clean = np.array([[0.9, 0.9], [0.6, 0.8], [0.8, 0.8]])
    corrupted = np.array([[0.1, 0.1], [0.1, 0.3], [0.3, 0.3]])
    found = average_total_effect(clean, corrupted)
    assert found["ate"] == pytest.approx(0.6)  # 0.8, 0.5, 0.5
    # Standard error 0.1; t of 2 degrees is 4.3027.
    assert found["ate_ci"] == pytest.approx([0.6 - 0.43027, 0.6 + 0.43027], abs=1e-5)
    assert found["ate_sample_sd"] == pytest.approx(0)  # (0.8 + 0.5 + 0.5) / 3 for both
    assert average_total_effect(clean[[0, 0, 2]], corrupted)["ate_sample_sd"] == pytest.approx(
        0.2 / 3 / np.sqrt(2)  # 2.6/3 − 0.5/3 and 2.6/3 − 0.7/3
    )
    alone = average_total_effect(clean[:1, :1], corrupted[:1, :1])
    assert alone["ate_ci"] == [None, None]
    assert alone["ate_sample_sd"] is None


def test_positions_without_a_role_are_in_no_row(tmp_path: Path) -> None:
    folders = write_run(tmp_path, keys=[])
    scores = {}
    for index in CANDIDATES:
        roles = np.array(FACTS[index].roles)
        before = np.where(roles == "", 0.75, 0.0).astype(np.float32)
        scores[index] = np.broadcast_to(
            p_corrupted(index)[:, None, None] + before, (2, 3, len(roles))
        )
    write_restored(folders, "hidden", CANDIDATES, scores=scores)
    for scheme in ("rome", "seed"):
        run = averages(RunFolders(folders.run), scheme=scheme)
        assert not run.aie["aie"].any()
