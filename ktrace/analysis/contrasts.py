"""Paired differences within a run: of mediators, of roles, of early and late layers.

Bars whose intervals overlap can differ on nearly every fact: only the interval of the differences,
fact by fact, tells. Facts weigh the same, also where averages weigh positions.

Axes are those of per_fact.py.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ktrace.analysis.clusters import (
    Array,
    Clusters,
)
from ktrace.analysis.estimate import difference_table, effect_range
from ktrace.analysis.per_fact import MediatorEffects
from ktrace.analysis.rows import Averaging, rows
from ktrace.terms import METRICS, mediator_pairs

# Roles whose effects at one layer are compared.
_ROLE_PAIRS = (("last subject", "first subject"), ("last subject", "last"))

MEDIATORS, ROLES, LAYERS = "mediators", "roles", "layers"
COLUMNS = (
    *("contrast", "left", "right", "metric", "role", "layer", "difference"),
    *("ci_low", "ci_high", "band_low", "band_high", "n_facts", "n_clusters"),
    *("ci_over", "ci_note", "band_note", "beyond", "beyond_all"),
)


class _Contrast(NamedTuple):
    """One family of differences.

    Attributes:
        names: `contrast, left, right`.
        apart: left minus right, `(n_facts, n_cells)`; NaN where a fact has not both.
        clusters: of the facts.
        roles: of each cell, None for a contrast of roles.
        layers: of each cell, None for a contrast of layers.
    """

    names: tuple[str, str, str]
    apart: Array
    clusters: Clusters
    roles: Sequence[str | None]
    layers: Sequence[int | None]


def contrast_table(effects: Sequence[MediatorEffects], averaging: Averaging) -> pd.DataFrame:
    """The content of `contrasts.csv`.

    Args:
        effects: mediators of a run.
        averaging: rows, and the smallest difference that counts.

    Returns:
        The columns `COLUMNS`: the mean of left minus right over facts that have both, with its
        interval, and bounds for all cells of one contrast and metric together. `contrast` is
        `mediators` (whole against severed, MLP against attention: a row for each role and layer),
        `roles` (of one mediator: a row for each layer) or `layers` (its first half against its
        second: a row for each role).
    """
    frames = []
    for metric in METRICS:
        for one in _contrasts(effects, averaging.scheme, metric):
            table = difference_table(
                one.apart, one.clusters, effect_range(metric), averaging.smallest
            )
            names = dict(zip(COLUMNS, one.names, strict=False))
            table = table.assign(**names, metric=metric, role=np.array(one.roles, dtype=object))
            table["layer"] = pd.array(list(one.layers), dtype="Int64")
            kept: pd.DataFrame = table[table["n_facts"] > 0]
            frames.append(kept)
    together = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    found: pd.DataFrame = together.reindex(columns=list(COLUMNS))
    return found


def _contrasts(effects: Sequence[MediatorEffects], scheme: str, metric: str) -> Iterator[_Contrast]:
    by_key = {one.key: one for one in effects}
    for left, right in mediator_pairs(list(by_key)):
        yield _of_mediators(by_key[left], by_key[right], scheme, metric)
    for one in effects:
        yield from _of_roles(one, scheme, metric)
        if one.n_layers > 1:
            yield _of_layers(one, scheme, metric)


def _curves(one: MediatorEffects, metric: str) -> Array:
    """Effects of each fact, `(n_facts, n_rows, n_layers)`; NaN where it has not the row."""
    curves, weights = one.curves(metric, "facts")
    return np.where(weights[..., None] > 0, curves, np.nan)


def _of_mediators(
    left: MediatorEffects, right: MediatorEffects, scheme: str, metric: str
) -> _Contrast:
    shared = sorted(set(left.indices) & set(right.indices))
    mine, theirs = ([one.indices.index(i) for i in shared] for one in (left, right))
    apart = _curves(left, metric)[mine] - _curves(right, metric)[theirs]
    names, n_layers = rows(scheme), left.n_layers
    return _Contrast(
        (MEDIATORS, left.key, right.key),
        apart.reshape(len(shared), -1),
        left.clusters[np.array(mine, dtype=np.intp)],
        [role for role in names for _ in range(n_layers)],
        [*range(n_layers)] * len(names),
    )


def _of_roles(one: MediatorEffects, scheme: str, metric: str) -> Iterator[_Contrast]:
    names, curves = rows(scheme), _curves(one, metric)
    for left, right in _ROLE_PAIRS:
        apart = curves[:, names.index(left)] - curves[:, names.index(right)]
        sides = (f"{one.key}: {left}", f"{one.key}: {right}")
        layers = range(one.n_layers)
        yield _Contrast((ROLES, *sides), apart, one.clusters, [None] * len(layers), layers)


def _of_layers(one: MediatorEffects, scheme: str, metric: str) -> _Contrast:
    names, curves, middle = rows(scheme), _curves(one, metric), one.n_layers // 2
    apart = curves[..., :middle].mean(axis=-1) - curves[..., middle:].mean(axis=-1)
    early = f"{one.key}: layers 0-{middle - 1}"
    late = f"{one.key}: layers {middle}-{one.n_layers - 1}"
    return _Contrast((LAYERS, early, late), apart, one.clusters, names, [None] * len(names))
