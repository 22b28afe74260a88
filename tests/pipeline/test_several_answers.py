"""Facts with several right answers, from the file to the tables."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import ktrace
from ktrace.pipeline.run import run
from ktrace.store import CleanRecord, RunFolders
from tests.support.configs import Compose


@pytest.fixture
def several(facts_file: Path, tmp_path: Path) -> Path:
    """Each fact's answer behind a wrong one: of the fact before, or that and a word more."""
    records = [json.loads(line) for line in facts_file.read_text("utf-8").splitlines()]
    answers = [record["attribute"] for record in records]
    path = tmp_path / "several.jsonl"
    lines = [
        json.dumps(record | {"attribute": [answers[n - 1], f"{answers[n - 2]} of", answers[n]]})
        for n, record in enumerate(records)
    ]
    path.write_text("\n".join(lines), "utf-8")
    return path


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("answer", ["first_token", "full"])
def test_answers_are_stored_and_told_and_traced_alike(
    config: Compose, several: Path, model_folder: Path, answer: str
) -> None:
    overrides = (f"dataset.path={several}", f"dataset.answer={answer}", "mediator=hidden")
    outcome = run(config(*overrides, "noise.samples=2"))
    table = pd.read_csv(outcome.folder / "analysis" / "facts.csv")
    records = [json.loads(line) for line in several.read_text("utf-8").splitlines()]
    texts = {record["known_id"]: " | ".join(record["attribute"]) for record in records}
    assert len(table) > 3
    assert [texts[known_id] for known_id in table["known_id"]] == table["attribute"].tolist()
    stored = {
        record.known_id: record for record in CleanRecord.read(RunFolders(outcome.folder).clean)
    }
    effects = ktrace.load_effects(outcome.folder)
    model = ktrace.load_model(str(model_folder))
    for record in records[:3]:
        known_id = record["known_id"]
        own = effects[effects["known_id"] == known_id]
        if not stored[known_id].is_candidate:
            continue
        trace = ktrace.trace(
            model,
            record["prompt"],
            record["subject"],
            answer=record["attribute"],
            whole_answer=answer == "full",
            samples=2,
            noise_facts=str(several),
        )
        frame = trace.to_frame()
        for score in ("clean", "corrupted", "restored"):
            np.testing.assert_allclose(frame[score], own[score], rtol=1e-3, atol=1e-4)
        assert trace.p_clean == pytest.approx(stored[known_id].probability, rel=1e-4)
        assert trace.answer_ids == tuple(stored[known_id].answer_ids.tolist())
        assert len(trace.also) == len(stored[known_id].also_lengths)
        alone = ktrace.trace(
            model, record["prompt"], record["subject"], samples=2, noise_facts=str(several)
        )
        assert trace.p_clean > alone.p_clean or answer == "full"


def test_a_list_of_no_answer_is_refused(model_folder: Path, several: Path) -> None:
    model = ktrace.load_model(str(model_folder))
    record = json.loads(several.read_text("utf-8").splitlines()[0])
    given: list[Any] = [
        "",
        " ",
        "\u200b",
        [],
        [""],
        ["", "a"],
        ["a", ""],
        [" "],
        [None],
        [3],
        3,
        (),
    ]
    for answer in given:
        with pytest.raises(ktrace.KtraceError, match=r"^answer=.* holds no text, or an empty one"):
            ktrace.trace(model, record["prompt"], record["subject"], answer=answer)
