"""Pairs of prompts against an independent author's model, by a forward pass written by hand.

`expected.npz` holds the logits of the right answer and of its foil in float64, for a clean state
put into the corrupted run, for a corrupted one put into the clean run, and for the clean run
without the edge from the last position to a source (../shared/external/README.md).
"""

import json
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

import ktrace
from ktrace.config.compose import composed
from ktrace.pipeline.run import run
from tests.support.places import SHARED

FOLDER = SHARED / "external" / "palindrome"
N_FACTS = {"suffix": 60, "reference": 6}
KEYS = {"hidden": "hidden", "attn": "attn-w1", "head": "head-at-all"}
WINDOWS = (1, 2)

Array = npt.NDArray[np.float64]
Arrays = dict[str, Array]
in_every_way = pytest.mark.parametrize(
    ("engine", "direction"), list(product(N_FACTS, ("denoise", "noise")))
)
by_both_engines = pytest.mark.parametrize("engine", list(N_FACTS))
in_both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture(scope="module")
def expected() -> Arrays:
    """Logits of the right answer and of its foil, on the last axis."""
    if not FOLDER.is_dir():
        pytest.skip("needs the published weights beside the checkout (../shared/external)")
    return dict(np.load(FOLDER / "expected.npz").items())


@pytest.fixture(scope="module")
def folder(expected: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, with a tokenizer that reads `out0`, the foil, as one token.

    As it stands beside the arrays, it finds its special token `t0` in it.
    """
    copy = tmp_path_factory.mktemp("palindrome")
    for path in FOLDER.iterdir():
        shutil.copyfile(path, copy / path.name)
    tokenizer = json.loads((copy / "tokenizer.json").read_text("utf-8"))
    [added] = tokenizer["added_tokens"]
    added["single_word"] = True
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    return copy


def restored(
    dtype: str, engine: str, folder: Path, output_dir: Path, *mediator: str
) -> pd.DataFrame:
    """From the command line's settings, through the stores, to the frame."""
    outcome = run(
        composed(
            [
                *("stage=restore", "model=auto", f"model.path={folder}", f"model.dtype={dtype}"),
                *("dataset=file", f"dataset.path={FOLDER / 'pairs.jsonl'}", "noise=pair"),
                *("metric=logit", f"engine={engine}", f"dataset.limit={N_FACTS[engine]}"),
                *mediator,
                f"output_dir={output_dir}",
            ]
        )
    )
    return ktrace.load_effects(outcome.folder, metrics=["logit", "logit_difference"])


def require_same(own: pd.DataFrame, column: str, exact: Array, dtype: str) -> None:
    """Logits of the answer and its foil, `(..., 2)`, in the order of a mediator's rows.

    Stores round scores to float32: of a run in float64 they are as near as that can be. Of one in
    float32, a few cells are beyond 1e-5 as such in both engines: the largest, of an edge of pair 8,
    is 1.8e-5 of the answer's logit (-0.88) and 1.5e-5 of the foil's (0.33).
    """
    logit, apart = (
        own.loc[own["metric"] == metric, column].to_numpy(np.float64)
        for metric in ("logit", "logit_difference")
    )
    answer, foil = exact.reshape(-1, 2).T
    assert logit.shape == apart.shape == answer.shape
    for ours, theirs, stored in (
        (logit, answer, [answer]),
        (logit - apart, foil, [answer, answer - foil]),
    ):
        bound = np.spacing(np.abs(stored).astype(np.float32)).sum(axis=0, dtype=np.float64)
        if dtype == "float32":
            bound = 1e-5 * (1 + np.abs(stored).max(axis=0))
        assert (np.abs(ours - theirs) <= bound).all(), column


def of_mediator(frame: pd.DataFrame, key: str, axes: list[str]) -> pd.DataFrame:
    return frame[frame["mediator"] == key].sort_values(axes)


def key_of(name: str, direction: str) -> str:
    parts = KEYS[name].partition("-at")
    return parts[0] + ("-noise" if direction == "noise" else "") + parts[1] + parts[2]


def traced(
    folder: Path, name: str, engine: str, window: int = 1, **options: str
) -> list[ktrace.Trace]:
    """The first three pairs."""
    model = ktrace.load_model(str(folder), dtype="float64")
    lines = (FOLDER / "pairs.jsonl").read_text("utf-8").splitlines()
    return [
        ktrace.trace(
            model,
            pair["prompt"],
            mediator=name,
            answer=pair["attribute"],
            window=window,
            engine=engine,
            corrupted_prompt=pair["corrupted_prompt"],
            wrong_answer=pair["foil"],
            **options,
        )
        for pair in map(json.loads, lines[:3])
    ]


def require_near(found: ktrace.Trace, theirs: Array) -> None:
    """Both logits, `(..., 2)`.

    The weights beside the arrays are rounded to float32, so that a clean run in float64 is up to
    8e-10 from theirs, whoever runs it.
    """
    logit, apart = (found.restored[metric][0] for metric in ("logit", "logit_difference"))
    np.testing.assert_allclose(logit, theirs[..., 0], rtol=0, atol=5e-9)
    np.testing.assert_allclose(logit - apart, theirs[..., 1], rtol=0, atol=5e-9)


@in_every_way
@in_both_dtypes
def test_every_cell_is_the_one_by_hand(
    dtype: str, engine: str, direction: str, expected: Arrays, folder: Path, tmp_path: Path
) -> None:
    frame = restored(
        dtype,
        engine,
        folder,
        tmp_path,
        *("mediator.names=[hidden,attn,head]", "mediator.window=1", "mediator.positions=all"),
        f"mediator.direction={direction}",
    )
    assert set(frame["mediator"]) == {key_of(name, direction) for name in KEYS}
    for name in KEYS:
        theirs = expected[f"{direction}_{name}"][: N_FACTS[engine]]
        axes = ["known_id", "layer", *(["head"] if name == "head" else []), "position"]
        own = of_mediator(frame, key_of(name, direction), axes)
        assert set(own["head"].notna()) == {name == "head"}
        require_same(own, "restored", theirs, dtype)
        for column in ("clean", "corrupted"):
            base = expected[column][: len(theirs)].reshape(len(theirs), *[1] * (theirs.ndim - 2), 2)
            require_same(own, column, np.broadcast_to(base, theirs.shape), dtype)
        base = expected["clean" if direction == "noise" else "corrupted"][: len(theirs)]
        apart = theirs - base.reshape(len(theirs), *[1] * (theirs.ndim - 2), 2)
        assert np.abs(apart).max() > 1  # else nothing would be compared


@by_both_engines
@in_both_dtypes
def test_every_edge_is_the_one_by_hand(
    dtype: str, engine: str, expected: Arrays, folder: Path, tmp_path: Path
) -> None:
    """Both windows in one walk; and groups of sources have no rows here."""
    frame = restored(
        dtype,
        engine,
        folder,
        tmp_path,
        *("mediator=knockout", f"mediator.window={list(WINDOWS)}".replace(" ", "")),
    )
    assert set(frame["mediator"]) == {f"knockout-w{window}" for window in WINDOWS}
    assert "head" not in frame
    for window in WINDOWS:
        theirs = expected[f"knockout_w{window}"][: N_FACTS[engine]]
        own = of_mediator(frame, f"knockout-w{window}", ["known_id", "layer", "position"])
        assert set(own["position"]) == set(range(theirs.shape[2]))
        require_same(own, "restored", theirs, dtype)
        for column in ("clean", "corrupted"):
            base = expected[column][: len(theirs), None, None]
            require_same(own, column, np.broadcast_to(base, theirs.shape), dtype)
        assert np.abs(theirs - expected["clean"][: len(theirs), None, None]).max() > 1


@in_every_way
@pytest.mark.parametrize("name", list(KEYS))
def test_float64_agrees_to_its_own_rounding(
    name: str, engine: str, direction: str, expected: Arrays, folder: Path
) -> None:
    """Before a store rounds: from Python, without a subject."""
    found = traced(folder, name, engine, direction=direction, positions="all")
    for number, one in enumerate(found):
        require_near(one, expected[f"{direction}_{name}"][number])
        assert one.mediator == key_of(name, direction)
        assert one.span == (one.span.start, one.span.start + 1)


@by_both_engines
@pytest.mark.parametrize("window", WINDOWS)
def test_edges_in_float64_agree_to_its_own_rounding(
    window: int, engine: str, expected: Arrays, folder: Path
) -> None:
    for number, one in enumerate(traced(folder, "knockout", engine, window)):
        require_near(one, expected[f"knockout_w{window}"][number])
        assert one.mediator == f"knockout-w{window}"
