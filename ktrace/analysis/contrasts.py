"""Paired differences within a run: of mediators, of roles, of layers.

Bars whose intervals overlap can differ on nearly every fact: only the interval of the differences,
fact by fact, tells. Facts weigh the same, also where averages weigh positions.

Axes are those of per_fact.py.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from ktrace.analysis.clusters import Array
from ktrace.analysis.estimate import difference_columns, effect_range
from ktrace.analysis.per_fact import MediatorEffects
from ktrace.analysis.rows import Averaging, rows
from ktrace.terms import (
    CONTRASTS,
    METRICS,
    MediatorKey,
    Side,
    contrast_sides,
    mediator_name,
)

# Mediators whose effects are subtracted, the second from the first: what severing takes away, and
# which of a block's parts carries more.
_MEDIATOR_PAIRS = (
    ("hidden", "hidden_attn_severed"),
    ("hidden", "hidden_mlp_severed"),
    ("mlp", "attn"),
)
# Roles whose effects at one layer are compared.
_ROLE_PAIRS = (("last subject", "first subject"), ("last subject", "last"))
MEDIATORS, ROLES, LAYERS = CONTRASTS
COLUMNS = (
    *("contrast", "left", "right", "metric", "role", "layer", "difference"),
    *("ci_low", "ci_high", "band_low", "band_high", "n_facts", "n_clusters"),
    *("ci_over", "ci_note", "band_note", "beyond", "beyond_all"),
)


class Contrasts(NamedTuple):
    """Paired differences within a run.

    Attributes:
        table: the content of `contrasts.csv`, with the columns `COLUMNS`: the mean of left minus
            right over facts that have both, with its interval, and bounds for all cells of one
            contrast and metric together. `role` and `layer` are missing where the sides name them.
        notes: contrasts that were asked for and are left out, and why.
    """

    table: pd.DataFrame
    notes: list[str]


class _Pair(NamedTuple):
    """One family of differences: of two mediators, which may be the same, left minus right."""

    contrast: str
    left: MediatorEffects
    right: MediatorEffects
    sides: tuple[Side, Side]

    @property
    def names(self) -> tuple[str, str]:
        """Both sides, as a contrast is written out."""
        left, right = self.sides
        return _name(self.left.key, left), _name(self.right.key, right)


def _name(key: str, side: Side) -> str:
    layers = [] if side.layers is None else ["layers {}-{}".format(*side.layers)]
    return ": ".join([key, *([side.role] if side.role else []), *layers])


def contrasts_of(effects: Sequence[MediatorEffects], averaging: Averaging) -> Contrasts:
    """The paired differences that are asked for.

    Args:
        effects: mediators of a run.
        averaging: rows, the contrasts, and the smallest difference that counts.
    """
    pairs: list[_Pair] = []
    notes: list[str] = []
    for name in averaging.contrasts:
        if name in CONTRASTS:
            pairs += _by_name(effects, name)
        else:
            found, why = _written_out(effects, name, averaging.scheme)
            pairs += found
            notes += [f"contrast {name!r} is left out: {why}"] if why else []
    columns: dict[str, list[Array]] = {name: [] for name in COLUMNS}
    for metric in METRICS:
        for pair in pairs:
            for name, values in _columns(pair, metric, averaging).items():
                columns[name].append(values)
    table = pd.DataFrame({n: np.concatenate(v) if v else [] for n, v in columns.items()})
    table["layer"] = pd.array(table["layer"].tolist(), dtype="Int64")
    return Contrasts(table, notes)


def _by_name(effects: Sequence[MediatorEffects], name: str) -> Iterator[_Pair]:
    """`mediators`: whole against severed, MLP against attention; `roles`; `layers`: halves."""
    if name == MEDIATORS:
        by_key, every = {one.key: one for one in effects}, Side(None, None, None)
        for left, right in mediator_pairs(list(by_key)):
            yield _Pair(name, by_key[left], by_key[right], (every, every))
    for one in effects:
        if name == ROLES:
            for mine, theirs in _ROLE_PAIRS:
                yield _Pair(name, one, one, (Side(None, mine, None), Side(None, theirs, None)))
        elif name == LAYERS and one.n_layers > 1:
            middle = one.n_layers // 2
            halves = (0, middle - 1), (middle, one.n_layers - 1)
            early, late = (Side(None, None, half) for half in halves)
            yield _Pair(name, one, one, (early, late))


def _written_out(
    effects: Sequence[MediatorEffects], text: str, scheme: str
) -> tuple[list[_Pair], str]:
    """What a contrast that is written out subtracts in a run; why nothing, otherwise."""
    sides = contrast_sides(text)
    for side in sides:
        if side.role is not None and side.role not in rows(scheme):
            return [], f"the scheme {scheme} has no row {side.role!r}"
        if side.layers is not None and side.layers[1] >= effects[0].n_layers:
            return [], f"the model has layers 0-{effects[0].n_layers - 1}"
        if side.mediator is not None and not _of_side(effects, side):
            return [], f"{side.mediator} is not among {', '.join(one.key for one in effects)}"
    left, right = (_of_side(effects, side) for side in sides)
    if sides[0].mediator is None:
        return [_Pair(text, one, one, sides) for one in effects], ""
    named = [side.mediator for side in sides] == [left[0].key, right[0].key]
    found = [
        _Pair(text, one, other, sides)
        for one in left
        for other in right
        if named or _same_window(one.key, other.key)
    ]
    return found, "" if found else "no two of these mediators have the same window and direction"


def _of_side(effects: Sequence[MediatorEffects], side: Side) -> list[MediatorEffects]:
    """Mediators that a side names: by key, or all of a name."""
    exact = [one for one in effects if one.key == side.mediator]
    return exact or [one for one in effects if mediator_name(one.key) == side.mediator]


def _columns(pair: _Pair, metric: str, averaging: Averaging) -> dict[str, Array]:
    """Columns of `contrasts.csv`, of one family and metric."""
    left, right = pair.left, pair.right
    shared = sorted(set(left.indices) & set(right.indices))
    mine, theirs = (_places(one.indices, shared) for one in (left, right))
    cells = [
        _cells(one, side, averaging.scheme, metric)[chosen]
        for one, side, chosen in zip((left, right), pair.sides, (mine, theirs), strict=True)
    ]
    apart = cells[0] - cells[1]
    own, _ = pair.sides
    roles = list(rows(averaging.scheme)) if own.role is None else [None]
    layers = list(range(left.n_layers)) if own.layers is None else [None]
    table = difference_columns(
        *(apart.reshape(len(shared), -1), left.clusters[mine]),
        effect_range(metric),
        averaging.smallest,
    )
    n_cells = len(roles) * len(layers)
    names = dict(zip(COLUMNS, (pair.contrast, *pair.names, metric), strict=False))
    named = {name: np.full(n_cells, value, dtype=object) for name, value in names.items()}
    named["role"] = np.repeat(np.array(roles, dtype=object), len(layers))
    named["layer"] = np.tile(np.array(layers, dtype=object), len(roles))
    kept = table["n_facts"] > 0
    return {name: values[kept] for name, values in (named | table).items()}


def _places(indices: Sequence[int], shared: Sequence[int]) -> npt.NDArray[np.intp]:
    at = {index: place for place, index in enumerate(indices)}
    return np.array([at[index] for index in shared], dtype=np.intp)


def _cells(one: MediatorEffects, side: Side, scheme: str, metric: str) -> Array:
    """Effects of each fact, `(n_facts, n_rows or 1, n_layers or 1)`; NaN where it lacks the row."""
    curves, weights = one.curves(metric, "facts")
    found = np.where(weights[..., None] > 0, curves, np.nan)
    if side.role is not None:
        found = found[:, [rows(scheme).index(side.role)]]
    if side.layers is not None:
        first, last = side.layers
        found = found[..., first : last + 1].mean(axis=-1, keepdims=True)
    return found


def mediator_pairs(keys: Sequence[str]) -> list[tuple[str, str]]:
    """Which of some mediators' keys are `_MEDIATOR_PAIRS`: of one window, where they have one.

    Both are of one direction, at the same positions.
    """
    named = {MediatorKey.parse(key): key for key in keys}
    return [
        (key, named[other])
        for first, second in _MEDIATOR_PAIRS
        for parts, key in named.items()
        if parts.name == first and (other := parts._replace(name=second)) in named
    ]


def _same_window(left: str, right: str) -> bool:
    """Whether mediators, by their keys, are of one direction and, where both have one, window."""
    one, other = MediatorKey.parse(left), MediatorKey.parse(right)
    return one.direction is other.direction and len({one.window, other.window} - {0}) < 2
