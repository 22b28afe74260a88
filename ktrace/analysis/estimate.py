"""Average effects over facts, with bootstrap intervals."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ktrace.analysis.roles import SCHEMES, rows

N_RESAMPLES = 2000
_LEVEL = 0.95
_SEED = 0

Array = npt.NDArray[np.float64]


def bootstrap_interval(values: Array) -> tuple[Array, Array]:
    """Percentile interval (95%) of the mean over facts; facts are what is drawn again.

    The seed is fixed: the same values give the same interval.

    Args:
        values: `(n_facts, n_cells)`; NaN where a fact has no such cell.

    Returns:
        Lower and upper bounds, `(n_cells,)`; NaN for cells with fewer than two facts.
    """
    n_facts = len(values)
    present = ~np.isnan(values)
    generator = np.random.default_rng(_SEED)
    drawn = generator.multinomial(n_facts, np.full(n_facts, 1 / n_facts), size=N_RESAMPLES)
    totals = drawn @ np.where(present, values, 0.0)
    counts = drawn @ present.astype(np.float64)
    with np.errstate(invalid="ignore"):  # a draw without any fact of a rare cell says nothing
        means = np.where(counts > 0, totals / counts, np.nan)
    bounds = np.full((2, values.shape[1]), np.nan)
    enough = present.sum(axis=0) > 1
    if enough.any():
        tail = 100 * (1 - _LEVEL) / 2
        bounds[:, enough] = np.nanpercentile(means[:, enough], [tail, 100 - tail], axis=0)
    return bounds[0], bounds[1]


def average_indirect_effects(effects: pd.DataFrame, scheme: str) -> pd.DataFrame:
    """AIE by mediator, metric, role and layer.

    Samples are averaged within a cell, then positions of one role within a fact, then facts: every
    fact weighs the same, however long it is.

    Args:
        effects: from `load_effects`.
        scheme: `rome` or `seed`.

    Returns:
        Columns `mediator, metric, role, layer, aie, ci_low, ci_high, n_facts`; no row where no
        fact has the role.
    """
    grouped = effects["role"].astype("object").map(SCHEMES[scheme])
    frame = pd.DataFrame(
        {
            "mediator": effects["mediator"],
            "metric": effects["metric"],
            "known_id": effects["known_id"],
            "role": pd.Categorical(grouped, categories=rows(scheme)),
            "layer": effects["layer"],
            "effect": effects["restored"].astype("float64") - effects["corrupted"],
        }
    )
    keys = ["mediator", "metric", "role", "layer"]
    # Every position has as many samples as any other, so one mean over both is the mean of means.
    by_fact = frame.groupby([*keys, "known_id"], observed=True)["effect"].mean()
    wide = by_fact.unstack("known_id")
    values = wide.to_numpy(dtype=np.float64).T
    low, high = bootstrap_interval(values)
    averages: pd.DataFrame = pd.DataFrame(
        {
            "aie": np.nanmean(values, axis=0),
            "ci_low": low,
            "ci_high": high,
            "n_facts": (~np.isnan(values)).sum(axis=0),
        },
        index=wide.index,
    )
    aie: pd.DataFrame = averages.reset_index()
    return aie


def total_effect(clean: Array, corrupted: Array) -> dict[str, Any]:
    """ATE with its interval.

    Args:
        clean: `p_clean`, `(n_facts,)`.
        corrupted: `p_corrupted` averaged over samples, `(n_facts,)`.
    """
    effect = clean - corrupted
    low, high = bootstrap_interval(effect[:, None])
    return {"ate": float(effect.mean()), "ate_ci": [_number(low[0]), _number(high[0])]}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
