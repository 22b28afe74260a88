"""Which layers, and how sure: the content of `layers.json`, and the same in words."""

from collections.abc import Hashable, Mapping
from typing import Any, TypedDict

import pandas as pd

from ktrace.analysis.estimate import number
from ktrace.terms import ENOUGH, MediatorKey, cuts_edges, mediator_name, mediator_title

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


class SmallestWindow(TypedDict):
    """The smallest of several windows that brings back `share` of the total effect, and where.

    `window` and `layer` are missing where none of them does; `ie_te` is the largest share then.
    """

    share: float
    window: int | None
    layer: int | None
    ie_te: float


class Layers(TypedDict):
    """The content of `layers.json`; `layers` is the form in which EasyEdit takes them.

    `windows` are by mediator and role, of mediators that were traced in several.
    """

    layers: list[int]
    mediator: str
    role: str
    metric: str
    caution: str
    mediators: Mapping[str, Mapping[str, RoleLayers]]
    windows: Mapping[str, Mapping[str, SmallestWindow]]


_NOTHING: Layers = {
    "layers": [],
    "mediator": "",
    "role": "",
    "metric": "",
    "caution": CAUTION,
    "mediators": {},
    "windows": {},
}


def chosen_layers(
    peaks: pd.DataFrame, metric: str, smallest: float, share: float = ENOUGH
) -> Layers:
    """The contiguous layers around each peak that an editor would be given.

    Args:
        peaks: from `peak_table`, of all mediators.
        metric: of the peaks.
        smallest: peaks below it are none.
        share: of the total effect, which a window is to bring back.
    """
    mediators: dict[str, dict[str, RoleLayers]] = {}
    for row in peaks.to_dict("records"):
        by_role = mediators.setdefault(str(row["mediator"]), {})
        by_role[str(row["role"])] = _of_role(row, smallest)
    restoring = [key for key in mediators if not cuts_edges(key)]
    if not restoring:
        return {**_NOTHING, "metric": metric, "mediators": mediators}
    mediator = min(restoring, key=lambda key: mediator_name(key) != _MEDIATOR)
    role = _ROLE if _ROLE in mediators[mediator] else next(iter(mediators[mediator]))
    return {
        "layers": mediators[mediator][role]["layers"],
        "mediator": mediator,
        "role": role,
        "metric": metric,
        "caution": CAUTION,
        "mediators": mediators,
        "windows": _smallest_windows(mediators, share),
    }


def _smallest_windows(
    mediators: Mapping[str, Mapping[str, RoleLayers]], share: float
) -> dict[str, dict[str, SmallestWindow]]:
    by_name: dict[str, dict[int, str]] = {}
    for key in mediators:
        parts = MediatorKey.parse(key)
        if parts.window and not cuts_edges(key):
            by_name.setdefault(str(parts._replace(window=0)), {})[parts.window] = key
    found: dict[str, dict[str, SmallestWindow]] = {}
    for name, keys in by_name.items():
        roles = dict.fromkeys(role for key in keys.values() for role in mediators[key])
        for role in roles if len(keys) > 1 else ():
            told = {
                window: one
                for window, key in sorted(keys.items())
                if (one := mediators[key].get(role)) is not None and one["ie_te"] is not None
            }
            if told:
                found.setdefault(name, {})[role] = _first_enough(told, share)
    return found


def _first_enough(told: Mapping[int, RoleLayers], share: float) -> SmallestWindow:
    shares = {window: float(one["ie_te"] or 0.0) for window, one in told.items()}
    enough = next((window for window in told if shares[window] >= share), None)
    return {
        "share": share,
        "window": enough,
        "layer": None if enough is None else told[enough]["peak"],
        "ie_te": max(shares.values()) if enough is None else shares[enough],
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
        return f"No layers can be named: whole outputs were not restored. {CAUTION}"
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
