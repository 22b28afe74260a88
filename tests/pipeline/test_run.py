"""Runs on a small random model: stages, reuse, interruption, and what is left out.

Without figures and without the engine's proof: `test_end_to_end.py` leaves nothing out.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import ktrace
from ktrace.config.compose import resource
from ktrace.errors import KtraceError
from ktrace.facts import load_facts
from ktrace.pipeline import assignment, session
from ktrace.pipeline import run as pipeline
from ktrace.store import RunFolders, StatesRecord
from ktrace.tracing import clean, encode, reference
from ktrace.tracing.suffix import engine as suffix
from tests.support.configs import Compose
from tests.support.figures import NO_FIGURES
from tests.support.known_facts import write_known_facts
from tests.support.runs import FIVE

pytestmark = pytest.mark.usefixtures("no_figures", "no_proof")


def numbers(folder: Path, key: str) -> dict[int, np.ndarray]:
    return {
        r["index"]: r["probability"] for r in RunFolders(folder).restored(key).read("probability")
    }


def snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.rglob("*.h5")}


def forbid(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"{name} must not run again")

    monkeypatch.setattr(owner, name, fail)


def test_nothing_before_the_subject_whatever_ran_when(config: Compose) -> None:
    """Corrupted runs and restorations that met other company, or another engine, still agree."""
    alone = ("noise.samples=1", "dataset.limit=2", "stage=corrupted")
    pipeline.run(config(*alone, "engine=reference"))
    folder = pipeline.run(config("noise.samples=1", "mediator=all", "stage=restore")).folder
    effects = ktrace.load_effects(folder)
    before = effects[effects["role"].isna()]
    assert before["known_id"].nunique() == 6
    assert (before["restored"] == before["corrupted"]).all()


def test_whole_answers(config: Compose, model_folder: Path, tmp_path: Path) -> None:
    """Greedy decoding filters, teacher forcing scores; both engines say the same."""
    two = write_known_facts(tmp_path / "two.jsonl", [model_folder], n_answer=2)
    first = pipeline.run(config(f"dataset.path={two}", "stage=clean"))
    whole = (f"dataset.path={two}", "dataset.answer=full", "mediator=all", "stage=restore")
    outcome = pipeline.run(config(*whole))
    assert outcome.folder.parent.name == "two-full"
    assert outcome.counts["candidates"] == 6
    by_engine = [
        outcome.folder,
        pipeline.run(config(*whole, "engine=reference", f"output_dir={tmp_path / 'again'}")).folder,
    ]
    for key in FIVE:
        suffix_scores, reference_scores = (numbers(folder, key) for folder in by_engine)
        for index, scores in suffix_scores.items():
            np.testing.assert_allclose(scores, reference_scores[index], atol=1e-6)
    # Two tokens together are less probable than the first.
    p_clean = {
        folder: {r["index"]: r["probability"] for r in RunFolders(folder).clean.read("probability")}
        for folder in (first.folder, outcome.folder)
    }
    for index in numbers(outcome.folder, "hidden"):
        assert p_clean[outcome.folder][index] < p_clean[first.folder][index]


def test_an_answer_that_goes_on_otherwise_is_no_candidate(
    config: Compose, model_folder: Path, tmp_path: Path
) -> None:
    """Its first token is predicted, its second is not."""
    facts = write_known_facts(tmp_path / "two.jsonl", [model_folder], n_answer=2)
    records = [json.loads(line) for line in facts.read_text().splitlines()]
    first_word = records[0]["attribute"].split()[0]
    records[0]["attribute"] = f"{first_word} {first_word} {first_word}"
    facts.write_text("".join(json.dumps(record) + "\n" for record in records))
    path = f"dataset.path={facts}"
    assert pipeline.run(config(path, "stage=filter")).counts["candidates"] == 6
    whole = pipeline.run(config(path, "stage=filter", "dataset.answer=full"))
    assert whole.counts["candidates"] == 5
    # Every fact, with what was predicted in its place, though nothing is traced.
    table = pd.read_csv(whole.candidates)
    assert whole.candidates == whole.folder / "analysis" / "candidates.csv"
    assert table["is_candidate"].sum() == 5
    assert not table["traced"].any()
    assert not table["is_candidate"][0]
    assert (table["left_out"].isna() == table["is_candidate"]).all()
    assert (table["p_answer"] <= table["p_predicted"] + 1e-6).all()


def test_replaced_subjects_are_compared_with_their_own_answers(
    config: Compose,
) -> None:
    """Through the stores: a later command takes each sample's foil from there."""
    replaced = ("model=tiny", "dataset=facts", "dataset.limit=12", "noise=token_replacement")
    # The facts' own path is the preset's; `config` names another.
    facts = f"dataset.path={resource('data/facts.jsonl')}"
    model = f"model.path={resource('data/tiny')}"
    asked = (*replaced, facts, model, "noise.samples=2")
    pipeline.run(config(*asked, "stage=corrupted"))
    outcome = pipeline.run(config(*asked))
    assert outcome.folder.name == "token_replacement-n2-seed1"
    assert outcome.counts["traced"] < outcome.counts["candidates"]  # some have no two partners
    records = {r["index"]: r for r in RunFolders(outcome.folder).corrupted.read("left_out", "foil")}
    known = {fact.attribute for fact in load_facts(resource("data/facts.jsonl")).facts}
    for record in records.values():
        assert len(record["foil"]) == (0 if record["left_out"] else 2)
        for foil in record["foil"]:
            assert any(answer.startswith(foil.strip()) for answer in known), foil
    effects = ktrace.load_effects(outcome.folder, metrics=["logit_difference"])
    last = effects[(effects["layer"] == effects["layer"].max()) & (effects["role"] == "last")]
    by_fact = last.groupby("known_id")["clean"]
    assert (by_fact.nunique() == 2).any()  # a clean score for each sample's foil
    np.testing.assert_array_equal(last["restored"], last["clean"])
    # Effects and totals are of one and the same foil.
    summary = json.loads((outcome.folder / "analysis" / "summary.json").read_text())
    total = (last["clean"] - last["corrupted"]).mean()
    assert summary["metrics"]["logit_difference"]["ate"] == pytest.approx(total, abs=1e-5)


def test_another_mediator_reuses_the_clean_and_corrupted_runs(
    traced: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(Path(traced().output_dir))
    assert before
    forbid(monkeypatch, clean, "clean_run")
    forbid(monkeypatch, suffix.SuffixEngine, "baseline")
    outcome = pipeline.run(traced("mediator=mlp"))
    after = snapshot(Path(traced().output_dir))
    assert before.items() < after.items()
    assert outcome.analysis is not None
    assert set(outcome.analysis.aie["mediator"]) == {"hidden", "mlp-w10"}


def test_figures_show_the_mediators_of_the_config(
    config: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not what earlier runs left in the folder."""
    shown: list[list[str]] = []

    def record(*args: Any, **options: Any) -> list[Path]:
        shown.append(options["shown"])
        return NO_FIGURES

    monkeypatch.setattr("ktrace.analysis.analyze.draw_figures", record)
    pipeline.run(config("mediator=attn"))
    pipeline.run(config("mediator=hidden"))
    pipeline.run(config("stage=analyze", "mediator=attn"))
    assert shown == [["attn-w10"], ["hidden"], ["attn-w10"]]


def test_a_complete_run_needs_no_model(traced: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch, session, "load_language_model")
    forbid(monkeypatch, session.Session, "__init__")
    pipeline.run(traced())
    forbid(monkeypatch, assignment, "find_model")
    pipeline.run(traced("stage=analyze", "model.path=/nowhere", "model.name=random"))


@pytest.mark.parametrize(
    ("stage", "corrupted", "restored"),
    [
        ("filter", False, False),
        ("clean", False, False),
        ("corrupted", True, False),
        ("restore", True, True),
    ],
)
def test_a_run_stops_where_its_stage_says(
    config: Compose, stage: str, corrupted: bool, restored: bool
) -> None:
    outcome = pipeline.run(config(f"stage={stage}"))
    folders = RunFolders(outcome.folder)
    assert folders.clean.parts()
    assert bool(folders.corrupted.parts()) == corrupted
    assert bool(folders.restored("hidden").parts()) == restored
    assert outcome.analysis is None
    # What was predicted is told of every fact, as soon as it is known.
    assert [path.name for path in folders.analysis.iterdir()] == ["candidates.csv"]
    assert outcome.counts["candidates"] == 6


def test_an_interrupted_run_goes_on_to_the_same_bits(
    config: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = config("mediator=all", "stage=restore")
    folder = pipeline.run(asked).folder
    whole = {key: numbers(folder, key) for key in FIVE}
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr("ktrace.store.writer._PART_FACTS", 2)
    original = suffix.SuffixEngine.restored
    calls = []

    def interrupted(self: Any, group: Any, mediators: Any) -> Any:
        calls.append(len(group))
        for number, result in enumerate(original(self, group, mediators)):
            if len(calls) == 3 and number == len(group) // 2:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(suffix.SuffixEngine, "restored", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(asked)
    done = snapshot(tmp_path / "out")
    assert 0 < len(numbers(folder, "hidden")) < 6
    monkeypatch.setattr(suffix.SuffixEngine, "restored", original)
    pipeline.run(asked)
    assert done.items() < snapshot(tmp_path / "out").items()
    for key in FIVE:
        resumed = numbers(folder, key)
        assert resumed.keys() == whole[key].keys()
        assert all((resumed[index] == whole[key][index]).all() for index in resumed)


def test_a_limit_changes_no_number_beyond_rounding(config: Compose, stores: Path) -> None:
    some = pipeline.run(config("dataset.limit=3"))
    few = numbers(some.folder, "hidden")
    assert some.analysis is not None
    assert some.analysis.summary["n_facts"] == 3
    all_numbers = numbers(stores / some.folder.relative_to(config().output_dir), "hidden")
    assert few.keys() < all_numbers.keys()
    for index, values in few.items():
        np.testing.assert_allclose(values, all_numbers[index], atol=1e-6)
    # Raising the limit adds facts and computes none again.
    before = snapshot(some.folder.parent)
    again = pipeline.run(config("stage=restore"))
    assert before.items() < snapshot(again.folder.parent).items()
    assert numbers(again.folder, "hidden").keys() == all_numbers.keys()


def test_effects_of_one_shard_are_not_taken_for_the_run(config: Compose, in_folder: Path) -> None:
    folder = pipeline.run(config("shard=1/2", "stage=restore")).folder
    with pytest.raises(KtraceError, match=r"clean holds \d of 7 facts"):
        ktrace.load_effects(folder)
    assert 0 < ktrace.load_effects(folder, partial=True)["known_id"].nunique() < 6
    pipeline.run(config("shard=2/2", "stage=restore"))
    assert ktrace.load_effects(folder)["known_id"].nunique() == 6
    folder = pipeline.run(config("dataset.limit=3", "stage=restore", "output_dir=some")).folder
    assert ktrace.load_effects(folder)["known_id"].nunique() == 3


@pytest.mark.parametrize("other", ["engine.row_budget=8", "engine=reference"])
def test_shards_whose_engines_group_otherwise_still_split_alike(
    config: Compose, facts_file: Path, tmp_path: Path, other: str
) -> None:
    """As shards on a GPU and on a CPU would: every fact is in one of them."""
    known = [json.loads(line) for line in facts_file.read_text().splitlines()]
    copies = [
        fact | {"known_id": 7 * turn + number}
        for turn in range(12)
        for number, fact in enumerate(known)
    ]
    many = tmp_path / "many.json"
    many.write_text(json.dumps(copies))
    common = (f"dataset.path={many}", "stage=filter")
    first = pipeline.run(config(*common, "shard=1/2"))
    second = pipeline.run(config(*common, "shard=2/2", other))
    assert min(first.counts["facts"], second.counts["facts"]) > 20
    assert first.counts["facts"] + second.counts["facts"] == len(copies)
    stored = sorted(record["index"] for record in RunFolders(first.folder).clean.read())
    assert stored == list(range(len(copies)))


def test_both_engines_fill_one_store(config: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pipeline.run(config("engine=reference", "stage=restore")).folder
    plain = numbers(folder, "hidden")
    shutil.rmtree(folder / "restored")
    forbid(monkeypatch, reference.ReferenceEngine, "restored")
    pipeline.run(config("engine=suffix", "stage=restore"))
    fast = numbers(folder, "hidden")
    assert fast.keys() == plain.keys()
    assert max(np.abs(fast[i] - plain[i]).max() for i in plain) <= 1e-6


def test_the_table_of_effects_is_the_frame(traced: Compose) -> None:
    outcome = pipeline.run(traced("stage=analyze"))
    effects = pd.read_parquet(outcome.folder / "analysis" / "effects.parquet")
    assert effects.pop("head").isna().all()
    assert effects.equals(ktrace.load_effects(outcome.folder))


def test_dtype_auto_is_bound_as_what_it_stands_for(config: Compose) -> None:
    folder = pipeline.run(config("stage=filter")).folder
    assert config().model.dtype.value == "auto"
    fingerprint = RunFolders(folder).clean.fingerprint() or {}
    assert fingerprint["model"]["dtype"] == "float32"
    pipeline.run(config("stage=filter", "model.dtype=float32"))  # the same numbers
    with pytest.raises(KtraceError, match="holds results of other settings"):
        pipeline.run(config("stage=filter", "model.dtype=float64"))


def test_dtype_auto_of_a_checkpoint_that_does_not_say(
    config: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    for own, said in ((None, "does not say which"), ("float8_e4m3fn", "says 'float8_e4m3fn'")):
        monkeypatch.setattr(assignment, "own_dtype", lambda source, own=own: own)
        with pytest.raises(KtraceError, match=rf"model\.dtype=auto .* {said}: choose from float32"):
            pipeline.run(config())


def changed_model(folder: Path, model_folder: Path, **changes: Any) -> Path:
    shutil.copytree(model_folder, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_a_prompt_longer_than_the_model_reads_is_left_out(
    config: Compose, model_folder: Path, tmp_path: Path
) -> None:
    """A table of positions would be indexed beyond its end, in the middle of a long run."""
    lengths = {}
    whole = pipeline.run(config("stage=clean"))
    for record in RunFolders(whole.folder).clean.read("input_ids", "is_candidate"):
        lengths[record["index"]] = len(record["input_ids"])
    limit = sorted(lengths.values())[-2]
    short = changed_model(tmp_path / "short", model_folder, max_position_embeddings=limit)
    outcome = pipeline.run(config(f"model.path={short}"))
    too_long = {index for index, length in lengths.items() if length > limit}
    assert 1 <= len(too_long) < len(lengths)
    reason = f"the prompt is longer than the model's {limit} positions"
    assert outcome.analysis is not None
    assert outcome.analysis.summary["left_out"][reason] == len(too_long)
    names = ("left_out", "predicted_ids", "predicted", "probability")
    for record in RunFolders(outcome.folder).clean.read(*names):
        assert (record["left_out"] == reason) == (record["index"] in too_long)
        if record["index"] in too_long:
            assert (record["predicted_ids"].size, record["predicted"]) == (0, "")
            assert np.isnan(record["probability"])
    for states in StatesRecord.read(RunFolders(outcome.folder).activations("clean"), "hidden"):
        assert (states.states["hidden"].size == 0) == (states.index in too_long)


def test_a_tokenizer_of_another_model_is_refused(
    config: Compose, model_folder: Path, tmp_path: Path
) -> None:
    """Better one line than an index error of torch."""
    from safetensors.torch import load_file, save_file

    fewer = changed_model(tmp_path / "fewer", model_folder, vocab_size=300)
    weights = load_file(fewer / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:300].clone()
    save_file(weights, fewer / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        KtraceError, match=r"has \d+ tokens, and LlamaForCausalLM embeddings for 300"
    ):
        pipeline.run(config(f"model.path={fewer}"))


def test_noise_beyond_the_dtype_is_an_error_not_a_result(
    config: Compose,
) -> None:
    with pytest.raises(KtraceError, match=r"^known_id=101: the corrupted run gives no numbers"):
        pipeline.run(config("noise.std=1e300"))


def test_a_subject_without_tokens_names_its_fact(
    config: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*args: Any) -> Any:
        raise ValueError("no token covers the characters")

    monkeypatch.setattr(encode, "token_span", nothing)
    with pytest.raises(KtraceError, match=r"^known_id=100: .* keeps nothing of the subject"):
        pipeline.run(config())


def test_a_smaller_analysis_says_that_it_replaces_a_larger_one(
    traced: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline.run(traced("stage=analyze"))
    pipeline.run(traced("stage=analyze"))
    assert "replaces" not in caplog.text
    pipeline.run(traced("stage=analyze", "dataset.limit=3"))
    assert "this analysis of 3 facts replaces one of 7" in caplog.messages
