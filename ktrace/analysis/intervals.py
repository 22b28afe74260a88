"""Intervals of averages over facts, in closed form: of each cell alone, and of many cells at once.

An average is a ratio, total over weight: with every fact weighing 1 it is the mean over facts, with
numbers of positions as weights it is the mean over positions, with total effects as weights it is
the share of them that comes back. Positions and samples of one fact are never units: they are not
independent. Neither are facts of one relation, so that relations are the units where facts have
them.

The standard error is that of leaving out one unit at a time (the jackknife; Efron and Tibshirani,
*An Introduction to the Bootstrap*, 1993, chapter 11), the quantile Student's t with (effective
units − 1) degrees. Where few units carry the effect, the side of the long tail is lengthened by the
inverse of the cubic that removes skewness from a studentized mean (Hall, *On the removal of
skewness by transformation*, Journal of the Royal Statistical Society B 54, 1992, 221–228), never
shortened. Where an interval could not hold its level there is none, and a note says why.
benchmarks/coverage.py measures all of it; docs/analysis.md has the formulas and the limits.

Axes: n_facts, of a run; n_units, what is drawn; n_cells, averages of the same facts, each of its
own metric, row or layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, stdtrit

from ktrace.analysis.clusters import FACTS, Array, Clusters

LEVEL = 0.95
# Effective units below which there is no interval.
FEWEST_FACTS, FEWEST_CLUSTERS = 8.0, 5.0
# Units from which on an interval of many cells at once holds its level.
FEWEST_AT_ONCE = 40
_DRAWS, _SEED = 2000, 0  # of the largest deviation among many cells
# Relative spread that is rounding and no spread.
_ROUNDING = 1e-6
ALL_REAL = (-np.inf, np.inf)

NO_SPREAD = "no spread between units"
ONE_SAMPLE = "one noise sample"
NO_TOTAL = "the interval of the total effect includes 0"

Bounds = tuple[Array, Array]


def t_quantile(degrees: float, level: float = LEVEL) -> float:
    """Two-sided quantile of Student's t.

    Args:
        degrees: of freedom, above 0; they may be fractional.
        level: of the interval.
    """
    return float(stdtrit(degrees, (1 + level) / 2))


@dataclass(frozen=True)
class Block:
    """Averages of the same facts.

    Attributes:
        value: total over weight, `(n_cells,)`.
        pull: what the average would change by without a unit, `(n_units, n_cells)`.
        units: the units' numbers: those of clusters, or of facts.
        skew: of the average, λ, in [−1, 1], `(n_cells,)`.
        n_effective: units of equal size that would say as much.
        n_facts: facts with weight.
        n_clusters: clusters that they lie in.
        over: what the units are.
        note: why there is no interval, in any of the cells.
        varies: which cells have spread, `(n_cells,)`.
    """

    value: Array
    pull: Array
    units: npt.NDArray[np.intp]
    skew: Array
    n_effective: float
    n_facts: int
    n_clusters: int
    over: str
    note: str
    varies: npt.NDArray[np.bool_]

    @property
    def n_units(self) -> int:
        """What is drawn."""
        return len(self.pull)

    @cached_property
    def variance(self) -> Array:
        """Of the average, over units, `(n_cells,)`."""
        n_units = self.n_units
        found: Array = (n_units - 1) / max(n_units, 1) * (self.pull**2).sum(axis=0)
        return found


def block(totals: Array, weights: Array, clusters: Clusters, sizes: Array | None = None) -> Block:
    """Averages of the same facts, and what their intervals are made of.

    Args:
        totals: `(n_facts, n_cells)`, no NaN.
        weights: `(n_facts,)`.
        clusters: of the facts.
        sizes: what makes a unit large, `(n_facts,)`: facts of size 0 do not count. None: weights.
    """
    sizes = weights if sizes is None else sizes
    has = sizes > 0
    totals, weights, sizes, codes = totals[has], weights[has], sizes[has], clusters.codes[has]
    n_facts, n_clusters = len(totals), len(np.unique(codes))
    # Fewer clusters than that say nothing about other clusters.
    by_cluster = FEWEST_CLUSTERS <= n_clusters < n_facts
    units = codes if by_cluster else np.flatnonzero(has)
    order = np.argsort(units, kind="stable")
    numbers, starts = np.unique(units[order], return_index=True)
    y, w, s = (_summed(values[order], starts) for values in (totals, weights[:, None], sizes))
    weight = w.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        value = y.sum(axis=0) / weight
        apart = y - value * w
        pull = apart / (weight - w)
        share = s[:, None] / s.sum()
        skew = _skew(apart / share) * (share**3).sum() / (share**2).sum() ** 1.5
    varies = np.abs(apart).max(axis=0, initial=0) > _ROUNDING * np.abs(y).max(axis=0, initial=0)
    # Rounded as it is printed: the last bits of a sum decide nothing.
    n_effective = round(float(s.sum() ** 2 / (s**2).sum()), 3) if len(s) else 0.0
    fewest, over = (FEWEST_CLUSTERS, clusters.name) if by_cluster else (FEWEST_FACTS, FACTS)
    what = "clusters" if by_cluster else "facts"
    note = f"fewer than {fewest:g} effective {what}" if n_effective < fewest else ""
    skew = np.clip(np.nan_to_num(skew), -1, 1)
    return Block(value, pull, numbers, skew, n_effective, n_facts, n_clusters, over, note, varies)


def _summed(values: Array, starts: npt.NDArray[np.intp]) -> Array:
    """Sums of consecutive facts, along the first axis."""
    found: Array = np.add.reduceat(values, starts, axis=0) if len(values) else values
    return found


def _skew(values: Array) -> Array:
    """Third central moment over the second to 1.5, along units."""
    n_units = max(len(values), 1)
    apart = values - values.sum(axis=0) / n_units
    found: Array = ((apart**3).sum(axis=0) / n_units) / ((apart**2).sum(axis=0) / n_units) ** 1.5
    return found


@dataclass(frozen=True)
class Drawn:
    """Noise samples, which were drawn, too: every fact's sample s starts from the same seed.

    Attributes:
        variance: of the average, over samples, `(n_cells,)`.
        n_samples: how many.
    """

    variance: Array
    n_samples: int


@dataclass(frozen=True)
class Averages:
    """Averages whose facts may differ, and their intervals.

    Attributes:
        blocks: cells of the same facts each.
        cells: the place of each block's cells, in the order of `blocks`.
        drawn: what the draw of the noise adds, or None.
    """

    blocks: Sequence[Block]
    cells: Sequence[npt.NDArray[np.intp]]
    drawn: Drawn | None = None

    @property
    def n_cells(self) -> int:
        """Of all blocks."""
        return sum(map(len, self.cells))

    def _each(self, name: str, dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
        found = np.empty(self.n_cells, dtype=dtype)
        for one, at in zip(self.blocks, self.cells, strict=True):
            found[at] = getattr(one, name)
        return found

    @property
    def value(self) -> Array:
        """`(n_cells,)`."""
        return self._each("value", np.float64).astype(np.float64)

    @property
    def n_facts(self) -> npt.NDArray[np.generic]:
        """`(n_cells,)`."""
        return self._each("n_facts", np.int64)

    @property
    def n_clusters(self) -> npt.NDArray[np.int64]:
        """`(n_cells,)`."""
        return self._each("n_clusters", np.int64).astype(np.int64)

    @property
    def note(self) -> npt.NDArray[np.generic]:
        """Why a cell has no interval; empty where it has one, `(n_cells,)`."""
        found = self._each("note", object)
        found[~self._each("varies", np.bool_).astype(np.bool_) & (found == "")] = NO_SPREAD
        if self.drawn is not None and self.drawn.n_samples < 2:
            found[found == ""] = ONE_SAMPLE
        return found

    @property
    def over(self) -> npt.NDArray[np.generic]:
        """What was drawn; empty where there is no interval, `(n_cells,)`."""
        found = self._each("over", object)
        if self.drawn is not None:
            found[:] = [f"{over} and samples" for over in found]
        found[self.note != ""] = ""
        return found

    def interval(self, level: float = LEVEL, limits: tuple[float, float] = ALL_REAL) -> Bounds:
        """Lower and upper bounds, each cell alone.

        Args:
            level: of the interval.
            limits: what averages lie in.

        Returns:
            `(n_cells,)` each; NaN where there is none.
        """
        low, high = np.full((2, self.n_cells), np.nan)
        has = self.note == ""
        for one, at in zip(self.blocks, self.cells, strict=True):
            if has[at].any():
                variance, skew = one.variance, one.skew
                degrees: float | Array = one.n_effective - 1
                if self.drawn is not None:
                    variance, degrees, skew = _joined(one, self.drawn, at)
                sides = _half_widths(degrees, skew, level)
                low[at], high[at] = one.value + np.array([[-1], [1]]) * sides * np.sqrt(variance)
        low[~has], high[~has] = np.nan, np.nan
        return np.clip(low, *limits), np.clip(high, *limits)

    def at_once(
        self, limits: tuple[float, float] = ALL_REAL, fewest: int = FEWEST_AT_ONCE
    ) -> Bounds:
        """Bounds that hold for all cells together.

        The level of the single interval is that of the largest of all cells' deviations, where
        each unit pulls on all cells at once (the multiplier bootstrap; Chernozhukov, Chetverikov
        and Kato, *Annals of Statistics* 41, 2013).

        Args:
            limits: what averages lie in.
            fewest: units; cells of fewer have none.

        Returns:
            `(n_cells,)` each; NaN where there is none.
        """
        enough = self._each("n_units", np.int64).astype(np.int64) >= fewest
        counts = (self.note == "") & enough
        bounds = self.interval(self._level_at_once(counts), limits)
        for bound in bounds:
            bound[~counts] = np.nan
        return bounds

    def _level_at_once(self, counts: npt.NDArray[np.bool_]) -> float:
        largest = np.zeros(_DRAWS, dtype=np.float32)
        for one, at in zip(self.blocks, self.cells, strict=True):
            if counts[at].any():
                pull = one.pull[:, counts[at]]
                pull = (pull / np.sqrt((pull**2).sum(axis=0))).astype(np.float32)
                drawn = _multipliers(one.over == FACTS, int(one.units.max()) + 1)
                drawn = drawn if len(drawn) == one.n_units else drawn[one.units]
                np.maximum(largest, np.abs(pull.T @ drawn).max(axis=0), out=largest)
        beyond = 2 * (1 - ndtr(np.quantile(largest, LEVEL).astype(np.float64)))
        return 1 - float(beyond) if counts.any() else LEVEL


@lru_cache(maxsize=4)
def _multipliers(facts: bool, n_units: int) -> npt.NDArray[np.float32]:
    """Independent normal numbers of each unit, the same whichever others there are.

    Args:
        facts: whether units are facts; clusters have other numbers.
        n_units: how many.

    Returns:
        `(n_units, n_draws)`.
    """
    generator = np.random.default_rng([_SEED, facts])
    return generator.standard_normal((n_units, _DRAWS), dtype=np.float32)


def _joined(one: Block, drawn: Drawn, at: npt.NDArray[np.intp]) -> tuple[Array, Array, Array]:
    """Variance, degrees of freedom and skewness of facts and samples together.

    The degrees are those of Satterthwaite, *Biometrics Bulletin* 2, 1946.
    """
    of_samples = drawn.variance[at]
    variance = one.variance + of_samples
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = one.variance**2 / (one.n_effective - 1)
        degrees = variance**2 / (squares + of_samples**2 / (drawn.n_samples - 1))
        return variance, degrees, one.skew * (one.variance / variance) ** 1.5


def _half_widths(degrees: float | Array, skew: Array, level: float) -> Array:
    """Below and above, in standard errors, `(2, n_cells)`."""
    t = np.broadcast_to(stdtrit(degrees, (1 + level) / 2), skew.shape)
    a = np.abs(skew) / 3
    with np.errstate(invalid="ignore", divide="ignore"):
        long = np.where(a > 0, (1 - np.cbrt(1 - 3 * a * (t + a / 2))) / a, t)
    # Of a tiny λ the difference of two numbers near 1 is rounding.
    long = np.where(a < 1e-9, t, np.maximum(t, long))
    return np.stack([np.where(skew < 0, long, t), np.where(skew > 0, long, t)])


def averages(
    totals: Array, weights: Array, clusters: Clusters, sizes: Array | None = None
) -> Averages:
    """Averages of cells that need not have the same facts.

    Args:
        totals: `(n_facts, n_cells)`; a fact with NaN in a cell does not count there.
        weights: `(n_facts, n_cells)`, or `(n_facts,)` where all cells have the same.
        clusters: of the facts.
        sizes: what makes a unit large, as `weights`; a fact of size 0 does not count. None: the
            weights.
    """
    sizes, missing = weights if sizes is None else sizes, np.isnan(totals)
    has_gaps = bool(missing.any())
    if weights.ndim == 1 and not has_gaps:
        return Averages([block(totals, weights, clusters, sizes)], [np.arange(totals.shape[1])])
    # Without gaps nothing is copied: of many facts these arrays are large.
    weights, sizes = (_by_cell(values, missing, has_gaps) for values in (weights, sizes))
    # Cells of the same weights are one block.
    by_weights: dict[bytes, list[int]] = {}
    for cell in range(totals.shape[1]):
        told = weights[:, cell].tobytes() + sizes[:, cell].tobytes()
        by_weights.setdefault(told, []).append(cell)
    cells = [np.array(own, dtype=np.intp) for own in by_weights.values()]
    totals = _by_cell(totals, missing, has_gaps)
    blocks = [block(totals[:, at], weights[:, at[0]], clusters, sizes[:, at[0]]) for at in cells]
    return Averages(blocks, cells)


def _by_cell(values: Array, missing: npt.NDArray[np.bool_], has_gaps: bool) -> Array:
    """Weights or sizes of each fact in each cell: 0 where it does not count."""
    values = values if values.ndim > 1 else values[:, None]
    return np.where(missing, 0, values) if has_gaps else np.broadcast_to(values, missing.shape)
