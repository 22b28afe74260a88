"""What a query loses when it no longer sees a group of sources: `knockout.csv`.

Axes: n_facts, of one mediator; n_groups, those of `ktrace.terms.SOURCE_GROUPS`; n_layers.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ktrace.analysis.clusters import Array
from ktrace.analysis.estimate import cell_table, effect_range
from ktrace.analysis.intervals import averages
from ktrace.analysis.per_fact import MediatorEffects, TotalEffects
from ktrace.analysis.stored import Survey
from ktrace.terms import METRICS, SOURCE_GROUPS, cuts_edges

_RELATIVE = ("relative", "relative_low", "relative_high")
KNOCKOUT_COLUMNS = (
    *("mediator", "metric", "sources", "layer", "effect", "ci_low", "ci_high"),
    *(*_RELATIVE, "n_facts", "n_clusters"),
)


def knockout_averages(effects: Sequence[MediatorEffects], found: Survey) -> pd.DataFrame:
    """Effects of groups of sources that are cut together, a row for each layer.

    Args:
        effects: mediators of a run.
        found: the run.

    Returns:
        Columns `KNOCKOUT_COLUMNS`: effects in the metric's unit; `relative, relative_low,
        relative_high`, the mean of each fact's effect divided by its clean score (Geva et al. 2023,
        figure 2), of probabilities alone. No row where nothing is cut, or where no fact has the
        group.
    """
    tables = [_of_mediator(found, one) for one in effects if cuts_edges(one.key)]
    every = pd.concat(tables or [pd.DataFrame(columns=list(KNOCKOUT_COLUMNS))])
    averaged: pd.DataFrame = every.reset_index(drop=True)[list(KNOCKOUT_COLUMNS)]
    return averaged


def _of_mediator(found: Survey, one: MediatorEffects) -> pd.DataFrame:
    p_clean = TotalEffects.of(found, one.indices).clean[:, 0].mean(axis=-1)
    tables = []
    for number, metric in enumerate(METRICS):
        effects = one.groups[:, number]
        table = _averaged(effects, one, metric)
        if number == 0:
            shares = _averaged(effects / p_clean[:, None, None], one, "logit")  # without bounds
            for name, column in zip(_RELATIVE, ("aie", "ci_low", "ci_high"), strict=True):
                table[name] = shares[column]
        tables.append(table)
    every = pd.concat(tables, ignore_index=True).rename(columns={"aie": "effect"})
    kept: pd.DataFrame = every[every["n_facts"] > 0]
    return kept


def _averaged(effects: Array, one: MediatorEffects, metric: str) -> pd.DataFrame:
    n_facts, n_groups, n_layers = effects.shape
    weights = (~np.isnan(effects)).astype(np.float64).reshape(n_facts, -1)
    cells = averages(np.nan_to_num(effects).reshape(n_facts, -1), weights, one.clusters)
    names = pd.DataFrame(
        {
            "mediator": one.key,
            "metric": metric,
            "sources": np.repeat(np.array(SOURCE_GROUPS, dtype=object), n_layers),
            "layer": np.tile(np.arange(n_layers), n_groups),
        }
    )
    table: pd.DataFrame = pd.concat([names, cell_table(cells, effect_range(metric))], axis=1)
    return table
