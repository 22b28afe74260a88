"""Which layers, and how sure: the content of `layers.json`, and the same in words."""

from collections.abc import Hashable, Mapping
from typing import Any, TypedDict

import pandas as pd

from ktrace.analysis.estimate import number
from ktrace.terms import mediator_name, mediator_title

_ROLE = "last subject"
_MEDIATOR = "mlp"  # what editors change
CAUTION = (
    "Where a fact is localised does not tell where an edit succeeds (Hase et al. 2023, "
    "arXiv:2301.04213)."
)


class RoleLayers(TypedDict):
    """One mediator and role.

    `layers` are contiguous, the observed peak among them, and empty where `note` says why;
    `may_peak_in` are all that the peak may lie in (docs/analysis.md). The others are columns of
    `peaks.csv`.
    """

    layers: list[int]
    note: str
    peak: int
    may_peak_in: str
    aie: float
    ci: list[float | None]
    ie_te: float | None
    half_rank: float | None
    half_share: float | None
    sample_rank: float | None
    n_facts: int
    n_clusters: int
    n_nothing: int


class Layers(TypedDict):
    """The content of `layers.json`; `layers` is the form in which EasyEdit takes them."""

    layers: list[int]
    mediator: str
    role: str
    metric: str
    caution: str
    mediators: Mapping[str, Mapping[str, RoleLayers]]


_NOTHING: Layers = {
    "layers": [],
    "mediator": "",
    "role": "",
    "metric": "",
    "caution": CAUTION,
    "mediators": {},
}


def chosen_layers(peaks: pd.DataFrame, metric: str, smallest: float) -> Layers:
    """The contiguous layers around each peak that an editor would be given.

    Args:
        peaks: from `peak_table`, of all mediators.
        metric: of the peaks.
        smallest: peaks below it are none.
    """
    mediators: dict[str, dict[str, RoleLayers]] = {}
    for row in peaks.to_dict("records"):
        by_role = mediators.setdefault(str(row["mediator"]), {})
        by_role[str(row["role"])] = _of_role(row, smallest)
    if not mediators:  # heads alone
        return {**_NOTHING, "metric": metric}
    mediator = min(mediators, key=lambda key: mediator_name(key) != _MEDIATOR)
    role = _ROLE if _ROLE in mediators[mediator] else next(iter(mediators[mediator]))
    return {
        "layers": mediators[mediator][role]["layers"],
        "mediator": mediator,
        "role": role,
        "metric": metric,
        "caution": CAUTION,
        "mediators": mediators,
    }


def _of_role(cell: Mapping[Hashable, Any], smallest: float) -> RoleLayers:
    layers = [] if pd.isna(cell["first"]) else list(range(cell["first"], cell["last"] + 1))
    note = "" if layers else "too few facts, or clusters of facts, to tell where the peak lies"
    if abs(cell["aie"]) < smallest:
        layers, note = [], f"no effect of at least {smallest:g}"
    return {
        "layers": layers,
        "note": note,
        "peak": int(cell["layer"]),
        "may_peak_in": cell["layers"],
        "aie": float(cell["aie"]),
        "ci": [number(cell["ci_low"]), number(cell["ci_high"])],
        "ie_te": number(cell["ie_te"]),
        "half_rank": number(cell["half_rank"]),
        "half_share": number(cell["half_share"]),
        "sample_rank": number(cell["sample_rank"]),
        "n_facts": int(cell["n_facts"]),
        "n_clusters": int(cell["n_clusters"]),
        "n_nothing": int(cell["n_nothing"]),
    }


def in_words(found: Layers) -> str:
    """The answer as a paragraph: which layers, how sure, and what that does not tell."""
    if not found["mediator"]:
        return f"No layers can be named: heads alone were traced. {CAUTION}"
    one = found["mediators"][found["mediator"]][found["role"]]
    where = f"At the {found['role']} token, {mediator_title(found['mediator'])}"
    low, high = one["ci"]
    sure = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
    share = "" if one["ie_te"] is None else f", {one['ie_te']:.0%} of the total effect"
    sentences = [
        f"{where}: the average effect is strongest at layer {one['peak']} "
        f"({one['aie']:.3f}{sure}{share})."
    ]
    if one["layers"]:
        sentences.append(
            f"The peak may lie in layer{'s' * (one['may_peak_in'] != str(one['peak']))} "
            f"{one['may_peak_in']}; an editor would be given layers={one['layers']}."
        )
    else:
        sentences.append(f"No layers can be named: {one['note']}.")
    if one["half_rank"] is not None:
        sentences.append(
            f"In random halves of the facts, the order of the layers correlates at "
            f"{one['half_rank']:.2f} (Spearman)."
        )
    if one["n_nothing"]:
        sentences.append(
            f"{one['n_nothing']} of {one['n_facts']} facts have no effect there that could peak."
        )
    return " ".join([*sentences, CAUTION])
