"""The tables beside the averages: every fact with its prediction, and relations on their own."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ktrace.analysis import csv_files
from ktrace.analysis.analyze import analyze
from ktrace.analysis.averaged_run import average_run
from ktrace.analysis.candidates import write_candidates
from ktrace.analysis.csv_files import write_tables
from ktrace.analysis.effects import load_effects
from ktrace.analysis.rows import Averaging
from ktrace.errors import KtraceError
from ktrace.store import RunFolders
from tests.support.stores import (
    CANDIDATES,
    FACTS,
    NOISE,
    known_id,
    p_clean,
    subject,
    write_clean,
    write_corrupted,
    write_restored,
    write_run,
)

RELATIONS = {0: "tower", 1: "tower", 3: "river", 4: "river"}


def test_every_fact_with_what_was_predicted(tmp_path: Path) -> None:
    folders = RunFolders(tmp_path / "toy" / "made-up" / NOISE)
    write_clean(folders, (3, 0, 5, 2, 1, 4), relations=RELATIONS)
    # Before anything is corrupted, as after stage=filter.
    table = pd.read_csv(write_candidates(folders))
    assert table["known_id"].tolist() == [known_id(index) for index in range(6)]
    assert table["relation_id"].fillna("").tolist() == [RELATIONS.get(i, "") for i in range(6)]
    assert table["prompt"].tolist() == ["".join(fact.tokens) for fact in FACTS]
    assert table["subject"].tolist() == [subject(index) for index in range(6)]
    assert table["is_candidate"].tolist() == [index != 2 for index in range(6)]
    assert not table["traced"].any()
    assert table["predicted"].tolist() == ["!"] * 6
    assert table["p_predicted"].tolist() == [0.5] * 6
    assert table["p_answer"].fillna(-1).tolist() == [p_clean(i) if i != 2 else -1 for i in range(6)]
    left_out = table["left_out"].fillna("").tolist()
    assert left_out == ["", "", "another answer is predicted", "", "", ""]
    write_corrupted(folders, CANDIDATES)
    assert pd.read_csv(write_candidates(folders))["traced"].tolist() == [i != 2 for i in range(6)]
    assert len(pd.read_csv(write_candidates(folders, limit=3))) == 3


def test_text_that_a_spreadsheet_would_run_is_text(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "prompt": ["=1+1", "+a", "-b", "@c", "\td", "\x1be", "plain", "a=b", ""],
            "x": np.arange(9) - 4.0,
        }
    )
    table["kind"] = pd.Categorical(["mlp"] * 9)
    [path] = write_tables(tmp_path, {"t": table})
    found = pd.read_csv(path, keep_default_na=False)
    expected = ["'=1+1", "'+a", "'-b", "'@c", "'\td", "'\x1be", "plain", "a=b", ""]
    assert found["prompt"].tolist() == expected
    assert found["x"].tolist() == table["x"].tolist(), "numbers are numbers"
    assert table["prompt"][0] == "=1+1"
    # Nothing to escape: as pandas has it.
    buffer = io.StringIO()
    table.iloc[6:].to_csv(buffer, index=False)
    [path] = write_tables(tmp_path, {"u": table.iloc[6:]})
    assert path.read_text() == buffer.getvalue()


def test_the_report_escapes_what_the_tables_do() -> None:
    """Whatever is saved in a browser goes through this one expression there."""
    script = (Path(csv_files.__file__).parent / "report" / "save.js").read_text("utf-8")
    assert f"/^{csv_files._RUNS.pattern}/.test(text)" in script


@pytest.mark.usefixtures("no_figures")
def test_relations_on_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ktrace.analysis.intervals.FEWEST_FACTS", 2)
    folders = RunFolders(tmp_path / "toy" / "made-up" / NOISE)
    write_clean(folders, relations=RELATIONS)
    write_corrupted(folders, CANDIDATES)
    for key in ("hidden", "mlp-w3"):
        write_restored(folders, key, CANDIDATES)
    analyze(folders.run, metric="logit")
    table = pd.read_csv(folders.analysis / "aie_by_relation.csv")
    assert list(table.columns) == [
        *("relation_id", "mediator", "metric", "role", "layer", "aie", "ci_low", "ci_high"),
        *("n_facts", "n_clusters"),
    ]
    assert set(table["metric"]) == {"logit"}
    frame = load_effects(folders.run, metrics=["logit"])
    frame["ie"] = frame["restored"].astype(float) - frame["corrupted"].astype(float)
    cell = ["relation_id", "mediator", "role", "layer"]
    by_fact = frame.groupby([*cell, "known_id", "position"], observed=True)["ie"].mean()
    by_fact = by_fact.groupby([*cell, "known_id"], observed=True).mean()
    expected = by_fact.groupby(cell, observed=True).agg(["mean", "count"]).sort_index()
    found = table.set_index(cell).sort_index()
    assert set(found.index) == set(expected.index)
    expected = expected.reindex(found.index)
    np.testing.assert_allclose(found["aie"], expected["mean"], atol=1e-9)
    assert found["n_facts"].tolist() == expected["count"].tolist()
    assert set(found["n_clusters"]) == {1}
    assert (found["ci_low"].notna() == (found["n_facts"] == 2)).all()
    # Relations are the units of the whole, and say so.
    run = average_run(folders.run, Averaging())
    assert run.clusters.codes.tolist() == [0, 0, 1, 1, 2]
    assert set(frame["relation_id"].dropna()) == {"tower", "river"}


@pytest.mark.usefixtures("no_figures")
def test_facts_without_relations_make_an_empty_table(tmp_path: Path) -> None:
    folders = write_run(tmp_path)
    analyze(folders.run)
    table = pd.read_csv(folders.analysis / "aie_by_relation.csv")
    assert table.empty
    assert "relation_id" in table.columns


@pytest.mark.usefixtures("no_figures")
def test_a_limit_that_the_run_had_is_kept(tmp_path: Path) -> None:
    """Its parts say what the run was asked for; no command has to say it again."""
    folders = RunFolders(tmp_path / "toy" / "made-up" / NOISE)
    asked = {"config": {"dataset": {"limit": 4}}}
    write_clean(folders, [0, 1], provenance=asked)
    write_corrupted(folders, [0, 1])
    write_restored(folders, "hidden", [0, 1])
    with pytest.raises(KtraceError, match="holds 2 of 4 facts"):
        analyze(folders.run)
    write_clean(folders, [2, 3], provenance=asked)
    write_corrupted(folders, [3])
    write_restored(folders, "hidden", [3])
    analysis = analyze(folders.run)
    assert analysis.notes == ["the first 4 of 6 facts, as dataset.limit of the run says"]
    assert (analysis.summary["n_facts"], analysis.summary["limit"]) == (4, 4)
    assert analyze(folders.run, limit=2).notes == []
    write_clean(folders, [3], provenance={"config": {"dataset": {"limit": None}}})
    with pytest.raises(KtraceError, match="holds 4 of 6 facts"):
        analyze(folders.run)
