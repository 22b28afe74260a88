"""Averages over facts, with intervals; docs/analysis.md gives each definition as a formula.

Axes are those of per_fact.py.
"""

from dataclasses import replace
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import pandas as pd

from ktrace.analysis.clusters import (
    FACTS,
    Array,
    Clusters,
    intraclass_correlation,
)
from ktrace.analysis.intervals import (
    ALL_REAL,
    FEWEST_AT_ONCE,
    Averages,
    Drawn,
    averages,
)
from ktrace.analysis.per_fact import MediatorEffects, TotalEffects
from ktrace.analysis.rows import Averaging, rows
from ktrace.terms import METRICS

FACTS_AND_SAMPLES = "facts_and_samples"


def effect_range(metric: str, n_effects: int = 1) -> tuple[float, float]:
    """What a metric's effects lie in.

    Args:
        metric: of the effects.
        n_effects: how many differences of scores are subtracted from each other or are one, so
            that a difference of the effects of two runs has 2.
    """
    return (-float(n_effects), float(n_effects)) if metric == "probability" else ALL_REAL


def total_range(metric: str) -> tuple[float, float]:
    """What a metric's total effects lie in: a run does not diverge from itself."""
    return (-np.inf, 0.0) if metric == "kl" else effect_range(metric)


def cell_table(
    cells: Averages, limits: tuple[float, float], *, at_once: bool = False
) -> pd.DataFrame:
    """Averages with their intervals, a row for each cell.

    Args:
        cells: from `averages`.
        limits: what they lie in.
        at_once: whether bounds that hold for all cells together are wanted, too.

    Returns:
        Columns `aie, ci_low, ci_high, n_facts, n_clusters, ci_over, ci_note`, and `band_low,
        band_high, band_note`, which says why there is an interval and no band. `ci_over` says what
        was drawn; where there is no interval, bounds are NaN, `ci_over` is empty, and `ci_note`
        says why.
    """
    frame: pd.DataFrame = pd.DataFrame(_cell_columns(cells, limits, at_once=at_once))
    return frame


def _cell_columns(
    cells: Averages, limits: tuple[float, float], *, at_once: bool
) -> dict[str, npt.NDArray[Any]]:
    low, high = cells.interval(limits=limits)
    columns: dict[str, npt.NDArray[Any]] = {
        "aie": cells.value,
        "ci_low": low,
        "ci_high": high,
        "n_facts": cells.n_facts,
        "n_clusters": cells.n_clusters,
        "ci_over": cells.over,
        "ci_note": cells.note,
    }
    if at_once:
        columns["band_low"], columns["band_high"] = cells.at_once(limits)
        lacks = np.isnan(columns["band_low"]) & ~np.isnan(low)
        columns["band_note"] = np.where(lacks, f"fewer than {FEWEST_AT_ONCE} units", "").astype(
            object
        )
    return columns


def difference_table(
    apart: Array, clusters: Clusters, limits: tuple[float, float], smallest: float
) -> pd.DataFrame:
    """Means of paired differences with their intervals, a row for each cell.

    Args:
        apart: `(n_facts, n_cells)`; NaN where a fact has not both.
        clusters: of the facts.
        limits: what differences lie in.
        smallest: differences below it count as none.

    Returns:
        `difference` in place of `aie`, the other columns of `cell_table`, and `beyond`, whether the
        interval excludes 0 and the difference counts, `beyond_all`, the same of the bounds that
        hold for all cells together.
    """
    table: pd.DataFrame = pd.DataFrame(difference_columns(apart, clusters, limits, smallest))
    return table


def difference_columns(
    apart: Array, clusters: Clusters, limits: tuple[float, float], smallest: float
) -> dict[str, npt.NDArray[Any]]:
    """The same by column, for those who put many of them together."""
    cells = averages(apart, np.ones(len(apart)), clusters)
    columns = _cell_columns(cells, limits, at_once=True)
    columns = {("difference" if name == "aie" else name): v for name, v in columns.items()}
    counts = np.abs(columns["difference"]) >= smallest
    for name, bounds in (("beyond", "ci"), ("beyond_all", "band")):
        excludes = (columns[f"{bounds}_low"] > 0) | (columns[f"{bounds}_high"] < 0)
        columns[name] = excludes & counts
    return columns


def average_indirect_effects(effects: MediatorEffects, averaging: Averaging) -> pd.DataFrame:
    """AIE by metric, role and layer, and the share of the total effect that comes back.

    Args:
        effects: one mediator, reduced with the same `averaging`.
        averaging: rows, pooling, and what intervals cover.

    Returns:
        Columns `mediator, metric, role, layer`, those of `cell_table` with bounds for all cells of
        a heatmap together, and `ie_te, ie_te_low, ie_te_high` (`_shares`); no row where no fact has
        the role.
    """
    frames = []
    for number, metric in enumerate(METRICS):
        curves, weights = effects.curves(metric, averaging.pool)
        n_facts, n_rows, n_layers = curves.shape
        by_cell = np.repeat(weights, n_layers, axis=1)
        cells = averages(curves.reshape(n_facts, -1), by_cell, effects.clusters)
        if averaging.interval == FACTS_AND_SAMPLES:
            cells = replace(
                cells, drawn=_drawn(effects.by_sample[:, number].reshape(-1, n_rows * n_layers))
            )
        table = cell_table(cells, effect_range(metric), at_once=True)
        shares = _shares(
            curves, weights, effects.total_effects[:, number], effects.clusters, metric
        )
        frames.append(pd.concat([table, shares], axis=1))
    names = _cells(effects, averaging.scheme)
    frame = pd.concat([names, pd.concat(frames, ignore_index=True)], axis=1)
    kept: pd.DataFrame = frame[frame["n_facts"] > 0].reset_index(drop=True)
    return kept


def no_averages() -> pd.DataFrame:
    """A table of averages without a row: of a run of heads alone."""
    columns = ("mediator", "metric", "role", "layer", "aie", "ci_low", "ci_high", "n_facts")
    nothing: pd.DataFrame = pd.DataFrame(columns=[*columns, "n_clusters"])
    return nothing


def head_averages(effects: MediatorEffects, averaging: Averaging) -> pd.DataFrame:
    """`average_indirect_effects` of a mediator with heads: `head` stands behind `layer`."""
    found = average_indirect_effects(effects, averaging)
    layer, head = np.divmod(found["layer"].to_numpy(), effects.n_heads)
    table = found.assign(layer=layer)
    table.insert(table.columns.get_loc("layer") + 1, "head", head)
    # Heads that a layer has not.
    kept: pd.DataFrame = table[table["aie"].notna()].reset_index(drop=True)
    return kept


def _drawn(by_sample: Array) -> Drawn:
    """What the draw of the noise adds to averages, from `(n_samples, n_cells)`."""
    n_samples = len(by_sample)
    spread = by_sample.var(axis=0, ddof=1) if n_samples > 1 else np.zeros(by_sample.shape[1])
    return Drawn(spread / n_samples, n_samples)


def _shares(
    curves: Array, weights: Array, total_effects: Array, clusters: Clusters, metric: str
) -> pd.DataFrame:
    """Indirect over total effect, both summed over facts: how much of it comes back.

    Args:
        curves: `(n_facts, n_rows, n_layers)`.
        weights: `(n_facts, n_rows)`.
        total_effects: `(n_facts,)`.
        clusters: of the facts.
        metric: of the effects.

    Returns:
        Columns `ie_te, ie_te_low, ie_te_high`, a row for each cell; all NaN where the interval of
        the mean total effect of the same facts includes 0 or is missing: the share would be one of
        nothing.
    """
    n_facts, _, n_layers = curves.shape
    totals = total_effects[:, None] * weights
    low, high = averages(totals, weights, clusters).interval(limits=total_range(metric))
    told = np.repeat((low > 0) | (high < 0), n_layers)
    by_cell, sizes = (np.repeat(values, n_layers, axis=1) for values in (totals, weights))
    cells = averages(curves.reshape(n_facts, -1), by_cell, clusters, sizes)
    bounds = (cells.value, *cells.interval())
    names = ("ie_te", "ie_te_low", "ie_te_high")
    frame: pd.DataFrame = pd.DataFrame(
        {name: np.where(told, values, np.nan) for name, values in zip(names, bounds, strict=True)}
    )
    return frame


def averages_by_relation(
    effects: MediatorEffects, averaging: Averaging, metric: str
) -> pd.DataFrame:
    """AIE of the facts of each relation alone, with intervals over these facts.

    Returns:
        Columns `relation_id, mediator, metric, role, layer` and those of `cell_table`; no row for
        facts without a relation, or where no fact of one has the role.
    """
    curves, weights = effects.curves(metric, averaging.pool)
    names = _cells(effects, averaging.scheme)
    names = names[names["metric"] == metric].reset_index(drop=True)
    relations, frames = np.array(effects.relations, dtype=object), []
    for relation in sorted({relation for relation in effects.relations if relation}):
        own = relations == relation
        by_cell = np.repeat(weights[own], effects.n_layers, axis=1)
        cells = averages(curves[own].reshape(own.sum(), -1), by_cell, effects.clusters[own])
        table = pd.concat([names, cell_table(cells, effect_range(metric))], axis=1)
        table.insert(0, "relation_id", relation)
        frames.append(table[table["n_facts"] > 0])
    found: pd.DataFrame = pd.concat(frames, ignore_index=True) if frames else names.iloc[:0]
    return found


def spread_over_samples(effects: MediatorEffects, scheme: str) -> pd.DataFrame:
    """How much the AIE hangs on the noise that happened to be drawn.

    Returns:
        Columns `mediator, metric, role, layer, aie, sample_sd, n_samples`: the standard deviation
        between the AIEs of the single noise samples (NaN for one sample), in the metric's unit.
    """
    frame = _cells(effects, scheme)
    n_samples = len(effects.by_sample)
    frame["aie"] = effects.by_sample.mean(axis=0).ravel()
    frame["sample_sd"] = effects.by_sample.std(axis=0, ddof=1).ravel() if n_samples > 1 else np.nan
    frame["n_samples"] = n_samples
    kept: pd.DataFrame = frame[frame["aie"].notna()].reset_index(drop=True)
    return kept


def _cells(effects: MediatorEffects, scheme: str) -> pd.DataFrame:
    """`mediator, metric, role, layer` of every cell, in the order of `(metric, row, layer)`."""
    names = rows(scheme)
    n_layers = effects.n_layers
    size = len(METRICS) * len(names) * n_layers
    metric = np.repeat(np.arange(len(METRICS)), len(names) * n_layers)
    role = np.tile(np.repeat(np.arange(len(names)), n_layers), len(METRICS))
    frame: pd.DataFrame = pd.DataFrame(
        {
            "mediator": [effects.key] * size,
            "metric": pd.Categorical.from_codes(metric, categories=pd.Index(METRICS)),
            "role": pd.Categorical.from_codes(role, categories=pd.Index(names)),
            "layer": np.tile(np.arange(n_layers), len(METRICS) * len(names)),
        }
    )
    return frame


class AverageTotalEffect(TypedDict):
    """What the corruption does to one metric, as `summary.json` has it.

    `clean` and `corrupted` are means over facts and noise samples, `ate` is their difference;
    `ate_ci` is None, None where there is no interval, and `ate_ci_note` says why; `ate_ci_over`
    says what was drawn. `n_clusters` counts the clusters of the facts, and `icc` is the intraclass
    correlation of their total effects, None where it has no meaning; `ate_sample_sd`, the standard
    deviation between the ATEs of the single samples, is None for one sample.
    """

    clean: float
    corrupted: float
    ate: float
    ate_ci: list[float | None]
    ate_ci_over: str
    ate_ci_note: str
    n_clusters: int
    icc: float | None
    ate_sample_sd: float | None


def average_total_effect(
    total: TotalEffects, metric: str, clusters: Clusters, interval: str = FACTS
) -> AverageTotalEffect:
    """ATE with its interval, and its spread over noise samples.

    Args:
        total: effects of the facts.
        metric: which.
        clusters: of the facts.
        interval: what it covers, see `Averaging`.
    """
    clean, corrupted = total.in_metric(metric)
    effects = clean - corrupted
    effect, by_sample = effects.mean(axis=1), effects.mean(axis=0)
    cells = averages(effect[:, None], np.ones(len(effect)), clusters)
    if interval == FACTS_AND_SAMPLES:
        cells = replace(cells, drawn=_drawn(by_sample[:, None]))
    [[low], [high]] = cells.interval(limits=total_range(metric))
    return {
        "clean": float(clean.mean()),
        "corrupted": float(corrupted.mean()),
        "ate": float(effect.mean()),
        "ate_ci": [number(low), number(high)],
        "ate_ci_over": str(cells.over[0]),
        "ate_ci_note": str(cells.note[0]),
        "n_clusters": int(cells.n_clusters[0]),
        "icc": number(intraclass_correlation(effect, clusters)),
        "ate_sample_sd": float(by_sample.std(ddof=1)) if len(by_sample) > 1 else None,
    }


def number(value: float) -> float | None:
    """As JSON has it, which knows no NaN."""
    return None if np.isnan(value) else float(value)
