"""Intervals of averages over facts: by hand, what must not change them, how often they hold."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ktrace.analysis import intervals
from ktrace.analysis.clusters import (
    Clusters,
    intraclass_correlation,
)
from ktrace.analysis.estimate import effect_range
from ktrace.analysis.intervals import (
    NO_SPREAD,
    Averages,
    Drawn,
    averages,
    t_quantile,
)

Array = np.ndarray[Any, Any]


def cells_of(
    values: Sequence[float] | Array, labels: Sequence[Any] | None = None, weights: Any = None
) -> Averages:
    """One cell, or those of the columns."""
    totals = np.asarray(values, dtype=np.float64)
    totals = totals[:, None] if totals.ndim == 1 else totals
    clusters = Clusters.none(len(totals)) if labels is None else Clusters.of("relation_id", labels)
    weights = np.ones(len(totals)) if weights is None else np.asarray(weights, dtype=np.float64)
    return averages(totals, weights, clusters)


def bounds(*args: Any, **options: Any) -> list[float]:
    low, high = cells_of(*args).interval(**options)
    return [float(low[0]), float(high[0])]


def spread_out(sizes: Sequence[int], sums: Sequence[float]) -> tuple[list[float], list[str]]:
    """Facts of relations that have these sums."""
    values = [total / size for size, total in zip(sizes, sums, strict=True) for _ in range(size)]
    labels = [f"r{i}" for i, size in enumerate(sizes) for _ in range(size)]
    return values, labels


def test_by_hand() -> None:
    # Mean 1/8, standard error 1/8, γ of seven zeros and a one: λ = 0.80178, t of 7 degrees 2.36462.
    assert bounds([0] * 7 + [1]) == pytest.approx([-0.170578, 1.060891], abs=5e-7)
    assert bounds([0] * 7 + [1], limits=effect_range("probability")) == pytest.approx(
        [-0.170578, 1], abs=5e-7
    )
    assert bounds([0] * 49 + [0.5]) == pytest.approx([-0.010096, 0.072924], abs=5e-7)
    # No skewness: 4.5 ± 2.36462 · 2.44949 / sqrt(8).
    assert bounds(range(1, 9)) == pytest.approx([2.452175, 6.547825], abs=5e-7)


def test_relations_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "FEWEST_CLUSTERS", 3)
    values, labels = spread_out([4, 2, 2, 1, 3], [4, 1, 2, 0, 3])
    cells = cells_of(values, labels)
    low, high = cells.interval()
    assert [low[0], high[0]] == pytest.approx([-0.667426, 1.232440], abs=5e-7)
    assert cells.blocks[0].n_effective == 4.235
    assert cells.n_clusters.tolist() == [5]
    assert cells.over.tolist() == ["relation_id"]


@pytest.mark.parametrize(
    "labels", [None, [i % 6 for i in range(30)], [i * i // 60 for i in range(30)]]
)
def test_scale_shift_sign_and_order_change_nothing(labels: list[int] | None) -> None:
    generator = np.random.default_rng(0)
    values = generator.gamma(0.5, size=30)
    low, high = bounds(values, labels)
    for factor, shift in ((1e-9, 0.0), (1e6, 0.0), (1.0, 1e3)):
        assert bounds(values * factor + shift, labels) == pytest.approx(
            [low * factor + shift, high * factor + shift], rel=1e-9
        )
    assert bounds(-values, labels) == pytest.approx([-high, -low], rel=1e-9)
    order = generator.permutation(30)
    shuffled = None if labels is None else [labels[i] for i in order]
    assert bounds(values[order], shuffled) == pytest.approx([low, high], rel=1e-12)


def test_relations_of_one_fact_each_are_no_relations() -> None:
    values = np.random.default_rng(1).beta(0.3, 1.5, 20)
    assert bounds(values, list(range(20))) == bounds(values)
    # Nor is a fact without one a fact of the relation of all that have none.
    for missing in ("", None, float("nan")):
        assert bounds(values, [missing] * 20) == bounds(values)
    assert cells_of(values, list(range(20))).over.tolist() == ["facts"]
    # 6 relations of 3 facts, and 2 facts that stand for themselves.
    labels = [*(i // 3 for i in range(18)), "", None]
    cells = cells_of(values, labels)
    assert (cells.n_clusters.tolist(), cells.over.tolist()) == ([8], ["relation_id"])
    assert bounds(values, labels) == bounds(values, [*labels[:18], "own", "own too"])


@pytest.mark.parametrize(
    ("n_facts", "n_relations", "over"),
    [
        (7, None, ""),
        (8, None, "facts"),
        (1, None, ""),
        (2, 2, ""),
        (24, 1, "facts"),
        (24, 4, "facts"),
        (24, 6, "relation_id"),
        (7, 5, ""),
        (15, 5, "relation_id"),
    ],
)
def test_there_is_none_where_few_say_nothing(
    n_facts: int, n_relations: int | None, over: str
) -> None:
    values = np.random.default_rng(2).random(n_facts)
    labels = None if n_relations is None else [i % n_relations for i in range(n_facts)]
    cells = cells_of(values, labels)
    low, high = cells.interval()
    assert cells.over.tolist() == [over]
    assert np.isnan([low[0], high[0]]).all() == (over == "")
    assert (cells.note[0] == "") == (over != "")
    assert cells.n_facts.tolist() == [n_facts]
    assert cells.n_clusters.tolist() == [n_relations or n_facts]
    if over == "facts":
        assert [low[0], high[0]] == bounds(values)


def test_one_large_relation_is_few_units() -> None:
    values, labels = np.random.default_rng(3).random(60), [0] * 50 + [*range(1, 11)]
    cells = cells_of(values, labels)
    assert cells.note.tolist() == ["fewer than 5 effective clusters"]
    assert cells.n_clusters.tolist() == [11]


@pytest.mark.parametrize("value", [0.0, 0.1, -3e5])
def test_equal_values_claim_no_certainty(value: float) -> None:
    cells = cells_of([value] * 40)
    assert np.isnan(cells.interval()).all()
    assert cells.note.tolist() == [NO_SPREAD]
    assert cells.value[0] == pytest.approx(value)


def test_a_fact_without_a_cell_does_not_count_there() -> None:
    generator = np.random.default_rng(4)
    values, labels = generator.random((40, 3)), [i % 8 for i in range(40)]
    values[:11, 1] = np.nan
    together = cells_of(values, labels)
    low, high = together.interval()
    for cell, facts in enumerate((slice(None), slice(11, None), slice(None))):
        alone = bounds(values[facts, cell], labels[facts])
        assert [low[cell], high[cell]] == pytest.approx(alone, rel=1e-12)
    assert together.n_facts.tolist() == [40, 29, 40]
    weights = np.where(np.isnan(values), 0, 1.0)
    by_weight = averages(np.nan_to_num(values), weights, Clusters.of("relation_id", labels))
    np.testing.assert_allclose(by_weight.interval(), (low, high), rtol=1e-12)


def test_the_error_is_that_of_a_cluster_robust_regression() -> None:
    """The jackknife of a mean is the sandwich CR3 of a regression on a constant."""
    generator = np.random.default_rng(5)
    sizes = [3, 9, 4, 12, 7, 5, 6, 8]
    labels = np.repeat(np.arange(8), sizes)
    values = generator.gamma(0.5, size=8)[labels] + generator.normal(size=54)
    residuals = values - values.mean()
    # (1 − share) is what a cluster's residuals keep of their sum after projection.
    adjusted = [residuals[labels == g].sum() / (1 - n / 54) for g, n in enumerate(sizes)]
    error = math.sqrt(7 / 8 * sum(x * x for x in adjusted)) / 54
    one = cells_of(values, labels.tolist()).blocks[0]
    assert math.sqrt(one.variance[0]) == pytest.approx(error, rel=1e-12)
    degrees = round(54**2 / sum(n * n for n in sizes), 3) - 1
    low, high = bounds(values, labels.tolist())
    t = stats.t.ppf(0.975, degrees)
    short = low if one.skew[0] > 0 else high
    assert abs(short - values.mean()) == pytest.approx(t * error, rel=1e-10)
    # The long side undoes Hall's cubic: g(T) = T + λT²/3 + λ²T³/27 + λ/6 at its far end is −t.
    far, skew = (values.mean() - (high if one.skew[0] > 0 else low)) / error, abs(one.skew[0])
    far = -abs(far)
    assert far + skew * far**2 / 3 + skew**2 * far**3 / 27 + skew / 6 == pytest.approx(-t)


def test_without_relations_it_is_that_of_student_and_of_scipy() -> None:
    half = np.random.default_rng(6).random((30, 4))
    values = np.concatenate([3 + half, 3 - half])
    low, high = cells_of(values).interval()
    error = stats.sem(values, axis=0)
    np.testing.assert_allclose(low, 3 - stats.t.ppf(0.975, 59) * error, rtol=1e-12)
    np.testing.assert_allclose(high, 3 + stats.t.ppf(0.975, 59) * error, rtol=1e-12)
    assert t_quantile(9) == pytest.approx(stats.t.ppf(0.975, 9), rel=1e-12)


def test_weights_make_it_a_ratio() -> None:
    generator = np.random.default_rng(7)
    weights = generator.integers(1, 6, 30).astype(np.float64)
    totals = generator.random(30) * weights
    alone = [(totals.sum() - y) / (weights.sum() - w) for y, w in zip(totals, weights, strict=True)]
    ratio = totals.sum() / weights.sum()
    error = math.sqrt(29 / 30 * ((np.array(alone) - ratio) ** 2).sum())
    one = cells_of(totals, None, weights).blocks[0]
    assert one.value[0] == pytest.approx(ratio)
    assert math.sqrt(one.variance[0]) == pytest.approx(error, rel=1e-9)
    assert one.n_effective == round(weights.sum() ** 2 / (weights**2).sum(), 3)


def test_the_draw_of_the_noise_widens_it() -> None:
    cells = cells_of(range(1, 9))
    one = cells.blocks[0]
    low, high = Averages(cells.blocks, cells.cells, Drawn(one.variance, 4)).interval()
    # As much from 4 samples as from 8 facts: degrees (2v)² / (v²/7 + v²/3) = 8.4.
    half = stats.t.ppf(0.975, 8.4) * math.sqrt(2 * one.variance[0])
    assert [low[0], high[0]] == pytest.approx([4.5 - half, 4.5 + half], rel=1e-12)
    joined = Averages(cells.blocks, cells.cells, Drawn(np.zeros(1), 4))
    np.testing.assert_allclose(joined.interval(), cells.interval(), rtol=1e-12)
    assert joined.over.tolist() == ["facts and samples"]
    assert Averages(cells.blocks, cells.cells, Drawn(np.zeros(1), 1)).over.tolist() == [""]


def test_no_interval_leaves_its_range() -> None:
    generator = np.random.default_rng(8)
    for n_facts in (8, 10, 15):
        carriers = generator.random((n_facts, 10_000)) < 0.15
        values = np.where(carriers, generator.choice([-1.0, 1.0], (n_facts, 10_000)), 0)
        low, high = cells_of(values).interval(limits=effect_range("probability"))
        has = ~np.isnan(low)
        assert has.mean() > 0.5
        assert (low[has] >= -1).all()
        assert (high[has] <= 1).all()
        assert ((low <= cells_of(values).value) & (cells_of(values).value <= high))[has].all()


def bounds_at_once(values: Array, labels: Sequence[Any] | None = None) -> tuple[Array, Array]:
    return cells_of(values, labels).at_once()


def test_bounds_of_all_cells_at_once() -> None:
    generator = np.random.default_rng(9)
    values = generator.normal(size=(60, 1)) + 0.5 * generator.normal(size=(60, 20))
    low, high = bounds_at_once(values)
    alone_low, alone_high = cells_of(values).interval()
    ratio = (high - low) / (alone_high - alone_low)
    # By hand: 2,000 draws of the largest correlated deviation, at the level of which scipy's t is.
    pull = values - values.mean(axis=0)
    pull /= np.sqrt((pull**2).sum(axis=0))
    largest = np.abs(np.random.default_rng(1).normal(size=(20_000, 60)) @ pull).max(axis=1)
    beyond = 2 * stats.norm.sf(np.quantile(largest, 0.95))
    expected = stats.t.ppf(1 - beyond / 2, 59) / stats.t.ppf(0.975, 59)
    assert np.median(ratio) == pytest.approx(expected, rel=0.02)
    # A cell once or twice: nothing new. One cell alone: its own interval.
    twice = bounds_at_once(np.concatenate([values, values], axis=1))
    np.testing.assert_allclose(twice[0][:20], low, rtol=1e-6)
    single = bounds_at_once(values[:, :1])
    np.testing.assert_allclose(single[0], alone_low[:1], atol=0.02)
    # Cells of fewer than 40 units have none, and do not move the others.
    few = np.where(np.arange(60)[:, None] < 30, values[:, :3], np.nan)
    mixed = bounds_at_once(np.concatenate([values, few], axis=1))
    assert np.isnan(mixed[0][20:]).all()
    np.testing.assert_allclose(mixed[0][:20], low, rtol=1e-9)
    assert np.isnan(bounds_at_once(values[:39])).all()
    assert np.isnan(bounds_at_once(values, [i % 17 for i in range(60)])).all()


def test_intraclass_correlation_by_hand() -> None:
    # Two clusters of two: between 2 · 2² = 8 over 1 degree, within 4 · 0.5² = 1 over 2.
    clusters = Clusters.of("relation_id", ["a", "a", "b", "b"])
    values = np.array([0.5, 1.5, 2.5, 3.5])
    assert intraclass_correlation(values, clusters) == pytest.approx((4 - 0.5) / (4 + 0.5))
    assert intraclass_correlation(np.array([1.0, 1, 3, 3]), clusters) == 1
    for labels in (["a"] * 4, ["a", "b", "c", "d"]):
        assert math.isnan(intraclass_correlation(values, Clusters.of("relation_id", labels)))
    assert math.isnan(intraclass_correlation(np.ones(4), clusters))
