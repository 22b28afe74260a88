"""Edges that are cut, in the tables of a real run, by hand from its stores."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ktrace
from ktrace.config.compose import composed
from ktrace.pipeline.run import run
from ktrace.store import CleanRecord, CorruptedRecord, RestoredRecord, RunFolders
from ktrace.terms import METRICS, SOURCE_GROUPS
from tests.support.figures import NO_FIGURES

KEYS = ("knockout-w1", "knockout-w3")
FROM_SUBJECT = "knockout-w3-from-last_subject"
CELL = ["mediator", "metric", "sources", "layer"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the embedded model; figures are looked at elsewhere."""
    output = tmp_path_factory.mktemp("knockout")
    sizes = ("model=tiny", "dataset.limit=20", "noise.samples=2", "activations.clean=[]")
    asked = [*sizes, "mediator=knockout", f"output_dir={output}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ktrace.analysis.analyze.draw_figures", lambda *_, **__: NO_FIGURES)
        run(composed([*asked, "mediator.query=last_subject", "stage=restore"]))
        return run(composed([*asked, "mediator.window=[1,3]"])).folder


@pytest.fixture(scope="module")
def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "analysis" / "knockout.csv")


def by_fact(
    folder: Path, key: str, metric: str
) -> dict[tuple[str, int], list[tuple[float, float]]]:
    """By group and layer, of each fact that has it: its effect, and that divided by its score."""
    folders = RunFolders(folder)
    clean = {one.index: one.clean[metric] for one in CorruptedRecord.read(folders.corrupted)}
    found = defaultdict(list)
    for record in RestoredRecord.read(folders.restored(key)):
        scores = record.scores[metric].astype(np.float64)[:, :, 0]
        base = clean[record.index].astype(np.float64)
        for column, place in enumerate(record.places):
            if place < 0:
                effects = (scores[:, :, column] - base[:, None]).mean(axis=0)
                for layer, effect in enumerate(effects):
                    name = SOURCE_GROUPS[-1 - place]
                    found[name, layer].append((effect, effect / base.mean()))
    return found


@pytest.mark.parametrize("key", [*KEYS, FROM_SUBJECT])
@pytest.mark.parametrize("metric", ["probability", "logit", "kl"])
def test_groups_are_averaged_over_facts(
    folder: Path, table: pd.DataFrame, key: str, metric: str
) -> None:
    rows = table[(table["mediator"] == key) & (table["metric"] == metric)]
    expected = by_fact(folder, key, metric)
    assert len(rows) == len(expected)
    for row in rows.to_dict("records"):
        effects, shares = map(np.array, zip(*expected[row["sources"], row["layer"]], strict=True))
        assert row["n_facts"] == len(effects)
        assert row["effect"] == pytest.approx(effects.mean(), abs=1e-6)
        if row["n_facts"] > 8:
            assert row["ci_low"] <= row["effect"] <= row["ci_high"]
        if metric == "probability":
            assert row["relative"] == pytest.approx(shares.mean(), abs=1e-5)
            assert row["relative"] >= -1
        else:
            assert pd.isna(row["relative"])
    assert rows["effect"].abs().max() > 0.01


def test_rows_are_of_every_group_that_facts_have(folder: Path, table: pd.DataFrame) -> None:
    """A query sees nothing behind it: of its own subject there is nothing after."""
    n_layers = table["layer"].nunique()
    assert list(table.columns[:7]) == [
        *("model", "dataset", "noise", "mediator", "metric", "sources", "layer"),
    ]
    assert set(table["metric"]) == set(METRICS)
    groups = table.groupby("mediator")["sources"].unique().map(set)
    assert groups[KEYS[0]] == groups[KEYS[1]] == set(SOURCE_GROUPS)
    assert groups[FROM_SUBJECT] == {"before subject", "subject", "query itself"}
    assert not table.duplicated(CELL).any()
    sizes = table.groupby(["mediator", "metric", "sources"]).size()
    assert set(sizes) == {n_layers}


def test_a_joint_cut_is_not_the_sum(folder: Path, table: pd.DataFrame) -> None:
    frame = ktrace.load_effects(folder, metrics=["probability"])
    assert (frame["position"] >= 0).all()  # groups are at no position
    own = frame[frame["mediator"] == KEYS[1]]
    ie = own.assign(ie=own["restored"].astype(np.float64) - own["clean"])
    subject = ie[ie["role"].astype(str).str.endswith(" subject")]
    sums = subject.groupby(["known_id", "sample", "layer"], observed=True)["ie"].sum()
    together = table[
        (table["mediator"] == KEYS[1])
        & (table["metric"] == "probability")
        & (table["sources"] == "subject")
    ].set_index("layer")["effect"]
    apart = sums.groupby("layer").mean() - together
    assert apart.abs().max() > 0.005


def test_sources_have_roles_and_the_query_is_the_last(folder: Path, table: pd.DataFrame) -> None:
    """aie.csv: by the role of the source; of the query itself, the cut of that edge."""
    frame = ktrace.load_effects(folder)
    own = frame[(frame["mediator"] == KEYS[1]) & frame["role"].notna()]
    own = own.assign(ie=own["restored"].astype(np.float64) - own["clean"])
    cells = ["metric", "role", "layer"]
    each = own.groupby([*cells, "known_id"], observed=True)["ie"].mean()
    expected = each.groupby(cells, observed=True).mean()
    aie = pd.read_csv(folder / "analysis" / "aie.csv")
    found = aie[aie["mediator"] == KEYS[1]].set_index(cells)["aie"]
    itself = table[(table["mediator"] == KEYS[1]) & (table["sources"] == "query itself")]
    of_query = itself.set_index(["metric", "layer"])["effect"]
    last = [cell for cell in found.index if cell[1] == "last"]
    others = [cell for cell in found.index if cell[1] != "last"]
    assert {role for _, role, _ in others} == set(own["role"].astype(str)) - {"last"}
    for cell in others:
        assert found[cell] == pytest.approx(expected[cell], abs=1e-6)
    for metric, _, layer in last:
        assert found[metric, "last", layer] == pytest.approx(of_query[metric, layer], abs=1e-6)
    assert last


def test_no_layers_are_chosen_by_what_was_cut(folder: Path) -> None:
    summary = json.loads((folder / "analysis" / "summary.json").read_text())
    assert summary["layers"]["layers"] == []
    assert summary["answer"].startswith("No layers can be named: whole outputs were not restored.")
    assert summary["heads"] == {}
    clean = [one for one in CleanRecord.read(RunFolders(folder).clean) if one.is_candidate]
    assert summary["n_traced"] == len(clean)
    assert not (folder / "analysis" / "heads.csv").exists()
