"""Averages and their intervals."""

import numpy as np
import pandas as pd
import pytest

from ktrace.analysis.estimate import average_indirect_effects, bootstrap_interval, total_effect


def test_the_interval_is_the_same_every_time() -> None:
    values = np.random.RandomState(0).randn(20, 3)
    first, second = bootstrap_interval(values), bootstrap_interval(values.copy())
    np.testing.assert_array_equal(first, second)
    # Cells are drawn together, but one does not move the other.
    np.testing.assert_allclose(np.array(first)[:, :1], bootstrap_interval(values[:, :1]))


def test_the_interval_of_symmetric_data_holds_the_mean_in_its_middle() -> None:
    half = np.random.RandomState(1).rand(30, 4)
    values = np.concatenate([3 + half, 3 - half])
    low, high = bootstrap_interval(values)
    assert (low < 3).all()
    assert (high > 3).all()
    np.testing.assert_allclose((low + high) / 2, 3, atol=0.02)
    expected = 1.96 * values.std(axis=0) / np.sqrt(len(values))
    np.testing.assert_allclose((high - low) / 2, expected, rtol=0.08)


def test_the_interval_of_equal_values_is_that_value() -> None:
    low, high = bootstrap_interval(np.full((5, 2), 0.25))
    np.testing.assert_allclose([low, high], 0.25)


def test_one_fact_has_no_interval() -> None:
    low, high = bootstrap_interval(np.array([[0.5, 0.1]]))
    assert np.isnan([low, high]).all()
    rare = np.full((10, 2), np.nan)
    rare[:, 0] = np.arange(10)
    rare[3, 1] = 1.0
    low, high = bootstrap_interval(rare)
    assert np.isnan([low, high]).tolist() == [[False, True]] * 2


def test_facts_without_a_cell_do_not_count_for_it() -> None:
    values = np.random.RandomState(2).rand(12, 1)
    padded = np.concatenate([values, np.full((400, 1), np.nan)])
    alone, among = np.array(bootstrap_interval(values)), np.array(bootstrap_interval(padded))
    assert values.min() <= among[0] < values.mean() < among[1] <= values.max()
    np.testing.assert_allclose(among, alone, atol=0.05)


def test_the_interval_covers_as_often_as_it_says() -> None:
    # Each cell is an experiment of its own with the true mean 0.
    values = np.random.RandomState(3).randn(120, 1500)
    low, high = bootstrap_interval(values)
    coverage = np.mean((low < 0) & (high > 0))
    assert 0.93 <= coverage <= 0.97


def test_total_effect() -> None:
    clean, corrupted = np.array([0.9, 0.7, 0.8]), np.array([0.1, 0.2, 0.3])
    found = total_effect(clean, corrupted)
    assert found["ate"] == pytest.approx(0.6)
    assert 0.499 < found["ate_ci"][0] < 0.6 < found["ate_ci"][1] < 0.801
    assert total_effect(clean[:1], corrupted[:1])["ate_ci"] == [None, None]


def frame(rows: list[tuple[int, int, int, str | None, float]]) -> pd.DataFrame:
    """Effects from `(known_id, sample, position, role, restored)`; corrupted is 0.25."""
    effects = pd.DataFrame(rows, columns=["known_id", "sample", "position", "role", "restored"])
    return effects.assign(mediator="hidden", metric="probability", layer=0, corrupted=0.25)


def test_every_fact_weighs_the_same() -> None:
    rows = [(1, sample, position, "further", 0.25) for sample in (0, 1) for position in range(8)]
    rows += [(2, sample, 0, "further", 1.25) for sample in (0, 1)]
    aie = average_indirect_effects(frame(rows), "rome")
    assert aie["aie"].tolist() == [0.5]  # over cells it would be 0.11
    assert aie["n_facts"].tolist() == [2]


def test_positions_without_a_role_are_in_no_row() -> None:
    rows = [(1, 0, 0, None, 0.9), (1, 0, 1, "last", 0.5)]
    aie = average_indirect_effects(frame(rows), "rome")
    assert aie["role"].tolist() == ["last"]
    assert aie["aie"].tolist() == [0.25]


def test_the_four_row_scheme_joins_what_follows_and_drops_the_middle() -> None:
    roles = ["first subject", "middle subject", "last subject"]
    roles += ["first subsequent", "further", "further", "last"]
    rows = [(1, 0, position, role, 0.25 + position) for position, role in enumerate(roles)]
    seed = average_indirect_effects(frame(rows), "seed").set_index("role")["aie"]
    assert dict(seed) == {"first subject": 0, "last subject": 2, "further": 4, "last": 6}
    assert list(seed.index) == ["first subject", "last subject", "further", "last"]
    rome = average_indirect_effects(frame(rows), "rome").set_index("role")["aie"]
    assert rome["first subsequent"] == 3
    assert rome["further"] == 4.5
    assert len(rome) == 6
