"""`summary.json`: a run in one page of numbers, what was left out of it, and what made it."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import TypedDict

from ktrace.analysis.averaged_run import RunAverages, asked_limit
from ktrace.analysis.estimate import AverageTotalEffect, number
from ktrace.analysis.layers import Layers, chosen_layers, in_words
from ktrace.analysis.peaks import AveragePeak, average_peaks
from ktrace.analysis.stored import MeasuredOn, Survey
from ktrace.store.layout import Provenance, provenance_of
from ktrace.store.schema import JsonObject
from ktrace.terms import METRICS, effects_fall

_TOP_HEADS = 5  # of a mediator and role


class RoleRules(TypedDict):
    """How positions became rows."""

    scheme: str
    single_token: str


class TopHead(TypedDict):
    """One of the heads with the strongest effects."""

    layer: int
    head: int
    aie: float
    ci: list[float | None]


class Summary(TypedDict):
    """The content of `summary.json`, in its order.

    `p_clean`, `p_corrupted`, `ate`, `ate_ci`, `n_clusters` and `icc` are in the first metric, the
    probability; `metrics` has the same of each; `peaks`, by mediator and role, are in `metric`,
    which the figures show; `layers` is the content of `layers.json`, `answer` the same in words;
    `heads`, by mediator and role, are the strongest in `metric`.
    """

    n_facts: int
    n_candidates: int
    n_traced: int
    left_out: Mapping[str, int]
    missing: list[str]
    p_clean: float
    p_corrupted: float
    ate: float
    ate_ci: list[float | None]
    n_clusters: int
    icc: float | None
    metrics: Mapping[str, AverageTotalEffect]
    sigma: float | None
    sigma_measured_on: MeasuredOn | None
    noise_level: float | None
    n_samples: int
    limit: int | None
    metric: str
    roles: RoleRules
    pool: str
    cluster: str | None
    interval: str
    smallest: float
    settings: Mapping[str, JsonObject | None]
    provenance: Provenance
    peaks: Mapping[str, Mapping[str, AveragePeak]]
    answer: str
    layers: Layers
    heads: Mapping[str, Mapping[str, list[TopHead]]]
    model: str
    dataset: str
    noise: str


def summarize(run: RunAverages, metric: str, limit: int | None) -> Summary:
    """The summary of a run.

    Args:
        run: the averages.
        metric: that of the peaks.
        limit: what was asked for: only the first `limit` facts of the dataset; None for what the
            run was asked for.

    Raises:
        KtraceError: a damaged part.
    """
    found, averaging, example = run.survey, run.averaging, run.survey.example
    metrics = {name: run.total_effect(name) for name in METRICS}
    first, aie = metrics[METRICS[0]], run.aie_in(metric)
    layers = chosen_layers(run.peaks(metric), metric, averaging.smallest, averaging.share)
    return {
        "n_facts": len(found.clean),
        "n_candidates": len(found.candidates),
        "n_traced": len(found.traced),
        "left_out": _left_out(found),
        "missing": list(run.missing),
        "p_clean": first["clean"],
        "p_corrupted": first["corrupted"],
        "ate": first["ate"],
        "ate_ci": first["ate_ci"],
        "n_clusters": first["n_clusters"],
        "icc": first["icc"],
        "metrics": metrics,
        # JSON has no NaN.
        "sigma": None if math.isnan(example.sigma) else example.sigma,
        "sigma_measured_on": found.sigma_measured_on,
        "noise_level": None if math.isnan(example.noise_level) else example.noise_level,
        "n_samples": run.total.clean.shape[-1],
        "limit": limit or asked_limit(found),
        "metric": metric,
        "roles": {"scheme": averaging.scheme, "single_token": averaging.single_token},
        "pool": averaging.pool,
        "cluster": averaging.cluster,
        "interval": averaging.interval,
        "smallest": averaging.smallest,
        "settings": {key: found.folders.restored(key).fingerprint() for key in run.every_key},
        "provenance": provenance_of(found.folders, run.every_key),
        "peaks": {key: average_peaks(aie[aie["mediator"] == key], metric) for key in run.keys},
        "answer": in_words(layers),
        "layers": layers,
        "heads": _top_heads(run, metric),
        "model": run.names.model,
        "dataset": run.names.dataset,
        "noise": run.names.noise,
    }


def _top_heads(run: RunAverages, metric: str) -> dict[str, dict[str, list[TopHead]]]:
    found: dict[str, dict[str, list[TopHead]]] = {}
    every = run.of_heads
    for (key, role), cells in every[every["metric"] == metric].groupby(
        ["mediator", "role"], sort=False
    ):
        order = cells["aie"].sort_values(ascending=effects_fall(metric, key)).index
        found.setdefault(key, {})[role] = [
            {
                "layer": int(row["layer"]),
                "head": int(row["head"]),
                "aie": float(row["aie"]),
                "ci": [number(row["ci_low"]), number(row["ci_high"])],
            }
            for row in cells.loc[order[:_TOP_HEADS]].to_dict("records")
        ]
    return found


def _left_out(found: Survey) -> dict[str, int]:
    """Facts that are no candidates, and those that the noise cannot corrupt, by reason."""
    reasons = [r.left_out for r in found.clean.values() if not r.is_candidate]
    reasons += [r.left_out for r in found.corrupted.values() if r.left_out]
    return dict(Counter(reasons))
