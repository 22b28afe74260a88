"""`experiment=localize`, and sweeps with `compare=true`: what they say follows from the stores."""

from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest

import ktrace as public
from ktrace.analysis.averaged_run import average_run
from ktrace.analysis.methods import COMPARED, ROLE
from ktrace.analysis.peaks import layers_in
from ktrace.analysis.rows import Averaging
from ktrace.terms import effects_fall, has_heads
from tests.support.command import Ended, Ktrace

NOISES = ("gaussian-x3-n10-seed1", "token_replacement-n1-seed1")
DIRECTED = ("hidden", "mlp-w3", "attn-w3", "head")
KEYS = ("knockout-w3", *(f"{key}{end}" for key in DIRECTED for end in ("", "-noise")))
METHOD = ["run", "mediator", "metric"]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("localize")


@pytest.fixture(scope="module")
def once() -> dict[str, Ended]:
    return {}


@pytest.fixture
def ended(
    ktrace: Ktrace, output: Path, once: dict[str, Ended], no_figures: None, no_proof: None
) -> Ended:
    """The command, run for the first test that asks; figures are looked at elsewhere."""
    if not once:
        asked = ("experiment=localize", "dataset.limit=16", f"output_dir={output}")
        once["localize"] = ktrace(*asked)
    return once["localize"]


@pytest.fixture
def methods(ended: Ended, output: Path) -> pd.DataFrame:
    assert ended.code == 0, ended.stderr
    return pd.read_csv(output / "comparison" / "methods.csv", keep_default_na=False, na_values=[""])


def profiles(output: Path) -> dict[tuple[str, str, str], pd.Series]:
    """AIE by layer at the last subject token, by run, mediator and metric; heads are summed."""
    found = {}
    for noise in NOISES:
        folder = output / "tiny" / "facts" / noise
        for metric in COMPARED:
            whole = public.average(folder, metric=metric)
            of_heads = public.average(
                folder, by=("mediator", "role", "layer", "head"), metric=metric
            )
            for key in KEYS:
                table = of_heads if has_heads(key) else whole
                cells = table[(table["mediator"] == key) & (table["role"] == ROLE)]
                found[noise, key, metric] = cells.groupby("layer")["aie"].sum()
    return found


def test_the_protocol_names_the_layers_that_its_stores_do(
    ended: Ended, methods: pd.DataFrame, output: Path
) -> None:
    assert sorted(zip(*(methods[name] for name in METHOD), strict=True)) == sorted(
        (noise, key, metric) for noise in NOISES for key in KEYS for metric in COMPARED
    )
    assert set(methods["role"]) == {ROLE}
    expected = profiles(output)
    runs = {n: average_run(output / "tiny" / "facts" / n, Averaging()) for n in NOISES}
    for row in methods.to_dict("records"):
        run, key, metric = (row[name] for name in METHOD)
        curve = expected[run, key, metric]
        assert len(curve), (run, key, metric)
        peak = curve.idxmin() if effects_fall(metric, key) else curve.idxmax()
        assert row["layer"] == peak, (run, key, metric)
        assert row["aie"] == pytest.approx(curve[peak], abs=1e-5)
        assert row["n_facts"] == len(runs[run].survey.traced)
        named = row["layers"] if isinstance(row["layers"], str) else ""
        if not has_heads(key):
            told = runs[run].peaks(metric)
            [same] = told[(told["mediator"] == key) & (told["role"] == ROLE)].to_dict("records")
            assert named == same["layers"]
            assert (row["ci_low"], row["ci_high"]) == pytest.approx(
                (same["ci_low"], same["ci_high"]), nan_ok=True
            )
        assert not named or peak in layers_in(named)
        assert row["ci_low"] <= row["aie"] <= row["ci_high"]
    assert methods["layers"].notna().any()
    for name in ("methods.png", "agreement.csv", "runs.csv"):
        assert (output / "comparison" / name).is_file()
    assert all(noise in ended.stdout for noise in NOISES)


def test_methods_agree_as_far_as_their_profiles_do(methods: pd.DataFrame, output: Path) -> None:
    agreement = pd.read_csv(output / "comparison" / "agreement.csv")
    expected = profiles(output)
    order = list(zip(*(methods[name] for name in METHOD), strict=True))
    layers = dict(zip(order, methods["layers"].fillna("").astype(str), strict=True))
    ranks: dict[tuple[str, str, str], list[float]] = {method: [] for method in order}
    assert len(agreement) == len(order) * (len(order) - 1) // 2
    for (one, other), row in zip(combinations(order, 2), agreement.to_dict("records"), strict=True):
        sides = [tuple(row[f"{side}_{name}"] for name in METHOD) for side in ("left", "right")]
        assert sides == [one, other]
        curves = [
            expected[run, key, metric] * (-1 if effects_fall(metric, key) else 1)
            for run, key, metric in (one, other)
        ]
        rank = curves[0].rank().corr(curves[1].rank())
        assert row["rank"] == pytest.approx(rank, abs=1e-6)
        left, right = (layers_in(layers[method]) for method in (one, other))
        overlap = len(left & right) / len(left | right) if left and right else float("nan")
        assert row["overlap"] == pytest.approx(overlap, nan_ok=True)
        for method in (one, other):
            ranks[method].append(rank)
    means = [sum(found) / len(found) for found in ranks.values()]
    assert methods["agreement"].tolist() == pytest.approx(means, abs=1e-6)
    assert max(means) > min(means)


def test_any_sweep_ends_in_a_comparison_where_asked(
    ktrace: Ktrace, own: tuple[str, ...], no_figures: None, no_proof: None, in_folder: Path
) -> None:
    asked = ("-m", *own, "noise.samples=1,2", "mediator.names=[hidden,knockout]")
    assert ktrace(*asked).code == 0
    assert not Path("outputs/comparison").exists()
    ended = ktrace(*asked, "compare=true")
    assert ended.code == 0, ended.stderr
    methods = pd.read_csv("outputs/comparison/methods.csv")
    assert set(methods["run"]) == {"gaussian-x3-n1-seed1", "gaussian-x3-n2-seed1"}
    assert set(methods["mediator"]) == {"hidden", "knockout-w10"}


def test_a_sweep_that_failed_is_not_compared(
    ktrace: Ktrace, own: tuple[str, ...], no_figures: None, no_proof: None, in_folder: Path
) -> None:
    ended = ktrace("-m", *own, "noise.samples=1,0,2", "compare=true")
    assert ended.code == 1
    assert "job 1 failed: noise.samples=0 is out of range" in ended.stderr
    assert not Path("outputs/comparison").exists()


def test_one_run_cannot_be_compared(
    ktrace: Ktrace, own: tuple[str, ...], no_figures: None, no_proof: None, in_folder: Path
) -> None:
    """Two mediators of one noise share a folder."""
    ended = ktrace("-m", *own, "noise.samples=1", "mediator=hidden,mlp", "compare=true")
    assert ended.code == 1
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("ktrace: ")]
    assert "matches one run with restorations, outputs/" in line
