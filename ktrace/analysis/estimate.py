"""Averages over facts, with intervals; docs/analysis.md gives each definition as a formula."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ktrace.analysis.intervals import interval, ratio
from ktrace.analysis.per_fact import MediatorEffects, pooling
from ktrace.analysis.rows import Averaging, rows
from ktrace.analysis.stored import Survey
from ktrace.terms import METRICS

Array = npt.NDArray[np.float64]


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


def total_effect(clean: Array, corrupted: Array) -> dict[str, Any]:
    """ATE with its interval, and its spread over noise samples.

    Args:
        clean: the clean score that each sample is compared with, `(n_facts, n_samples)`.
        corrupted: the corrupted score, likewise.

    Returns:
        `ate`; `ate_ci`, None where there are fewer than two facts; `ate_sample_sd`, the standard
        deviation between the ATEs of the single samples, None for one sample.
    """
    effects = clean - corrupted
    effect = effects.mean(axis=1)
    low, high = interval(effect[:, None], np.ones(len(effect)))
    by_sample = effects.mean(axis=0)
    return {
        "ate": float(effect.mean()),
        "ate_ci": [_number(low[0]), _number(high[0])],
        "ate_sample_sd": float(by_sample.std(ddof=1)) if len(by_sample) > 1 else None,
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)  # JSON has no NaN


def peak_of(values: npt.NDArray[Any], metric: str) -> int:
    """Flat index of the strongest effect; restoring makes a divergence fall, all else rise."""
    return int(np.argmin(values) if metric == "kl" else np.argmax(values))


def average_peaks(aie: pd.DataFrame, metric: str) -> dict[str, Any]:
    """The layer of the strongest AIE for each role.

    Args:
        aie: from `average_indirect_effects`, one mediator and metric.
        metric: which.
    """
    found = {}
    for role, cells in aie.groupby("role", observed=True):
        best = cells.iloc[peak_of(cells["aie"].to_numpy(), metric)]
        found[str(role)] = {"layer": int(best["layer"]), "aie": float(best["aie"])}
    return found


def peak_layers(effects: MediatorEffects, role: str, scheme: str, metric: str) -> Array:
    """The layer of each fact's strongest effect in one row, `(n_facts with the row,)`."""
    row = rows(scheme).index(role)
    have = effects.counts[:, row] > 0
    curves = effects.totals[have][:, METRICS.index(metric), row]
    return np.array([peak_of(curve, metric) for curve in curves], dtype=np.float64)


def fact_table(found: Survey, effects: Sequence[MediatorEffects], metric: str) -> pd.DataFrame:
    """One row for each traced fact.

    The peak of a fact and mediator is its strongest effect at a position of the subject, averaged
    over noise samples. (At the prompt's last position, the last layers bring back everything.)

    Returns:
        Columns `known_id, prompt, subject, attribute, p_clean, p_corrupted, te, n_positions`, then
        `<mediator>_peak_layer`, `<mediator>_peak_position`, `<mediator>_peak` for each mediator.
        Probabilities in [0, 1]; `te = p_clean − p_corrupted`. Peaks are of `metric`, and missing
        for facts that the mediator lacks.
    """
    records = []
    number = METRICS.index(metric)
    for index in found.traced:
        clean, corrupted = found.clean[index], found.corrupted[index]
        p_clean = float(corrupted["clean_probability"].mean(dtype=np.float64))
        p_corrupted = float(corrupted["probability"].mean(dtype=np.float64))
        row: dict[str, Any] = {
            **{name: clean[name] for name in ("known_id", "prompt", "subject", "attribute")},
            "p_clean": p_clean,
            "p_corrupted": p_corrupted,
            "te": p_clean - p_corrupted,
            "n_positions": len(clean["tokens"]),
        }
        for one in effects:
            grid = one.grids.get(index)
            if grid is not None:
                row |= _fact_peak(one.key, grid.mean[number], clean["span"], metric)
        records.append(row)
    table: pd.DataFrame = pd.DataFrame(records)
    for one in effects:
        for name in (f"{one.key}_peak_layer", f"{one.key}_peak_position"):
            table[name] = table[name].astype("Int64")
    return table


def _fact_peak(
    key: str, effects: npt.NDArray[np.float32], span: Sequence[int], metric: str
) -> Mapping[str, Any]:
    layer, position = subject_peak(effects, span, metric)
    return {
        f"{key}_peak_layer": layer,
        f"{key}_peak_position": position,
        f"{key}_peak": float(effects[layer, position]),
    }


def subject_peak(
    effects: npt.NDArray[np.float32], span: Sequence[int], metric: str
) -> tuple[int, int]:
    """Layer and position of a fact's strongest effect at a position of its subject.

    Args:
        effects: `(n_layers, n_positions)`; NaN throughout gives the subject's first cell.
        span: first position of the subject, and one past its last.
        metric: which.
    """
    start, stop = (int(bound) for bound in span)
    inside = effects[:, start:stop]
    layer, offset = np.unravel_index(peak_of(inside, metric), inside.shape)
    return int(layer), start + int(offset)
