"""`ktrace.trace_many`: the numbers of a stored run, in one frame and without a store."""

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import ktrace
from ktrace.config.compose import composed
from ktrace.lm.model import LanguageModel
from ktrace.pipeline.run import run
from ktrace.tracing.suffix.engine import SuffixEngine

CELL = ["mediator", "metric", "known_id", "sample", "layer", "head", "position"]
# What no fact of the random model has as its answer.
WRONG = "another answer is predicted"


@pytest.fixture(scope="module")
def model(model_folder: Path) -> LanguageModel:
    return ktrace.load_model(model_folder)


@pytest.fixture(scope="module")
def records(facts_file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in facts_file.open()]


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows by what they are of, and texts as such: categories may be listed in any order."""
    texts = frame.select_dtypes("category").columns
    by = [name for name in CELL if name in frame]
    plain = frame.astype(dict.fromkeys(texts, object))
    return plain.sort_values(by, ignore_index=True)


@pytest.mark.parametrize(
    ("mediator", "options", "overrides"),
    [
        (["mlp", "hidden_mlp_severed"], {"window": [1, 2]}, ["mediator.window=[1,2]"]),
        ("head", {"direction": "noise"}, ["mediator.direction=noise"]),
        ("knockout", {"noise": "uniform", "std": 0.5}, ["noise=uniform", "noise.std=0.5"]),
    ],
    ids=["several", "head", "knockout"],
)
def test_the_numbers_are_those_that_a_run_stores(
    mediator: Any,
    options: dict[str, Any],
    overrides: list[str],
    own: tuple[str, ...],
    facts_file: Path,
    model: LanguageModel,
    in_folder: Path,
) -> None:
    names = [mediator] if isinstance(mediator, str) else mediator
    run_of = [*own, f"mediator={names[0]}", f"mediator.names=[{','.join(names)}]", *overrides]
    folder = run(composed([*run_of, "noise.samples=2", "stage=restore"])).folder
    stored = ktrace.load_effects(folder)
    frame = ktrace.trace_many(model, facts_file, mediator, samples=2, **options)
    assert list(frame.columns) == list(stored.columns)
    assert frame.dtypes.drop(stored.select_dtypes("category").columns).equals(
        stored.dtypes.drop(stored.select_dtypes("category").columns)
    )
    pd.testing.assert_frame_equal(in_order(frame), in_order(stored), check_exact=True)
    averaged = ktrace.average(frame)
    pd.testing.assert_frame_equal(averaged, ktrace.average(folder))
    assert (averaged["n_facts"] > 1).any()


def test_facts_in_memory_are_those_of_a_file(
    model: LanguageModel, facts_file: Path, records: list[dict[str, Any]], no_proof: None
) -> None:
    expected = ktrace.trace_many(model, str(facts_file), samples=2)
    table = pd.DataFrame(records).assign(relation_id=None, subject_start=float("nan"))
    for facts in (records, table, iter(records), table.to_dict("records")):
        frame = ktrace.trace_many(model, facts, samples=2)
        pd.testing.assert_frame_equal(frame, expected, check_exact=True)
        assert frame.attrs == expected.attrs
    assert sorted(expected["known_id"].unique()) == [100, 101, 102, 103, 104, 105]
    # Without numbers of their own, by their place.
    numbered = ktrace.trace_many(model, table.drop(columns="known_id"), samples=2)
    assert sorted(numbered["known_id"].unique()) == [0, 1, 2, 3, 4, 5]
    assert numbered["restored"].equals(expected["restored"])
    empty = ktrace.trace_many(model, table.assign(known_id=float("nan")), samples=2)
    pd.testing.assert_frame_equal(empty, numbered)


def test_what_is_left_out_is_counted_and_told(
    model: LanguageModel,
    records: list[dict[str, Any]],
    no_proof: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        frame = ktrace.trace_many(model, records, noise="mean")
    assert frame.attrs["left_out"] == {WRONG: [106]}
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"facts: 6 of 7 facts are traced; left out: 1 × {WRONG} (first known_id=106)"]
    # The noise can leave facts out, too.
    related = [{**fact, "relation_id": f"P{fact['known_id'] == 100}"} for fact in records]
    replaced = ktrace.trace_many(model, related, noise="token_replacement", samples=1)
    [(reason, lone)] = [pair for pair in replaced.attrs["left_out"].items() if pair[0] != WRONG]
    assert "of its relation and length" in reason
    assert 100 in lone
    assert not set(lone) & set(replaced["known_id"])
    assert len(lone) + replaced["known_id"].nunique() == 6


def test_facts_of_one_shape_share_batches(
    model: LanguageModel,
    records: list[dict[str, Any]],
    no_proof: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []
    restored = SuffixEngine.restored

    def watched(self: SuffixEngine, group: Any, mediators: Any) -> Any:
        sizes.append(len(group))
        return restored(self, group, mediators)

    monkeypatch.setattr(SuffixEngine, "restored", watched)
    again = [{**fact, "known_id": fact["known_id"] + 10} for fact in records]
    ktrace.trace_many(model, [*records, *again], noise="mean")
    assert max(sizes) > 1
    assert sum(sizes) == 12


def test_one_noise_for_all_is_not_that_of_each(
    model: LanguageModel, records: list[dict[str, Any]], no_proof: None
) -> None:
    """Sigma is measured on these facts' subjects, not on the embedded ones' as for one prompt."""
    together = ktrace.trace_many(model, records[:2], samples=2)
    alone = ktrace.trace(model, records[0]["prompt"], records[0]["subject"], samples=2).to_frame()
    first = together[together["known_id"] == 100]
    assert not (first["corrupted"].to_numpy() == alone["corrupted"].to_numpy()).all()
    absolute = ktrace.trace_many(model, records[:1], samples=2, std=0.5)
    one = ktrace.trace(model, records[0]["prompt"], records[0]["subject"], samples=2, std=0.5)
    for name in ("clean", "corrupted", "restored"):
        assert absolute[name].equals(one.to_frame()[name])


FACT = {"prompt": "The river Lissom ends its way in", "subject": "Lissom", "attribute": "of"}


@pytest.mark.parametrize(
    ("facts", "options", "message"),
    [
        ([], {}, "facts is empty: give at least one fact"),
        (pd.DataFrame(columns=list(FACT)), {}, "facts is empty: give at least one fact"),
        (FACT, {}, "facts=dict is no file, no DataFrame and no list of facts: a fact has known_id"),
        (
            7,
            {},
            "facts=int is no file, no DataFrame and no list of facts: a fact has known_id, pro",
        ),
        ([("a", "b")], {}, "facts[0]=('a', 'b') is no fact, which is a mapping by field"),
        (
            [{"prompt": "x", "subject": "x", "answer": "y"}],
            {},
            "facts: none has an attribute, the ",
        ),
        ([FACT, {**FACT, "subject": "Big Ben"}], {}, "facts[1]: subject 'Big Ben' is not in the p"),
        ([{"known_id": 1, **FACT}] * 2, {}, "facts[1]: known_id=1 is already at facts[0]"),
        ([FACT], {}, f"facts: none of its 1 facts can be traced: 1 × {WRONG} (first known_id=0)"),
        ("none.csv", {}, "dataset.path=none.csv is not a file"),
        (
            [FACT],
            {"noise": "pair"},
            "facts: no fact has a corrupted_prompt, which noise.kind=pair ",
        ),
        ([FACT], {"mediator": []}, "mediator.names is empty: name at least one mediator"),
        ([FACT], {"mediator": ["mpl"]}, "mediator.names: 'mpl' is unknown: choose from hidden, hi"),
        ([FACT], {"mediator": "al"}, "mediator='al' is unknown (did you mean all?): choose from a"),
        ([FACT], {"mediatr": "mlp"}, "trace_many has no argument 'mediatr' (did you mean mediator"),
        ([FACT], {"limit": 1}, "trace_many has no argument 'limit': choose from model, facts, me"),
    ],
)
def test_what_is_refused(
    model: LanguageModel, facts: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ktrace.KtraceError) as raised:
        ktrace.trace_many(model, facts, **options)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
