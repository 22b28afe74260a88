"""Where an average peaks, how sure that is, and which layers follow from it."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ktrace.analysis.clusters import Clusters
from ktrace.analysis.layers import CAUTION, chosen_layers, in_words
from ktrace.analysis.peaks import (
    PEAK_COLUMNS,
    as_ranges,
    peak_set,
    peak_table,
    run_around,
)
from ktrace.analysis.per_fact import MediatorEffects
from ktrace.analysis.rows import Averaging
from ktrace.terms import METRICS, ROLES, SOURCE_GROUPS

SHAPE = np.array([0.1, 0.3, 0.32, 0.05, 0.0])


def effects_of(
    curves: np.ndarray, key: str = "mlp-w3", cluster: list[int] | None = None
) -> MediatorEffects:
    """Facts with one position, the last subject token, and the same effects in every metric."""
    n_facts, n_layers = curves.shape
    totals = np.zeros((n_facts, len(METRICS), len(ROLES), n_layers))
    totals[:, :, 2] = curves[:, None]
    totals[:, METRICS.index("kl")] *= -1
    counts = np.zeros((n_facts, len(ROLES)))
    counts[:, 2] = 1
    by_sample = np.stack([totals.mean(axis=0), totals[::2].mean(axis=0)])
    clusters = Clusters.none(n_facts) if cluster is None else Clusters.of("relation_id", cluster)
    return MediatorEffects(
        key=key,
        indices=tuple(range(n_facts)),
        totals=totals,
        counts=counts,
        by_sample=by_sample,
        total_effects=np.full((n_facts, len(METRICS)), 0.8),
        clusters=clusters,
        relations=("",) * n_facts,
        peaks=np.zeros((n_facts, len(METRICS), 3)),
        groups=np.full((n_facts, len(METRICS), len(SOURCE_GROUPS), totals.shape[-1]), np.nan),
    )


def aie_of(curves: np.ndarray, metric: str = "probability") -> pd.DataFrame:
    sign = -1 if metric == "kl" else 1
    frame = pd.DataFrame({"layer": range(curves.shape[1]), "aie": sign * curves.mean(axis=0)})
    frame["role"] = pd.Categorical(["last subject"] * len(frame), categories=ROLES)
    names = ("ci_low", "ci_high", "ie_te_low", "ie_te_high")
    frame = frame.assign(metric=metric, **dict.fromkeys(names, np.nan))
    return frame.assign(ie_te=frame["aie"] / 0.8, n_facts=len(curves), n_clusters=len(curves))


def noisy(n_facts: int, spread: float, seed: int = 0) -> np.ndarray:
    return SHAPE + spread * np.random.default_rng(seed).normal(size=(n_facts, len(SHAPE)))


def test_layers_that_the_peak_may_lie_in() -> None:
    curves, weights, own = noisy(60, 0.2), np.ones(60), Clusters.none(60)
    found = peak_set(curves, weights, own)
    assert found is not None
    assert found.tolist() == [1, 2], "layers 1 and 2 are 0.02 apart, their error is 0.04"
    assert peak_set(-curves, weights, own, falls=True).tolist() == [1, 2]
    assert peak_set(noisy(60, 0.01), weights, own).tolist() == [2]
    # Facts of a relation share their noise: less is known.
    shared = SHAPE + 0.2 * np.repeat(np.random.default_rng(1).normal(size=(6, 5)), 10, axis=0)
    by_relation = Clusters.of("relation_id", [i // 10 for i in range(60)])
    few, many = (peak_set(shared, weights, c) for c in (by_relation, own))
    assert set(many.tolist()) < set(few.tolist())
    # All layers alike: any may be the peak. One layer is.
    same = np.random.default_rng(2).random((60, 1)).repeat(4, axis=1)
    assert peak_set(same, weights, own).tolist() == [0, 1, 2, 3]
    assert peak_set(same[:, :1], weights, own).tolist() == [0]
    assert peak_set(curves[:7], weights[:7], Clusters.none(7)) is None


@pytest.mark.parametrize(
    ("n_relations", "flat"), [(17, True), (17, False), (60, True), (60, False)]
)
def test_the_set_holds_the_true_peak(n_relations: int, flat: bool) -> None:
    """More often than the level says, also where no layer is better than another."""
    generator = np.random.default_rng(3)
    true = np.full(8, 0.3) if flat else 0.3 + 0.03 * np.sin(np.arange(8))
    labels = np.repeat(np.arange(n_relations), 4)
    clusters, held = Clusters.of("relation_id", labels.tolist()), []
    for _ in range(200):
        relation = generator.normal(size=(n_relations, 8))[labels]
        curves = true + 0.1 * relation + 0.2 * generator.normal(size=(len(labels), 8))
        found = peak_set(curves, np.ones(len(labels)), clusters)
        held.append(2 in found if not flat else 5 in found)
    assert np.mean(held) >= 0.94


def test_runs_of_layers() -> None:
    assert run_around([0, 1, 3, 4, 5, 9], 4) == (3, 5)
    assert run_around([7], 7) == (7, 7)
    assert as_ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert as_ranges([4]) == "4"


def test_the_table_of_peaks() -> None:
    curves = noisy(60, 0.2)
    curves[:6] = 0.001  # nothing to peak
    effects, averaging = effects_of(curves), Averaging()
    table = peak_table(effects, averaging, aie_of(curves))
    assert tuple(table.columns) == PEAK_COLUMNS
    [row] = table.to_dict("records")
    best = int(curves.mean(axis=0).argmax())
    assert (row["layer"], row["aie"]) == (best, pytest.approx(curves.mean(axis=0)[best]))
    assert row["ie_te"] == pytest.approx(row["aie"] / 0.8)
    assert (row["layers"], row["first"], row["last"]) == ("1-2", 1, 2)
    assert row["n_nothing"] == (curves.max(axis=1) < 0.01).sum() >= 6
    assert math.isnan(row["icc"])
    # Both samples' curves, by scipy.
    both = [effects.by_sample[s, 0, 2] for s in (0, 1)]
    assert row["sample_rank"] == pytest.approx(stats.spearmanr(*both).statistic)
    # Halves by hand: other splits, the same mean.
    generator, found, inside = np.random.default_rng(9), [], []
    for _ in range(400):
        order = generator.permutation(60)
        halves = [curves[order[:30]].mean(axis=0), curves[order[30:]].mean(axis=0)]
        found.append(stats.spearmanr(*halves).statistic)
        inside += [int(half.argmax()) in (1, 2) for half in halves]
    assert row["half_rank"] == pytest.approx(np.mean(found), abs=0.03)
    assert row["half_share"] == pytest.approx(np.mean(inside), abs=0.03)
    # A divergence falls: the same peak, from negative effects.
    [mirrored] = peak_table(effects, averaging, aie_of(curves, "kl")).to_dict("records")
    assert mirrored["layers"] == row["layers"]
    assert mirrored["aie"] == -row["aie"]
    assert (mirrored["half_rank"], mirrored["n_nothing"]) == (row["half_rank"], row["n_nothing"])


def test_halves_are_of_other_relations() -> None:
    """Within a relation all facts are alike: halves of its facts would agree on anything."""
    curves = np.random.default_rng(4).normal(size=(10, 6)).repeat(20, axis=0)
    labels = [i // 20 for i in range(200)]
    apart = [
        peak_table(effects_of(curves, cluster=c), Averaging(), aie_of(curves))["half_rank"].item()
        for c in (labels, None)
    ]
    assert apart[1] > 0.8
    assert apart[0] < 0.5


def test_which_layers_and_how_sure() -> None:
    curves = noisy(60, 0.2)
    tables = [
        peak_table(effects_of(curves, key), Averaging(), aie_of(curves))
        for key in ("hidden", "mlp-w3", "attn-w3")
    ]
    found = chosen_layers(pd.concat(tables), "probability", 0.01)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["mediator"], found["role"], found["layers"]) == ("mlp-w3", "last subject", [1, 2])
    one = found["mediators"]["hidden"]["last subject"]
    assert (one["layers"], one["may_peak_in"], one["note"]) == ([1, 2], "1-2", "")
    words = in_words(found)
    assert "MLP outputs, window 3: the average effect is strongest at layer " in words
    assert "may lie in layers 1-2; an editor would be given layers=[1, 2]" in words
    assert words.endswith(CAUTION)
    few = peak_table(effects_of(curves[:5]), Averaging(), aie_of(curves[:5]))
    untold = chosen_layers(few, "probability", 0.01)
    assert untold["layers"] == []
    assert "No layers can be named: too few facts" in in_words(untold)
    weak = chosen_layers(pd.concat(tables), "probability", smallest=2)
    assert weak["mediators"]["hidden"]["last subject"]["note"] == "no effect of at least 2"
    assert weak["layers"] == []


@pytest.mark.usefixtures("no_figures")
def test_the_files_say_the_same(tmp_path: Path) -> None:
    from benchmarks.analysis_scale import write_store
    from ktrace.analysis.analyze import analyze

    run = tmp_path / "outputs" / "m" / "d" / "gaussian-x3-n2-seed1"
    write_store(run, facts=20, layers=3, samples=2)
    analysis = analyze(run)
    layers = json.loads((run / "analysis" / "layers.json").read_text())
    summary = json.loads((run / "analysis" / "summary.json").read_text())
    assert layers == summary["layers"] == json.loads(json.dumps(analysis.summary["layers"]))
    assert summary["answer"] == in_words(layers)
    table = pd.read_csv(run / "analysis" / "peaks.csv").set_index(["mediator", "role"])
    for key, by_role in summary["peaks"].items():
        for role, peak in by_role.items():
            assert table.loc[(key, role), "layer"] == peak["layer"]
            assert layers["mediators"][key][role]["aie"] == pytest.approx(peak["aie"])
