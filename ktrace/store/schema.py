"""What a part of each kind of store holds. Change it together with `VERSION`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy.typing as npt

from ktrace.terms import METRICS, SITES

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
        axes: names of the axes of one fact's value; none for a single value.
    """

    dtype: str
    axes: tuple[str, ...] = ()


Schema = Mapping[str, Field]


class LayerRow(NamedTuple):
    """A row of the axis `layer` of a field of states, and how many there should be."""

    row: int
    n_rows: int


# What a fact's clean scores are called beside its corrupted ones.
CLEAN_SCORES = {metric: f"clean_{metric}" for metric in METRICS}
BASELINE_SCORES = (*METRICS, *CLEAN_SCORES.values())

CLEAN: Schema = {
    "index": Field("int64"),
    "known_id": Field("int64"),
    "prompt": Field(TEXT),
    "subject": Field(TEXT),
    "attribute": Field(TEXT),
    "relation_id": Field(TEXT),
    "left_out": Field(TEXT),  # why it is no candidate; empty for candidates
    "is_candidate": Field("bool"),
    "input_ids": Field("int64", ("position",)),
    "tokens": Field(TEXT, ("position",)),
    "offsets": Field("int64", ("position", "bound")),
    "roles": Field(TEXT, ("position",)),  # empty before the subject
    "span": Field("int64", ("bound",)),
    "answer_ids": Field("int64", ("answer_token",)),  # what is scored; none where it has no token
    # Other right answers, one after another, and how many tokens each has.
    "also_ids": Field("int64", ("answer_token",)),
    "also_lengths": Field("int64", ("answer",)),
    "predicted_ids": Field("int64", ("answer_token",)),
    "predicted": Field(TEXT),
    "predicted_probability": Field("float32"),
    "probability": Field("float32"),
}

CORRUPTED: Schema = {
    "index": Field("int64"),
    "known_id": Field("int64"),
    "left_out": Field(TEXT),  # why this noise cannot corrupt the fact; empty where it can
    "sigma": Field("float64"),  # standard deviation of the subjects' embeddings
    "noise_level": Field("float64"),  # what draws were multiplied with; NaN without a level
    "foil_ids": Field("int64", ("sample", "answer_token")),  # the tokens of logit_difference
    "foil": Field(TEXT, ("sample",)),
    # The clean ones are what a sample is compared with: all alike, but where each has its own foil.
    **{score: Field("float32", ("sample",)) for score in BASELINE_SCORES},
}

RESTORED: Schema = {
    "index": Field("int64"),
    "known_id": Field("int64"),
    "together": Field(TEXT),  # mediators that shared its batches: what decides the last bits
    # Positions that were restored; of cut edges their sources, and below 0 groups of these
    # (`ktrace.terms.SOURCE_GROUPS`).
    "places": Field("int64", ("place",)),
    # One head where the mediator has none.
    **{metric: Field("float32", ("sample", "layer", "head", "place")) for metric in METRICS},
}


def _activations(*axes: str) -> Schema:
    # All of a fact is empty where it is no candidate, and a site where it is not kept, or where the
    # model lacks it.
    return {
        "index": Field("int64"),
        "known_id": Field("int64"),
        "layers": Field("int64", ("layer",)),
        "positions": Field("int64", ("position",)),
        "roles": Field(TEXT, ("position",)),  # empty before the subject
        **{site: Field(ACTIVATION, (*axes, "layer", "position", "feature")) for site in SITES},
    }


# By kind of run (`RUN_KINDS`).
ACTIVATIONS: Mapping[str, Schema] = {
    "clean": _activations(),
    "corrupted": _activations("sample"),
}
