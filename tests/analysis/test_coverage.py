"""The benchmark of the intervals, short: every case that it measures holds what is promised."""

import pytest

from benchmarks.coverage import (
    Case,
    cases,
    coverage,
    heatmap_coverage,
    peak_coverage,
    ratio_coverage,
)

CASES = list(cases())


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_intervals_hold_as_often_as_they_say(case: Case) -> None:
    found = coverage(case, 1000 if sum(case.sizes) > 100 else 3000)
    # Three standard errors of the simulation, and no more.
    slack = 0.02 if sum(case.sizes) > 100 else 0.012
    assert case.least - slack <= found.share <= min(1, case.most + slack)
    if case.sizes and "correlation 0.4" in case.name:
        assert found.over_facts < 0.85, "facts are not independent"


def test_shares_of_the_total_effect() -> None:
    assert 0.91 <= ratio_coverage(40, (), 400) <= 0.99
    assert 0.91 <= ratio_coverage(408, (24,) * 17, 300) <= 0.99


def test_bounds_of_whole_heatmaps_and_peak_sets() -> None:
    together, alone = heatmap_coverage(60, 100)
    assert together >= 0.88
    assert alone < 0.6
    held, size = peak_coverage(40, False, 150)
    assert held >= 0.93
    assert size < 12
    assert peak_coverage(17, True, 150)[0] >= 0.93
