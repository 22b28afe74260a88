"""What a part may say: ranges, and what must fit what. Its checksums say only that nobody erred."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ktrace.store.schema import Array, Field, JsonObject
from ktrace.terms import ROLES, noise_key

_ROLES = frozenset({"", *ROLES})
_BOUNDS = 2  # the first, and one past the last
# Axes that fields of one fact do not share: each answer has tokens of its own.
_APART = frozenset({"answer_token", "answer", "feature"})


def parsed_object(text: str | bytes, what: str) -> JsonObject:
    """A JSON object that can be written again.

    Raises:
        ValueError: it is none.
    """
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"its {what} is no JSON object")
    json.dumps(found, ensure_ascii=False).encode()  # half a character cannot
    return found


def require_fingerprint(found: JsonObject) -> None:
    """Refuse what determines no numbers.

    Raises:
        ValueError: a setting is of another kind than runs write.
    """
    for name in ("model", "dataset", "noise"):
        if not isinstance(found.get(name, {}), dict):
            raise ValueError(f"its fingerprint's {name} is no JSON object")
    if not isinstance(found.get("mediator", ""), str):
        raise ValueError("its fingerprint's mediator is no text")
    if not _is_whole(found.get("dataset", {}).get("n_facts", 0)):
        raise ValueError("its fingerprint's dataset.n_facts is no number of facts")
    noise = found.get("noise", {})
    if "kind" in noise:
        try:
            noise_key(noise)
        except KeyError as error:
            raise ValueError(f"its fingerprint's noise has no {error}") from error


def require_settings(found: JsonObject, kinds: Iterable[str]) -> None:
    """Refuse a fingerprint that leaves out what determines the numbers of such a store.

    Raises:
        ValueError: a setting lacks.
    """
    for kind in kinds:
        if not found.get(kind):
            raise ValueError(f"its fingerprint says no {kind}")


def require_provenance(about: JsonObject) -> None:
    """Refuse an origin that nobody can have noted.

    Raises:
        ValueError: something is of another kind than runs write.
    """
    parts = {name: about.get(name) for name in ("model", "config", "noise", "versions")}
    config, noise = parts["config"], parts["noise"]
    if isinstance(config, dict):
        parts |= {f"config.{name}": config.get(name) for name in ("model", "dataset")}
    if isinstance(noise, dict):
        parts["noise.measured_on"] = noise.get("measured_on")
    for name, value in parts.items():
        if not isinstance(value, dict | None):
            raise ValueError(f"its provenance's {name} is no JSON object")
    for name in ("run", "written"):
        if not isinstance(about.get(name, ""), str):
            raise ValueError(f"its provenance's {name} is no text")
    seconds = about.get("wall_seconds", 0.0)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise ValueError("its provenance's wall_seconds is no number")
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"its provenance's wall_seconds is {seconds}")
    limit = (parts.get("config.dataset") or {}).get("limit")
    if limit is not None and not _is_whole(limit):
        raise ValueError("its provenance's config.dataset.limit is no number of facts")
    measured = parts.get("noise.measured_on")
    if measured is not None and not (
        isinstance(measured.get("dataset"), str)
        and _is_whole(measured.get("facts"))
        and _is_whole(measured.get("tokens"))
    ):
        raise ValueError("its provenance's noise.measured_on says no dataset, facts and tokens")


def _is_whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**53


def require_range(name: str, field: Field, values: Array) -> None:
    """Refuse numbers that no run gives.

    Args:
        name: of the field.
        field: which.
        values: of all facts, `(n_values,)`.

    Raises:
        ValueError: with the first of them.
    """
    if values.ndim != 1:
        raise ValueError(f"{name} has {values.ndim} dimensions, not 1")
    if field.within is None or not values.size:
        return
    least, most = field.within
    is_wrong = ~((values >= least) & (values <= most))
    if field.may_lack:
        is_wrong &= ~np.isnan(values)
    if is_wrong.any():
        raise ValueError(f"{name} holds {values[is_wrong][0]}, which is not in {least} to {most}")


def require_whole_units(name: str, field: Field, cells: Sequence[Any]) -> None:
    """Refuse scores that lack in a part of a layer's (or a head's) samples and places.

    A layer without the site that a mediator restores has no score anywhere.

    Raises:
        ValueError: some of a unit's scores are NaN, and others are numbers.
    """
    if not field.axes or "layer" not in field.axes:
        return
    over = tuple(i for i, axis in enumerate(field.axes) if axis not in ("layer", "head"))
    for cell in cells:
        lacks = np.isnan(cell)
        if lacks.any() and (lacks.any(over) != lacks.all(over)).any():
            raise ValueError(f"{name} lacks scores (NaN) at some places of a layer")


class Axes:
    """Lengths of the axes of each fact, which its fields share."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, list[int]]] = {}

    def agree(self, name: str, field: Field, shapes: Sequence[Sequence[int]]) -> None:
        """Refuse a field whose axes have other lengths than those of the fields before.

        Raises:
            ValueError: with both.
        """
        for number, axis in enumerate(field.axes):
            lengths = [shape[number] for shape in shapes]
            if axis == "bound":
                if any(length != _BOUNDS for length in lengths if length or len(field.axes) == 1):
                    raise ValueError(f"{name} has other than {_BOUNDS} bounds")
                continue
            if axis in _APART or field.is_optional:
                continue
            other, known = self._known.setdefault(axis, (name, lengths))
            if known != lengths:
                raise ValueError(f"{name} and {other} differ in their axis {axis}")

    def fit(self, name: str, field: Field, shapes: Sequence[Sequence[int]]) -> None:
        """Refuse an optional field that is there, and does not fit those that must be.

        Raises:
            ValueError: it does not.
        """
        for number, axis in enumerate(field.axes):
            if axis in self._known and axis not in _APART:
                other, known = self._known[axis]
                for shape, length in zip(shapes, known, strict=True):
                    if math.prod(shape) and shape[number] != length:
                        raise ValueError(f"{name} and {other} differ in their axis {axis}")


Columns = Mapping[str, Sequence[Any]]


def require_fitting(columns: Columns) -> None:
    """Refuse columns that contradict each other, as far as they are there.

    Args:
        columns: by name, a value of each fact.

    Raises:
        ValueError: with the first contradiction.
    """
    for names, fits, problem in _RULES:
        if all(name in columns for name in names):
            rows = zip(*(columns[name] for name in names), strict=True)
            if not all(fits(*row) for row in rows):
                raise ValueError(f"{', '.join(names)}: {problem}")
    indices = columns.get("index", ())
    if len(set(indices)) != len(indices):
        raise ValueError("index: a fact is there twice")


def _in_order(span: Array) -> bool:
    return bool((span[..., 0] <= span[..., 1]).all()) if span.size else True


_Rule = tuple[tuple[str, ...], Callable[..., bool], str]
_RULES: Sequence[_Rule] = (
    (("span",), _in_order, "it ends before it begins"),
    (("offsets",), _in_order, "a token ends before it begins"),
    (("span", "input_ids"), lambda s, ids: s[1] <= len(ids), "it ends after the prompt"),
    (("roles",), lambda roles: _ROLES.issuperset(roles), "a role has another name"),
    (
        ("also_ids", "also_lengths"),
        lambda ids, lengths: len(ids) == int(lengths.sum()),
        "the answers have other lengths than tokens",
    ),
    (
        ("is_candidate", "left_out"),
        lambda is_one, why: is_one != bool(why),
        "a candidate has a reason to be none, or another fact has not",
    ),
    (("layers",), lambda layers: len(set(layers.tolist())) == len(layers), "one is there twice"),
    (("positions",), lambda at: len(set(at.tolist())) == len(at), "one is there twice"),
    (("places",), lambda at: len(set(at.tolist())) == len(at), "one is there twice"),
)
# What the rules look at: small, whatever the model.
RELATED = frozenset({"index", *(name for names, _, _ in _RULES for name in names)})
