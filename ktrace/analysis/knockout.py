"""What a query loses when it no longer sees a group of sources: `knockout.csv`.

Axes: n_facts, of one mediator; n_groups, those of `ktrace.terms.SOURCE_GROUPS`; n_layers.
"""

import numpy as np
import pandas as pd

from ktrace.analysis.averaged_run import RunAverages
from ktrace.analysis.clusters import Array
from ktrace.analysis.estimate import cell_table, effect_range
from ktrace.analysis.intervals import averages
from ktrace.analysis.per_fact import MediatorEffects, TotalEffects
from ktrace.terms import METRICS, SOURCE_GROUPS, cuts_edges

COLUMNS = ("mediator", "metric", "sources", "layer", "effect", "ci_low", "ci_high")
_RELATIVE = ("relative", "relative_low", "relative_high")
_SIZES = ("n_facts", "n_clusters")


def knockout_table(run: RunAverages) -> pd.DataFrame:
    """Effects of groups of sources that are cut together, a row for each layer.

    Returns:
        Columns `model, dataset, noise, mediator, metric, sources, layer, effect, ci_low, ci_high`,
        in the metric's unit; `relative, relative_low, relative_high`, the mean of each fact's
        effect divided by its clean score (Geva et al. 2023, figure 2), of probabilities alone;
        `n_facts, n_clusters`. No row where nothing is cut, or where no fact has the group.
    """
    tables = [_of_mediator(run, one) for one in run.effects if cuts_edges(one.key)]
    columns = [*run.names._fields, *COLUMNS, *_RELATIVE, *_SIZES]
    if not tables:
        tables = [pd.DataFrame(columns=columns)]
    named = pd.concat(tables, ignore_index=True).assign(**run.names._asdict())
    found: pd.DataFrame = named[columns]
    return found


def _of_mediator(run: RunAverages, one: MediatorEffects) -> pd.DataFrame:
    p_clean = TotalEffects.of(run.survey, one.indices).clean[:, 0].mean(axis=-1)
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
    found: pd.DataFrame = every[every["n_facts"] > 0]
    return found


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
