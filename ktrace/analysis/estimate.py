"""Averages over facts, with intervals; docs/analysis.md gives each definition as a formula.

Axes are those of per_fact.py.
"""

from typing import TypedDict

import numpy as np
import pandas as pd

from ktrace.analysis.intervals import Array, interval, ratio
from ktrace.analysis.per_fact import MediatorEffects, pooling
from ktrace.analysis.rows import Averaging, rows
from ktrace.terms import METRICS


def average_indirect_effects(effects: MediatorEffects, averaging: Averaging) -> pd.DataFrame:
    """AIE by metric, role and layer.

    Args:
        effects: one mediator, reduced with the same `averaging`.
        averaging: rows and pooling.

    Returns:
        Columns `mediator, metric, role, layer, aie, ci_low, ci_high, n_facts`; no row where no
        fact has the role. The interval is at 95 %, over facts.
    """
    divisor, weights = pooling(effects.counts, averaging.pool)
    _, n_metrics, n_rows, n_layers = effects.totals.shape
    found = np.full((3, n_metrics, n_rows, n_layers), np.nan)
    for row in range(n_rows):
        if not weights[:, row].any():
            continue
        totals = effects.totals[:, :, row] / divisor[:, row, None, None]
        flat = totals.reshape(len(totals), -1)
        bounds = interval(flat, weights[:, row])
        cells = np.stack([ratio(flat, weights[:, row]), *bounds])
        found[:, :, row] = cells.reshape(3, n_metrics, n_layers)
    frame = _cells(effects, averaging.scheme)
    for name, values in zip(("aie", "ci_low", "ci_high"), found, strict=True):
        frame[name] = values.ravel()
    n_facts = (effects.counts > 0).sum(axis=0)
    frame["n_facts"] = np.tile(np.repeat(n_facts, n_layers), n_metrics)
    kept: pd.DataFrame = frame[frame["n_facts"] > 0].reset_index(drop=True)
    return kept


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
    `ate_ci` is None, None where there are fewer than two facts, and `ate_sample_sd`, the standard
    deviation between the ATEs of the single samples, None for one sample.
    """

    clean: float
    corrupted: float
    ate: float
    ate_ci: list[float | None]
    ate_sample_sd: float | None


def average_total_effect(clean: Array, corrupted: Array) -> AverageTotalEffect:
    """ATE with its interval over facts, and its spread over noise samples.

    Args:
        clean: the clean score that each sample is compared with, `(n_facts, n_samples)`.
        corrupted: the corrupted score, likewise.
    """
    effects = clean - corrupted
    effect = effects.mean(axis=1)
    low, high = interval(effect[:, None], np.ones(len(effect)))
    by_sample = effects.mean(axis=0)
    return {
        "clean": float(clean.mean()),
        "corrupted": float(corrupted.mean()),
        "ate": float(effect.mean()),
        "ate_ci": [_number(low[0]), _number(high[0])],
        "ate_sample_sd": float(by_sample.std(ddof=1)) if len(by_sample) > 1 else None,
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)  # JSON has no NaN
