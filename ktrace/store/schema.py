"""What a part of each kind of store holds. Change it together with `VERSION`."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy.typing as npt

from ktrace.terms import METRICS, SITES, SOURCE_GROUPS, Metric

VERSION = 8

# One fact by column, as parts hold it; records.py has it typed. `index`, the row of the fact in its
# dataset, is always among them.
Row = dict[str, Any]
# What a part says of itself as JSON: what determined its numbers, or who computed them.
JsonObject = dict[str, Any]
# Of the type that its column has.
Array = npt.NDArray[Any]

TEXT = "text"
ACTIVATION = "activation"  # the model's own dtype; uint16 stands for the bits of bfloat16


@dataclass(frozen=True)
class Field:
    """One column of a part.

    Attributes:
        dtype: numpy name, `TEXT` or `ACTIVATION`.
        axes: names of the axes of one fact's value; none for a single value. Fields of a fact share
            their lengths, but those of answers.
        within: the least number and the largest; None where any will do.
        may_lack: whether NaN stands for what there is not.
    """

    dtype: str
    axes: tuple[str, ...] = ()
    within: tuple[float, float] | None = None
    may_lack: bool = False

    @property
    def is_optional(self) -> bool:
        """Whether a fact may be without it: states of a site that is not kept, or not there."""
        return self.dtype == ACTIVATION


Schema = Mapping[str, Field]


class LayerRow(NamedTuple):
    """A row of the axis `layer` of a field of states, and how many there should be."""

    row: int
    n_rows: int


# What a fact's clean scores are called beside its corrupted ones.
CLEAN_SCORES = {metric: f"clean_{metric}" for metric in METRICS}
BASELINE_SCORES = (*METRICS, *CLEAN_SCORES.values())
_UNITLESS = (Metric.probability.value, CLEAN_SCORES[Metric.probability.value])
_GRID = ("sample", "layer", "head", "place")

_INDEX = Field("int64", (), (0, 2**53))
_PROBABILITY = (0.0, 1.0 + 1e-4)  # a sum of rounded ones
_LEVEL = (0.0, sys.float_info.max)
_ANY = (-math.inf, math.inf)  # but NaN


def _ids(*axes: str) -> Field:
    """Token ids, and what is counted in tokens, positions or characters."""
    return Field("int64", axes, (0, 2**31 - 1))


def _scores(metric: str, axes: tuple[str, ...], may_lack: bool) -> Field:
    within = _PROBABILITY if metric in _UNITLESS else _ANY
    return Field("float32", axes, within, may_lack)


CLEAN: Schema = {
    "index": _INDEX,
    "known_id": Field("int64"),
    "prompt": Field(TEXT),
    "subject": Field(TEXT),
    "attribute": Field(TEXT),
    "relation_id": Field(TEXT),
    "left_out": Field(TEXT),  # why it is no candidate; empty for candidates
    "is_candidate": Field("bool"),
    "input_ids": _ids("position"),
    "tokens": Field(TEXT, ("position",)),
    "offsets": _ids("position", "bound"),
    "roles": Field(TEXT, ("position",)),  # empty before the subject
    "span": _ids("bound"),
    "answer_ids": _ids("answer_token"),  # what is scored; none where it has no token
    # Other right answers, one after another, and how many tokens each has.
    "also_ids": _ids("answer_token"),
    "also_lengths": _ids("answer"),
    "predicted_ids": _ids("answer_token"),
    "predicted": Field(TEXT),
    "predicted_probability": Field("float32", (), _PROBABILITY, may_lack=True),
    "probability": Field("float32", (), _PROBABILITY, may_lack=True),
}

CORRUPTED: Schema = {
    "index": _INDEX,
    "known_id": Field("int64"),
    "left_out": Field(TEXT),  # why this noise cannot corrupt the fact; empty where it can
    "sigma": Field(
        "float64", (), _LEVEL, may_lack=True
    ),  # standard deviation of the subjects' embeddings
    "noise_level": Field(
        "float64", (), _LEVEL, may_lack=True
    ),  # what draws were multiplied with; NaN without a level
    "foil_ids": _ids("sample", "answer_token"),  # the tokens of logit_difference
    "foil": Field(TEXT, ("sample",)),
    # The clean ones are what a sample is compared with: all alike, but where each has its own foil.
    **{score: _scores(score, ("sample",), may_lack=False) for score in BASELINE_SCORES},
}

RESTORED: Schema = {
    "index": _INDEX,
    "known_id": Field("int64"),
    "together": Field(TEXT),  # mediators that shared its batches: what decides the last bits
    # Positions that were restored; of cut edges their sources, and below 0 groups of these
    # (`ktrace.terms.SOURCE_GROUPS`).
    "places": Field("int64", ("place",), (-len(SOURCE_GROUPS), 2**31 - 1)),
    # One head where the mediator has none.
    **{metric: _scores(metric, _GRID, may_lack=True) for metric in METRICS},
}


def _activations(*axes: str) -> Schema:
    # All of a fact is empty where it is no candidate, and a site where it is not kept, or where the
    # model lacks it.
    return {
        "index": _INDEX,
        "known_id": Field("int64"),
        "layers": _ids("layer"),
        "positions": _ids("position"),
        "roles": Field(TEXT, ("position",)),  # empty before the subject
        **{site: Field(ACTIVATION, (*axes, "layer", "position", "feature")) for site in SITES},
    }


# By kind of run (`RUN_KINDS`).
ACTIVATIONS: Mapping[str, Schema] = {
    "clean": _activations(),
    "corrupted": _activations("sample"),
}
