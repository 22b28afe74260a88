"""Intervals of averages over facts."""

from collections.abc import Callable

import numpy as np
import pytest

from ktrace.analysis.intervals import interval, ratio

Draw = Callable[[np.random.RandomState, tuple[int, int]], np.ndarray]


def test_the_interval_is_the_same_every_time() -> None:
    values, weights = np.random.RandomState(0).randn(20, 3), np.ones(20)
    first, second = interval(values, weights), interval(values.copy(), weights)
    np.testing.assert_array_equal(first, second)
    # Cells are drawn together, but one does not move the other.
    np.testing.assert_allclose(np.array(first)[:, :1], interval(values[:, :1], weights), rtol=1e-6)


def test_the_interval_of_normal_values_is_that_of_student() -> None:
    half = np.random.RandomState(1).rand(30, 4)
    values = np.concatenate([3 + half, 3 - half])
    low, high = interval(values, np.ones(60))
    np.testing.assert_allclose((low + high) / 2, 3, atol=0.02)
    expected = 2.001 * values.std(axis=0, ddof=1) / np.sqrt(60)
    np.testing.assert_allclose((high - low) / 2, expected, rtol=0.08)


def test_the_unit_of_the_values_does_not_matter() -> None:
    values, weights = np.random.RandomState(4).gamma(0.5, size=(30, 2)), np.ones(30)
    low, high = interval(values, weights)
    for factor, shift in ((1e-9, 0.0), (1e6, 0.0), (1.0, 1e3)):
        moved = interval(values * factor + shift, weights)
        np.testing.assert_allclose(moved[0], low * factor + shift, rtol=1e-5)
        np.testing.assert_allclose(moved[1], high * factor + shift, rtol=1e-5)


@pytest.mark.parametrize("n_facts", [2, 7, 8, 40])
def test_the_interval_of_equal_values_is_that_value(n_facts: int) -> None:
    low, high = interval(np.full((n_facts, 2), 0.1), np.ones(n_facts))
    np.testing.assert_allclose([low, high], 0.1, rtol=1e-12)


def test_one_fact_has_no_interval() -> None:
    assert np.isnan(interval(np.array([[0.5, 0.1]]), np.ones(1))).all()
    weights = np.zeros(10)
    weights[3] = 1
    assert np.isnan(interval(np.ones((10, 1)), weights)).all()


def test_few_facts_by_hand() -> None:
    # 1, 2, 3: mean 2, standard deviation 1, standard error 1/sqrt(3); t of 2 degrees is 4.3027.
    low, high = interval(np.array([[1.0], [2.0], [3.0]]), np.ones(3))
    np.testing.assert_allclose([low[0], high[0]], [2 - 2.48416, 2 + 2.48416], atol=1e-4)
    # Sums 0.5 over one position and 0.75 over three: 1.25 / 4. Residuals 0.1875 and -0.1875; the
    # standard error of the ratio is 0.1875 * sqrt(2) * sqrt(2) / 4; t of 1 degree is 12.7062.
    totals, weights = np.array([[0.5], [0.75]]), np.array([1.0, 3.0])
    low, high = interval(totals, weights)
    assert ratio(totals, weights).tolist() == [0.3125]
    np.testing.assert_allclose([low[0], high[0]], [0.3125 - 1.19121, 0.3125 + 1.19121], atol=1e-4)


def test_facts_without_a_cell_do_not_count_for_it() -> None:
    values = np.random.RandomState(2).rand(12, 1)
    padded = np.concatenate([values, np.zeros((400, 1))])
    weights = np.concatenate([np.ones(12), np.zeros(400)])
    np.testing.assert_array_equal(interval(padded, weights), interval(values, np.ones(12)))


def skewed(generator: np.random.RandomState, shape: tuple[int, int]) -> np.ndarray:
    """As indirect effects are: most facts near nothing, some far up. The mean is 0.3 / 1.8."""
    return generator.beta(0.3, 1.5, size=shape)


@pytest.mark.parametrize(
    ("draw", "mean", "n_facts"),
    [(lambda g, s: g.randn(*s), 0.0, 12), (skewed, 1 / 6, 30), (skewed, 1 / 6, 100)],
)
def test_the_interval_covers_as_often_as_it_says(draw: Draw, mean: float, n_facts: int) -> None:
    # Each cell is an experiment of its own (benchmarks/coverage.py has more).
    values = draw(np.random.RandomState(3), (n_facts, 1000))
    low, high = interval(values, np.ones(n_facts))
    assert 0.93 <= np.mean((low < mean) & (mean < high)) <= 0.97


def test_positions_of_one_fact_are_not_counted_as_independent() -> None:
    """A fact's positions share its effect: an interval over positions would be too narrow."""
    generator = np.random.RandomState(5)
    covered = []
    for _ in range(300):
        weights = generator.randint(1, 6, size=40).astype(float)
        totals = skewed(generator, (40, 4)) * weights[:, None]
        low, high = interval(totals, weights)
        covered.append((low < 1 / 6) & (high > 1 / 6))
    assert 0.93 <= np.mean(covered) <= 0.97
