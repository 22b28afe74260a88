"""Estimators on the first three candidates of a store, whose numbers are worked out by hand."""

import math
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ktrace.analysis import intervals
from ktrace.analysis.averaged_run import RunAverages, average_run
from ktrace.analysis.clusters import (
    Clusters,
)
from ktrace.analysis.estimate import AverageTotalEffect, average_total_effect
from ktrace.analysis.peaks import average_peaks, peak_layers
from ktrace.analysis.per_fact import Sum, TotalEffects, fact_grids, reduce_mediator
from ktrace.analysis.rows import Averaging
from ktrace.analysis.stored import Survey, survey
from ktrace.analysis.tables import fact_table
from ktrace.store import RestoredRecord, RunFolders
from ktrace.terms import METRICS
from tests.support.stores import (
    FACTS,
    known_id,
    p_clean,
    p_corrupted,
    p_restored,
    write_restored,
    write_run,
)

# Effects at layer 0 by fact and position; roles stand in stores.FACTS. Exact in float32.
EFFECTS = {
    0: [0, 0, 0.5, 0.25, 0.75, 0.125, 0.5, 1.0],
    1: [0, 0.25, 0.5],
    3: [0.25, 0.5, 0, 0.125, 0.25, 0.375, 0],
}
CANDIDATES = tuple(EFFECTS)
# Whose range holds effects as large as these; all metrics have the same.
METRIC = "logit"


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


def averages(folders: RunFolders, **options: Any) -> RunAverages:
    return average_run(folders.run, Averaging(**options), limit=max(EFFECTS) + 1)


def layer(table: pd.DataFrame, column: str, number: int = 0) -> dict[str, float]:
    chosen = table[(table["metric"] == METRIC) & (table["layer"] == number)]
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


def test_the_interval_is_over_facts(folders: RunFolders, monkeypatch: pytest.MonkeyPatch) -> None:
    run = averages(folders)
    chosen = run.aie[run.aie["role"] == "last subject"]
    assert chosen[["ci_low", "ci_high"]].isna().all(axis=None), "three facts say nothing of others"
    assert set(chosen["ci_note"]) == {"fewer than 8 effective facts"}
    monkeypatch.setattr(intervals, "FEWEST_FACTS", 2)
    run = averages(folders)
    # 0.75, 0.25, 0.5: standard error 0.25 / sqrt(3) = 0.144338; t of 2 degrees is 4.3027.
    low, high = (layer(run.aie, name)["last subject"] for name in ("ci_low", "ci_high"))
    assert [low, high] == pytest.approx([0.5 - 0.62104, 0.5 + 0.62104], abs=1e-4)
    assert np.isnan(layer(run.aie, "ci_low")["middle subject"])
    # Fact 3 has three further positions, fact 0 one: 1.25 / 4 over positions. Without fact 0,
    # 0.75 / 3; without fact 3, 0.5: they differ from 0.3125 by -0.0625 and 0.1875.
    monkeypatch.setattr(intervals, "FEWEST_FACTS", 1.5)
    pooled = averages(folders, pool="positions").aie
    error = np.sqrt((0.0625**2 + 0.1875**2) / 2)
    t = stats.t.ppf(0.975, 1.6 - 1)  # (1 + 3)² / (1 + 9) = 1.6 effective facts
    low = layer(pooled, "ci_low")["further"]
    assert low == pytest.approx(0.3125 - t * error, abs=1e-9)
    within = pooled[pooled["metric"] == "probability"]["ci_low"].dropna()
    assert within.min() == -1, "no probability falls by more than all of it"


def test_the_share_of_the_total_effect(
    folders: RunFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = averages(folders)
    assert run.aie["ie_te"].isna().all(), "three facts do not tell that there is a total effect"
    effects = [p_clean(index) - p_corrupted(index).mean() for index in CANDIDATES]
    monkeypatch.setattr(intervals, "FEWEST_FACTS", 2)
    found = layer(averages(folders).aie, "ie_te")
    assert found["last subject"] == pytest.approx(1.5 / sum(effects))
    # Facts 0 and 3 alone have such positions: the total effect of two facts may be 0.
    assert np.isnan(found["further"])


def test_relations_are_the_units(folders: RunFolders) -> None:
    run = averages(folders)
    assert layer(run.aie, "n_clusters") == layer(run.aie, "n_facts")
    assert run.clusters.codes.tolist() == [0, 1, 2], "without a relation, each is its own"
    by_answer = averages(folders, cluster="attribute")
    assert set(layer(by_answer.aie, "n_clusters").values()) == {1}
    assert averages(folders, cluster=None).clusters.name == "facts"


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
    chosen = run.aie[run.aie["metric"] == METRIC]
    assert average_peaks(chosen, METRIC)["last subject"] == {"layer": 0, "aie": 0.5}
    assert peak_layers(hidden, "last subject", "rome", METRIC).tolist() == [0, 2, 0]
    assert peak_layers(hidden, "middle subject", "rome", METRIC).tolist() == [0]
    # A divergence falls: what was strongest is now weakest.
    assert peak_layers(hidden, "last subject", "rome", "kl").tolist() == [1, 1, 1]


def test_the_table_of_facts(folders: RunFolders) -> None:
    run = averages(folders)
    table = fact_table(run, METRIC).set_index("known_id")
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
    grids = fact_grids(averages(folders).survey, "hidden", [*EFFECTS, 99])
    assert grids.keys() == EFFECTS.keys()
    for index, row in EFFECTS.items():
        # They differ by a constant, which the effect cancels; a probability ends at 1.
        for number in range(1, len(METRICS)):
            np.testing.assert_array_equal(grids[index][number, 0], row)


def test_total_effect() -> None:
    # The second sample of the second fact has a foil of its own.
    clean = np.array([[0.9, 0.9], [0.6, 0.8], [0.8, 0.8]])
    corrupted = np.array([[0.1, 0.1], [0.1, 0.3], [0.3, 0.3]])
    found = ate(clean, corrupted)
    assert found["ate"] == pytest.approx(0.6)  # 0.8, 0.5, 0.5
    assert found["ate_ci"] == [None, None]
    assert found["ate_ci_note"] == "fewer than 8 effective facts"
    assert (found["n_clusters"], found["icc"]) == (3, None)
    assert found["ate_sample_sd"] == pytest.approx(0)  # (0.8 + 0.5 + 0.5) / 3 for both
    assert ate(clean[[0, 0, 2]], corrupted)["ate_sample_sd"] == pytest.approx(
        0.2 / 3 / np.sqrt(2)  # 2.6/3 − 0.5/3 and 2.6/3 − 0.7/3
    )
    alone = ate(clean[:1, :1], corrupted[:1, :1])
    assert alone["ate_ci"] == [None, None]
    assert alone["ate_sample_sd"] is None


def test_the_interval_of_the_total_effect() -> None:
    generator = np.random.default_rng(0)
    clean, corrupted = 0.5 + generator.random((40, 5)) / 2, generator.random((40, 5)) / 2
    relations = Clusters.of("relation_id", [i % 8 for i in range(40)])
    found = ate(clean, corrupted, relations)
    effects = (clean - corrupted).mean(axis=1)
    means = effects.reshape(5, 8).mean(axis=0)
    assert (found["n_clusters"], found["ate_ci_over"]) == (8, "relation_id")
    # Relations of equal size: Student's interval of their means, but for skewness.
    width = np.diff(found["ate_ci"])[0]
    assert width == pytest.approx(2 * stats.t.ppf(0.975, 7) * stats.sem(means), rel=0.05)
    assert width > 2 * stats.t.ppf(0.975, 7) * stats.sem(means)
    between, within = 5 * means.var(ddof=1), effects.reshape(5, 8).var(axis=0, ddof=1).mean()
    assert found["icc"] == pytest.approx((between - within) / (between + 4 * within))
    # With few samples, their draw counts, too.
    both = ate(clean, corrupted, relations, "facts_and_samples")
    assert both["ate_ci_over"] == "relation_id and samples"
    assert both["ate_ci"][0] < found["ate_ci"][0] < found["ate_ci"][1] < both["ate_ci"][1]
    one = ate(clean[:, :1], corrupted[:, :1], relations, "facts_and_samples")
    assert (one["ate_ci"], one["ate_ci_note"]) == ([None, None], "one noise sample")
    # A run does not diverge from itself: the total effect in KL is at most 0.
    few = np.zeros((40, 1))
    few[:2] = 6
    assert ate(0 * few, few, metric="kl")["ate_ci"][1] == 0


def ate(
    clean: np.ndarray,
    corrupted: np.ndarray,
    clusters: Clusters | None = None,
    interval: str = "facts",
    metric: str = "probability",
) -> AverageTotalEffect:
    """`average_total_effect` of `(n_facts, n_samples)` in one metric."""
    shape = (len(clean), len(METRICS), clean.shape[1])
    total = TotalEffects(*(np.broadcast_to(x[:, None], shape) for x in (clean, corrupted)))
    return average_total_effect(total, metric, clusters or Clusters.none(len(clean)), interval)


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


@pytest.mark.parametrize("pool", ["facts", "positions"])
def test_the_order_of_the_parts_changes_no_bit(tmp_path: Path, pool: str) -> None:
    """Facts come part by part."""
    found = []
    orders = ([[0, 1, 3, 4, 5]], [[0, 5], [1, 3, 4]], [[0, 4], [1, 5], [3]], [[0, 3, 5], [1, 4]])
    # Of sizes so different that float64 rounds their sums.
    scores = {
        index: p_restored(index, "hidden") * np.float32(1000.0**-index) for index in (0, 1, 3, 4, 5)
    }
    for number, parts in enumerate(orders):
        folders = write_run(tmp_path / str(number), keys=[])
        for part in parts:
            write_restored(folders, "hidden", part, scores=scores)
        run = average_run(folders.run, Averaging(pool=pool))
        stored = [record.index for record in RestoredRecord.read(folders.restored("hidden"))]
        found.append((stored, run.samples, run.aie, run.effects[0].by_sample))
    assert len({tuple(stored) for stored, *_ in found}) > 1, "the stores come in several orders"
    for _, samples, aie, by_sample in found[1:]:
        pd.testing.assert_frame_equal(samples, found[0][1], check_exact=True)
        pd.testing.assert_frame_equal(aie, found[0][2], check_exact=True)
        np.testing.assert_array_equal(by_sample, found[0][3])


def test_a_sum_does_not_hang_on_its_order() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(500, 40)) * 10.0 ** generator.integers(-6, 7, size=(500, 40))
    found, plain = set(), set()
    for _ in range(20):
        order = generator.permutation(len(values))
        summed = Sum((40,))
        for one in values[order]:
            summed.add(one)
        found.add(summed.total.tobytes())
        plain.add(sum(values[order]).tobytes())
    assert found == {np.array([math.fsum(column) for column in values.T]).tobytes()}
    assert len(plain) > 1, "any sum would have passed"


def test_a_sum_of_what_is_no_number_is_none() -> None:
    summed = Sum((3,))
    for one in ([1.0, np.nan, np.inf], [2.0, 1.0, 1.0]):
        summed.add(np.array(one))
    np.testing.assert_array_equal(summed.total, [3.0, np.nan, np.inf])


def test_samples_are_let_go_fact_by_fact(folders: RunFolders) -> None:
    """They are most of what a run holds; what is kept grows with facts alone."""
    found = survey(folders, whole_dataset=False)
    n_facts, n_samples, n_layers = 200, 40, 8
    clean, one = found.clean[0], found.corrupted[0]
    scores = {metric: np.zeros(n_samples) for metric in METRICS}
    corrupted = replace(one, clean=scores, corrupted=scores)
    made = Survey(
        folders,
        None,
        {index: replace(clean, index=index) for index in range(n_facts)},
        {index: replace(corrupted, index=index) for index in range(n_facts)},
        {"hidden": frozenset(range(n_facts))},
    )
    shape = (n_samples, n_layers, 1, len(clean.tokens))
    restored = {metric: np.zeros(shape, np.float32) for metric in METRICS}
    places = np.arange(shape[-1])

    def records() -> Iterator[RestoredRecord]:
        for index in range(n_facts):
            yield RestoredRecord(index, index, "hidden", places, restored)

    tracemalloc.start()
    try:
        effects = reduce_mediator(made, "hidden", Averaging(), records())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert effects.totals.shape[0] == n_facts
    samples_of_all = n_facts * n_samples * len(METRICS) * 6 * n_layers * 8
    assert peak < 0.2 * samples_of_all
