"""The whole road on a small random model: stages, reuse, interruption, sweeps."""

import json
import os
import re
import shutil
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest

import ktrace
import ktrace.__main__ as main_module
from ktrace.__main__ import main
from ktrace.config import RunConfig
from ktrace.config.compose import resource
from ktrace.errors import KtraceError
from ktrace.facts import load_facts
from ktrace.pipeline import assignment, session, sweep
from ktrace.pipeline import run as pipeline
from ktrace.store import RunFolders
from ktrace.tracing import clean, encode, reference
from ktrace.tracing.suffix import engine as suffix
from tests.support.configs import Compose
from tests.support.known_facts import save_random_model, write_known_facts
from tests.support.signals import signalled_where_it_is_dropped

FIVE = ("hidden", "hidden_attn_severed", "hidden_mlp_severed", "mlp-w10", "attn-w10")


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


def test_all_mediators_end_to_end(config: Compose) -> None:
    outcome = pipeline.run(config("mediator=all"))
    assert outcome.mediator_keys == FIVE
    assert outcome.counts == {"facts": 7, "candidates": 6, "traced": 6}
    effects = ktrace.load_effects(outcome.folder)
    assert set(effects["mediator"]) == set(FIVE)
    assert effects["known_id"].nunique() == 6
    assert set(effects["sample"]) == {0, 1, 2}
    hidden = effects[effects["mediator"] == "hidden"]
    last = hidden[hidden["layer"] == hidden["layer"].max()]
    last = last[(last["role"] == "last") & (last["metric"] == "probability")]
    np.testing.assert_allclose(last["restored"], last["clean"], atol=1e-6)
    before = effects[effects["role"].isna()]
    assert len(before) > 0
    assert (before["restored"] == before["corrupted"]).all()
    assert outcome.analysis is not None
    assert outcome.analysis.summary["left_out"] == {"another answer is predicted": 1}


def test_nothing_before_the_subject_whatever_ran_when(config: Compose) -> None:
    """Corrupted runs and restorations that met other company, or another engine, still agree."""
    alone = ("noise.samples=1", "dataset.limit=2", "stage=corrupted")
    pipeline.run(config(*alone, "engine=reference"))
    folder = pipeline.run(config("noise.samples=1", "mediator=all")).folder
    effects = ktrace.load_effects(folder)
    before = effects[effects["role"].isna()]
    assert before["known_id"].nunique() == 6
    assert (before["restored"] == before["corrupted"]).all()


def test_whole_answers(config: Compose, model_folder: Path, tmp_path: Path) -> None:
    """Greedy decoding filters, teacher forcing scores; both engines say the same."""
    two = write_known_facts(tmp_path / "two.jsonl", [model_folder], n_answer=2)
    first = pipeline.run(config(f"dataset.path={two}"))
    whole = (f"dataset.path={two}", "dataset.answer=full", "mediator=all")
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
    config: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = pipeline.run(config("mediator=hidden"))
    before = snapshot(outcome.folder.parent)
    forbid(monkeypatch, clean, "clean_run")
    forbid(monkeypatch, suffix.SuffixEngine, "baseline")
    monkeypatch.setattr("ktrace.tracing.engines.disproof", lambda *args: None)  # it runs its own
    outcome = pipeline.run(config("mediator=mlp"))
    after = snapshot(outcome.folder.parent)
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
        return []

    monkeypatch.setattr("ktrace.analysis.analyze.draw_figures", record)
    pipeline.run(config("mediator=attn"))
    pipeline.run(config("mediator=hidden"))
    pipeline.run(config("stage=analyze", "mediator=attn"))
    assert shown == [["attn-w10"], ["hidden"], ["attn-w10"]]


def test_a_complete_run_needs_no_model(config: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.run(config())
    forbid(monkeypatch, session, "load_language_model")
    forbid(monkeypatch, session.Session, "__init__")
    pipeline.run(config())
    forbid(monkeypatch, assignment, "find_model")
    pipeline.run(config("stage=analyze", "model.path=/nowhere", "model.name=random"))


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
    assert not folders.analysis.exists()
    assert outcome.counts["candidates"] == 6


def test_an_interrupted_run_goes_on_to_the_same_bits(
    config: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = pipeline.run(config("mediator=all")).folder
    whole = {key: numbers(folder, key) for key in FIVE}
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr("ktrace.store.store._PART_FACTS", 2)
    original = suffix.SuffixEngine.restored
    calls = []

    def interrupted(self: Any, group: Any, mediators: Any) -> Any:
        calls.append(len(group))
        for number, result in enumerate(original(self, group, mediators)):
            if len(calls) == 3 and number == len(group) // 2:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(suffix.SuffixEngine, "restored", interrupted)
    monkeypatch.setattr("ktrace.tracing.engines.disproof", lambda *args: None)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(config("mediator=all"))
    done = snapshot(tmp_path / "out")
    assert 0 < len(numbers(folder, "hidden")) < 6
    monkeypatch.setattr(suffix.SuffixEngine, "restored", original)
    pipeline.run(config("mediator=all"))
    assert done.items() < snapshot(tmp_path / "out").items()
    for key in FIVE:
        resumed = numbers(folder, key)
        assert resumed.keys() == whole[key].keys()
        assert all((resumed[index] == whole[key][index]).all() for index in resumed)


def test_a_limit_changes_no_number_beyond_rounding(config: Compose) -> None:
    some = pipeline.run(config("dataset.limit=3"))
    few = numbers(some.folder, "hidden")
    assert some.analysis is not None
    assert some.analysis.summary["n_facts"] == 3
    everything = pipeline.run(config(f"output_dir={some.folder.parents[2] / 'other'}"))
    all_numbers = numbers(everything.folder, "hidden")
    assert few.keys() < all_numbers.keys()
    for index, values in few.items():
        np.testing.assert_allclose(values, all_numbers[index], atol=1e-6)
    # Raising the limit adds facts and computes none again.
    before = snapshot(some.folder.parent)
    again = pipeline.run(config())
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
    folder = pipeline.run(config("engine=reference")).folder
    plain = numbers(folder, "hidden")
    shutil.rmtree(folder / "restored")
    forbid(monkeypatch, reference.ReferenceEngine, "restored")
    pipeline.run(config("engine=suffix"))
    fast = numbers(folder, "hidden")
    assert fast.keys() == plain.keys()
    assert max(np.abs(fast[i] - plain[i]).max() for i in plain) <= 1e-6


def test_the_table_of_effects_is_the_frame(config: Compose) -> None:
    outcome = pipeline.run(config())
    effects = pd.read_parquet(outcome.folder / "analysis" / "effects.parquet")
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
    whole = pipeline.run(config())
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
    names = ("left_out", "predicted_ids", "predicted", "probability", "hidden")
    for record in RunFolders(outcome.folder).clean.read(*names):
        assert (record["left_out"] == reason) == (record["index"] in too_long)
        if record["index"] in too_long:
            assert (record["predicted_ids"].size, record["predicted"]) == (0, "")
            assert np.isnan(record["probability"])
            assert record["hidden"].size == 0


def test_a_token_that_the_model_has_not_names_its_fact(
    config: Compose, model_folder: Path, tmp_path: Path
) -> None:
    """A tokenizer of another model: better one line than an index error of torch."""
    from safetensors.torch import load_file, save_file

    fewer = changed_model(tmp_path / "fewer", model_folder, vocab_size=300)
    weights = load_file(fewer / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:300].clone()
    save_file(weights, fewer / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        KtraceError, match=r"^known_id=100: token \d+ \('.+'\) is beyond the model's"
    ):
        pipeline.run(config(f"model.path={fewer}"))


def test_noise_beyond_the_dtype_is_an_error_not_a_result(
    config: Compose,
) -> None:
    with pytest.raises(KtraceError, match=r"^known_id=100: the corrupted run gives no numbers"):
        pipeline.run(config("noise.std=1e300"))


def test_a_subject_without_tokens_names_its_fact(
    config: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*args: Any) -> Any:
        raise ValueError("no token covers the characters")

    monkeypatch.setattr(encode, "token_span", nothing)
    with pytest.raises(KtraceError, match=r"^known_id=100: .* keeps nothing of the subject"):
        pipeline.run(config())


def cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ktrace", *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0) if not isinstance(stop.code, str) else 1
    return 0


def test_a_sweep_over_models_and_mediators_ends_with_one_table(
    model_folder: Path,
    in_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = save_random_model(in_folder / "other", seed=5)
    facts = write_known_facts(in_folder / "both.jsonl", [model_folder, other])
    code = cli(
        monkeypatch,
        "--multirun",
        "model=auto",
        f"model.path={model_folder},{other}",
        "mediator=hidden,mlp,attn",
        "dataset=file",
        f"dataset.path={facts}",
        "noise.samples=2",
    )
    assert code == 0
    printed = capsys.readouterr().out
    assert printed.count("Sweep") == 1
    jobs = [json.loads(path.read_text()) for path in Path("outputs/sweeps").glob("*/*/job.json")]
    assert len(jobs) == 6
    assert {job["status"] for job in jobs} == {"done"}
    assert {tuple(job["mediators"]) for job in jobs} == {("hidden",), ("mlp-w10",), ("attn-w10",)}
    for name in ("random", "other", "hidden", "mlp-w10", "attn-w10", "gaussian-x3-n2-seed1"):
        assert name in printed
    # What tells the jobs apart, and not what they share.
    assert f"model.path={other} mediator=mlp" in printed
    assert "noise.samples=2" not in printed
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["other", "random", "sweeps"]


def test_a_failing_job_does_not_stop_the_sweep(
    model_folder: Path,
    facts_file: Path,
    in_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = cli(
        monkeypatch,
        "--multirun",
        "model=auto",
        f"model.path={model_folder}",
        "dataset=file",
        f"dataset.path={facts_file}",
        "dataset.limit=0,2",
        "noise.samples=2",
    )
    assert code == 1
    jobs = {
        path.parent.name: json.loads(path.read_text())
        for path in Path("outputs/sweeps").glob("*/*/job.json")
    }
    assert [jobs[number]["status"] for number in ("0", "1")] == ["failed", "done"]
    assert "dataset.limit=0" in jobs["0"]["message"]
    assert jobs["0"]["traceback"].startswith("Traceback")
    *_, last, wrote = capsys.readouterr().out.splitlines()
    assert last == "job 0 (dataset.limit=0) failed: dataset.limit=0 is out of range: at least 1"
    assert wrote.startswith("wrote outputs/sweeps/")


def test_a_job_that_was_killed_is_failed(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As under a launcher with a process for each job, one of which is out of memory."""

    class Killed(BaseException):
        pass

    def die(config: RunConfig) -> None:
        raise Killed

    monkeypatch.setattr(pipeline, "run", die)
    with pytest.raises(Killed):
        cli(monkeypatch, "-m", "noise.seed=1,2", "hydra.sweep.dir=jobs")
    command = sweep.Command(sweep=Path("jobs"))
    command.report()
    assert command.failed == ["0"]
    printed = capsys.readouterr().out
    assert "job 0 (" in printed
    assert "failed: it started and left no result" in printed


@pytest.mark.parametrize(("is_dropped", "n_kept"), [(False, 1), (True, 2)])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_job_in_a_launchers_process_keeps_its_facts_on_sigterm(
    model_folder: Path,
    facts_file: Path,
    in_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_dropped: bool,
    n_kept: int,
) -> None:
    """As `scancel` ends it; there `main` has run in another process."""

    def elsewhere(config: Any) -> None:
        with mock.patch.object(sweep, "current_command", sweep.Command):
            sweep.run_job(config)

    monkeypatch.setattr(main_module, "run_job", elsewhere)
    monkeypatch.setattr(main_module, "ended_by_signals", nullcontext)
    original = suffix.SuffixEngine.baseline
    calls = []

    def baseline(self: Any, group: Any) -> Any:
        calls.append(group)
        if len(calls) == 2:
            if is_dropped:
                signalled_where_it_is_dropped(signal.SIGTERM)
            else:
                os.kill(os.getpid(), signal.SIGTERM)
        return original(self, group)

    monkeypatch.setattr(suffix.SuffixEngine, "baseline", baseline)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as submitit does
    try:
        code = cli(
            monkeypatch,
            *("-m", "model=auto", f"model.path={model_folder}", "dataset=file"),
            *(f"dataset.path={facts_file}", "noise.samples=2,3", "stage=corrupted"),
            *("engine.row_budget=3", "hydra.sweep.dir=jobs"),
        )
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 1
    told, other = (json.loads(Path(f"jobs/{number}/job.json").read_text()) for number in "01")
    assert (told["status"], other["status"]) == ("failed", "done")
    assert told["message"] == "terminated; the same command goes on where this job stopped"
    folder = Path("outputs/random/known/gaussian-x3-n2-seed1")
    assert len(list(RunFolders(folder).corrupted.read())) == n_kept


def test_two_sweeps_in_one_second_have_two_folders(
    config: Compose, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        assert cli(monkeypatch, "-m", "noise.samples=0", "output_dir=out") == 1
    names = [path.name for path in Path("out/sweeps").iterdir()]
    assert len(names) == 2
    for name in names:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.\d{6}", name)
