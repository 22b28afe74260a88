"""`ktrace.average`: on frames made by hand, on a run, and on effects that others published."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ktrace
from ktrace.analysis.analyze import analyze
from ktrace.analysis.rows import Averaging
from ktrace.errors import KtraceError
from ktrace.terms import METRICS, ROLES
from tests.support.places import ROOT
from tests.support.stores import write_run

PUBLISHED = ROOT.parent / "shared" / "external" / "gpt2_xl"
CELL = ["mediator", "role", "layer"]


def frame_of(n_facts: int = 24, seed: int = 0) -> pd.DataFrame:
    """Facts of eight relations, two samples, two layers, one to three further positions."""
    generator = np.random.default_rng(seed)
    rows = []
    for fact in range(n_facts):
        roles = ["", "last subject", *["further"] * (1 + fact % 3), "last"]
        for sample in range(2):
            for layer in range(2):
                for position, role in enumerate(roles):
                    rows.append((fact, f"r{fact % 8}", sample, layer, position, role or None))
    names = ["known_id", "relation_id", "sample", "layer", "position", "role"]
    frame = pd.DataFrame(rows, columns=names).assign(mediator="hidden", metric="probability")
    frame["corrupted"] = (frame["known_id"] % 5) / 50 + frame["sample"] / 100
    frame["restored"] = frame["corrupted"] + generator.random(len(frame)) / 2
    return frame


def by_hand(frame: pd.DataFrame, *, pool: str) -> pd.Series:
    frame = frame.assign(ie=frame["restored"] - frame["corrupted"])
    by_position = frame.groupby([*CELL, "known_id", "position"])["ie"].mean()
    by_fact = by_position.groupby([*CELL, "known_id"]).mean()
    return (by_position if pool == "positions" else by_fact).groupby(CELL).mean()


@pytest.mark.parametrize("pool", ["facts", "positions"])
def test_samples_then_positions_then_facts(pool: str) -> None:
    frame = frame_of()
    found = ktrace.average(frame, pool=pool)
    assert list(found.columns) == [*CELL, "aie", "ci_low", "ci_high", "n_facts", "n_clusters"]
    expected = by_hand(frame, pool=pool)
    assert found.set_index(CELL).index.tolist() == expected.index.tolist()
    np.testing.assert_allclose(found["aie"], expected, rtol=1e-12)
    assert set(found["n_facts"]) == {24}
    assert set(found["n_clusters"]) == {8}
    assert (found["ci_low"] < found["aie"]).all()
    # Rows in another order, facts by other numbers: the same.
    other = frame.sample(frac=1, random_state=1).assign(known_id=lambda f: 1000 - f["known_id"])
    pd.testing.assert_frame_equal(ktrace.average(other, pool=pool), found, rtol=1e-12)


def test_a_mediator_without_heads_beside_one_that_has_them() -> None:
    """A missing head is no missing row; heads count as positions do."""
    whole = frame_of()
    heads = [
        whole.assign(mediator="head", head=head, restored=whole["restored"] + head)
        for head in range(2)
    ]
    both = pd.concat([whole.assign(head=pd.NA), *heads]).astype({"head": "Int64"})
    found, expected = ktrace.average(both).set_index(CELL)["aie"], by_hand(whole, pool="facts")
    for mediator, more in (("hidden", 0.0), ("head", 0.5)):
        np.testing.assert_allclose(found[mediator], expected["hidden"] + more, rtol=1e-12)


def test_by_other_columns() -> None:
    frame = frame_of()
    effects = (frame["restored"] - frame["corrupted"]).to_numpy()
    by_relation = ktrace.average(frame, by=["relation_id", "role"], detail=True)
    assert len(by_relation) == 8 * 3
    assert set(by_relation["n_facts"]) == {3}
    assert set(by_relation["n_clusters"]) == {1}
    assert set(by_relation["ci_note"]) == {"fewer than 8 effective facts"}
    one = frame["relation_id"].eq("r2") & frame["role"].eq("last")
    row = by_relation[by_relation["relation_id"].eq("r2") & by_relation["role"].eq("last")]
    assert row["aie"].item() == pytest.approx(effects[one].mean())
    by_sample = ktrace.average(frame, by=["sample", "role", "layer"])
    chosen = frame["sample"].eq(1) & frame["role"].eq("last subject") & frame["layer"].eq(0)
    row = by_sample.query("sample == 1 and role == 'last subject' and layer == 0")
    assert row["aie"].item() == pytest.approx(effects[chosen].mean())
    # Positions before the subject count where roles are not asked for.
    assert ktrace.average(frame, by=["layer"], pool="positions")["aie"][0] == pytest.approx(
        effects[frame["layer"] == 0].mean()
    )


def test_clusters_are_a_column_or_nothing() -> None:
    frame = frame_of()
    bare = frame.drop(columns="relation_id")
    alone = ktrace.average(frame, cluster=None, detail=True)
    assert set(alone["ci_over"]) == {"facts"}
    pd.testing.assert_frame_equal(ktrace.average(bare, detail=True), alone)
    assert set(ktrace.average(frame, detail=True)["ci_over"]) == {"relation_id"}
    named = frame.assign(topic=frame["known_id"] % 6)
    assert set(ktrace.average(named, cluster="topic")["n_clusters"]) == {6}
    missing = frame.assign(relation_id=frame["relation_id"].where(frame["known_id"] < 16))
    assert set(ktrace.average(missing)["n_clusters"]) == {8 + 8}


def test_facts_are_told_apart_by_their_prompts_too() -> None:
    frame = frame_of().assign(prompt="one")
    both = pd.concat([frame, frame.assign(prompt="other")], ignore_index=True)
    assert set(ktrace.average(both)["n_facts"]) == {48}
    np.testing.assert_allclose(ktrace.average(both)["aie"], ktrace.average(frame)["aie"])


def test_a_score_that_is_missing_does_not_count() -> None:
    frame = frame_of()
    gone = frame["known_id"].eq(3) & frame["layer"].eq(1) & frame["role"].eq("last")
    frame.loc[gone, "restored"] = np.nan
    found = ktrace.average(frame).set_index(CELL)
    assert found.loc[("hidden", "last", 1), "n_facts"] == 23
    np.testing.assert_allclose(found["aie"], by_hand(frame, pool="facts"), rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "accuracy"}, "metric='accuracy' is unknown: choose from probability, "),
        ({"pool": "tokens"}, "pool='tokens' is unknown: choose from facts, positions"),
        ({"by": ["head"]}, "the frame has no column 'head': known_id, "),
        ({"cluster": "topic"}, "the frame has no column 'topic': known_id, "),
        ({"metric": "kl"}, "there are no effects by mediator, role, layer in metric='kl'"),
    ],
)
def test_what_cannot_be_averaged_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(KtraceError, match=f"^{message}"):
        ktrace.average(frame_of(), **options)


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("pool", ["facts", "positions"])
def test_a_run_gives_the_numbers_of_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: str
) -> None:
    monkeypatch.setattr("ktrace.analysis.intervals.FEWEST_FACTS", 2)
    run = write_run(tmp_path).run
    table = analyze(run, averaging=Averaging(pool=pool)).aie
    for metric in METRICS:
        expected = table[table["metric"] == metric].reset_index(drop=True)
        found = ktrace.average(run, metric=metric, pool=pool)
        for column in [*CELL, "aie", "ci_low", "ci_high", "n_facts", "n_clusters"]:
            theirs = expected[column].tolist()
            assert found[column].tolist() == pytest.approx(theirs, abs=1e-12, nan_ok=True) or (
                found[column].tolist() == theirs
            )
    assert found["ci_low"].notna().any()
    pd.testing.assert_frame_equal(
        ktrace.average(ktrace.load_effects(run), metric=metric, pool=pool), found
    )


@pytest.fixture(scope="module")
def published() -> pd.DataFrame:
    """In the columns of `load_effects`, with the rule of its authors for lone tokens."""
    if not PUBLISHED.is_dir():
        pytest.skip(f"{PUBLISHED} is not there")
    facts = json.loads((PUBLISHED / "facts.json").read_text())
    stored = np.load(PUBLISHED / "effects.npz")
    effects = stored["effects"].astype(np.float64)
    frames = []
    for number, fact in enumerate(facts):
        roles = published_roles(fact["subject"])
        start, stop = stored["offsets"][number : number + 2]
        shape = (stop - start, effects.shape[1])
        position, layer = np.indices(shape).reshape(2, -1)
        frames.append(
            pd.DataFrame(
                {
                    "known_id": fact["known_id"],
                    "position": position,
                    "layer": layer,
                    "role": np.array(roles, dtype=object)[position],
                    "clean": stored["clean"][number],
                    "corrupted": np.float64(stored["corrupted"][number]),
                    "restored": effects[start:stop].ravel() + stored["corrupted"][number],
                }
            )
        )
    frame = pd.concat(frames, ignore_index=True).assign(mediator="hidden", sample=0)
    frame["role"] = pd.Categorical(frame["role"], categories=ROLES)
    return frame


def published_roles(subject: list[bool]) -> list[str | None]:
    """A lone subject token is first; the prompt's last right behind its subject is subsequent."""
    if True not in subject:
        return [None] * len(subject)
    start, stop = subject.index(True), len(subject) - subject[::-1].index(True)
    after = ["first subsequent", *["further"] * (len(subject) - stop - 2), "last"]
    inside = ["middle subject"] * (stop - start)
    inside[-1], inside[0] = "last subject", "first subject"
    return [*[None] * start, *inside, *after[: len(subject) - stop]]


def test_the_averages_that_others_published(published: pd.DataFrame) -> None:
    sizes = published[published["layer"] == 0].groupby("role", observed=True).size()
    assert sizes.tolist() == [998, 2430, 979, 998, 2782, 944]
    found = ktrace.average(published, pool="positions")
    peaks = found.loc[found.groupby("role", observed=True)["aie"].idxmax()]
    expected = {
        "first subject": (0, 0.0209),
        "middle subject": (11, 0.0220),
        "last subject": (15, 0.0675),
        "first subsequent": (6, 0.0178),
        "further": (30, 0.0030),
        "last": (47, 0.1967),
    }
    layers = dict(zip(peaks["role"], peaks["layer"], strict=True))
    values = dict(zip(peaks["role"], peaks["aie"].round(4), strict=True))
    assert {role: (layers[role], values[role]) for role in expected} == expected
    by_fact = published.drop_duplicates("known_id")
    assert by_fact["clean"].mean() == pytest.approx(0.261, abs=5e-4)
    assert (by_fact["clean"] - by_fact["corrupted"]).mean() == pytest.approx(0.197, abs=5e-4)
    assert (found["ci_low"] < found["aie"]).all()
    assert (found["aie"] < found["ci_high"]).all()


def test_the_lines_of_the_averages_that_others_published(
    published: pd.DataFrame, tmp_path: Path
) -> None:
    found = ktrace.average(published, pool="positions")
    figure = ktrace.plot_lines(found, title="GPT-2 XL")
    [axis] = figure.axes
    shown = {line.get_label(): line.get_ydata() for line in axis.get_lines()}
    for number, role in enumerate(ROLES):
        averages = found[found["role"] == role].sort_values("layer")
        np.testing.assert_allclose(shown[role], averages["aie"], rtol=1e-12)
        corners = axis.collections[number].get_paths()[0].vertices[:, 1]
        assert corners.min() == pytest.approx(averages["ci_low"].min())
        assert corners.max() == pytest.approx(averages["ci_high"].max())
    assert int(np.argmax(shown["last subject"])) == 15
    assert shown["last subject"].max() == pytest.approx(0.0675, abs=5e-5)
    figure.savefig(tmp_path / "lines.png")
    assert (tmp_path / "lines.png").stat().st_size > 10_000


def test_mediators_are_told_apart_or_refused(tmp_path: Path) -> None:
    whole = frame_of()
    both = pd.concat([whole, whole.assign(mediator="mlp-w3")])
    message = r"^the effects are of the mediators hidden, mlp-w3: add 'mediator' to by, or take one"
    for by in (["layer"], ["role", "layer"], ["relation_id"]):
        with pytest.raises(KtraceError, match=message):
            ktrace.average(both, by=by)
    one = both[both["mediator"] == "mlp-w3"]
    assert len(ktrace.average(one, by=["layer"])) == 2
    assert len(ktrace.average(both, by=["mediator", "layer"])) == 4
    # A column that tells them apart will do, whatever it is called.
    titled = both.assign(title=both["mediator"].map({"hidden": "states", "mlp-w3": "MLPs"}))
    assert set(ktrace.average(titled, by=["title"])["title"]) == {"states", "MLPs"}
    headed = pd.concat([whole.assign(head=pd.NA), whole.assign(mediator="head", head=1)])
    assert len(ktrace.average(headed, by=["head"])) == 1
    # Of a run, before any store is read.
    run = write_run(tmp_path).run
    with pytest.raises(KtraceError, match=message):
        ktrace.average(run, by=["layer"])


def test_one_column_is_named_without_a_list() -> None:
    pd.testing.assert_frame_equal(
        ktrace.average(frame_of(), by="role"), ktrace.average(frame_of(), by=["role"])
    )
