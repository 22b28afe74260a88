"""95 % intervals: of averages over facts, by a studentized bootstrap; and Student's t.

An average is a ratio, total over weight: with every fact weighing 1 it is the mean over facts, with
numbers of positions as weights it is the mean over positions. Facts are drawn again, never
positions or samples: those of one fact are not independent.

Not a percentile interval: it is too narrow for few facts (it holds the mean of ten skewed values in
87 % of cases), because it does not know that the spread is estimated, too.
benchmarks/coverage.py measures both.

Axes: n_facts, what is drawn; n_cells, averages that are taken of the same facts, each of its own
metric, row or layer.
"""

from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt

N_RESAMPLES = 2000
LEVEL = 0.95
_SEED = 0
# Resamples of so few facts repeat each other, and Student's t takes their place, to the digits of
# the printed tables.
_FEW_FACTS = 7
_TABLE_DIGITS = 4
# Relative spread that is rounding and no spread.
_ROUNDING = 1e-6

Array = npt.NDArray[np.float64]


def ratio(totals: Array, weights: Array) -> Array:
    """Sum of totals over sum of weights, along facts.

    Args:
        totals: `(n_facts, n_cells)`.
        weights: `(n_facts,)`, at least one above 0.
    """
    found: Array = totals.sum(axis=0) / weights.sum()
    return found


def interval(totals: Array, weights: Array) -> tuple[Array, Array]:
    """Bootstrap-t interval of `ratio`.

    The standard error is that of a ratio, by linearisation (Cochran, *Sampling Techniques*, 1977,
    section 2.11; for weights of 1 it is that of a mean), the interval that of Efron and Tibshirani,
    *An Introduction to the Bootstrap*, 1993, section 12.5. The seed is fixed: the same values give
    the same interval.

    Args:
        totals: `(n_facts, n_cells)`.
        weights: `(n_facts,)`; facts that weigh 0 do not count.

    Returns:
        Lower and upper bounds, `(n_cells,)`; NaN for fewer than two facts.
    """
    totals, weights = totals[weights > 0], weights[weights > 0]
    n_facts, n_cells = totals.shape
    if n_facts < 2:
        return np.full(n_cells, np.nan), np.full(n_cells, np.nan)
    mean = ratio(totals, weights)
    residuals = totals - mean * weights[:, None]
    spread = np.sqrt((residuals**2).sum(axis=0) / (n_facts - 1))
    spread[spread <= _ROUNDING * np.abs(totals).max(axis=0)] = 0.0
    error = spread * np.sqrt(n_facts) / weights.sum()
    varies = spread > 0
    # Without spread every resample is the mean itself.
    low, high = mean.copy(), mean.copy()
    if n_facts <= _FEW_FACTS:
        quantile = round(t_quantile(n_facts - 1), _TABLE_DIGITS)
        low -= quantile * error
        high += quantile * error
    elif varies.any():
        statistic = _statistic(residuals[:, varies] / spread[varies], weights / weights.mean())
        tail = (1 - LEVEL) / 2
        # The upper quantile gives the lower bound.
        low[varies] -= _quantile(statistic, 1 - tail) * error[varies]
        high[varies] -= _quantile(statistic, tail) * error[varies]
    return low, high


@cache
def t_quantile(degrees: int) -> float:
    """Two-sided quantile of Student's t at `LEVEL`.

    With t = sqrt(degrees) tan(angle) the density is that of cos(angle)^(degrees - 1), which is
    smooth on a bounded interval, so a sum over a grid integrates it.

    Args:
        degrees: of freedom.
    """
    angles = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(angles) ** (degrees - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = np.interp(LEVEL, below / below[-1], angles)
    return float(np.sqrt(degrees) * np.tan(angle))


def _statistic(residuals: Array, weights: Array) -> npt.NDArray[np.float32]:
    """(Resampled − estimated) / its own standard error, sorted, `(n_cells, n_resamples)`.

    Args:
        residuals: in units of their standard deviation, so that single precision serves,
            `(n_facts, n_cells)`.
        weights: in units of their mean, `(n_facts,)`.
    """
    n_facts = len(residuals)
    drawn = _draws(n_facts)
    values, weight = residuals.astype(np.float32), weights.astype(np.float32)
    total = values.T @ drawn
    squares = (values**2).T @ drawn
    if (weight == 1).all():
        mean = total / np.float32(n_facts)
        squares -= mean * total
    else:
        mean = total / (weight @ drawn)
        # Residuals about the resample's own ratio: r − mean × w.
        squares += mean * (mean * (weight**2 @ drawn) - 2 * ((values * weight[:, None]).T @ drawn))
    # Both scales cancel: the resample's error is sqrt(n / (n − 1) × squares) / its total weight.
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic = total / np.sqrt(squares * np.float32(n_facts / (n_facts - 1)))
    # A resample of one and the same value has no standard error, and says nothing.
    statistic[squares <= _ROUNDING * n_facts] = np.nan
    ordered: npt.NDArray[np.float32] = np.sort(statistic, axis=1)  # NaN go last
    return ordered


@lru_cache(maxsize=8)
def _draws(n_facts: int) -> npt.NDArray[np.float32]:
    """How often each fact is drawn in each resample, `(n_facts, n_resamples)`."""
    generator = np.random.default_rng(_SEED)
    drawn = generator.multinomial(n_facts, np.full(n_facts, 1 / n_facts), size=N_RESAMPLES)
    return np.ascontiguousarray(drawn.T, dtype=np.float32)


def _quantile(ordered: npt.NDArray[np.float32], probability: float) -> Array:
    """Of each row without the NaN at its end; linear between order statistics."""
    last = (~np.isnan(ordered)).sum(axis=1) - 1
    place = last * probability
    below = np.floor(place).astype(np.intp)
    rows = np.arange(len(ordered))
    lower = ordered[rows, below].astype(np.float64)
    upper = ordered[rows, np.minimum(below + 1, last)].astype(np.float64)
    found: Array = lower + (upper - lower) * (place - below)
    return found
