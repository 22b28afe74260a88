"""Stores of states: what a run puts in, goes on with, refuses, and never reads."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import ktrace
from ktrace.config import NoiseConfig, RunConfig
from ktrace.config.compose import composed, resource
from ktrace.errors import KtraceError
from ktrace.pipeline import activations, session
from ktrace.pipeline import run as pipeline
from ktrace.store import ACTIVATIONS, CleanRecord, RunFolders, StatesRecord
from ktrace.store import store as store_module
from ktrace.terms import RUN_KINDS, SITES
from ktrace.tracing import candidates
from tests.support.configs import Compose
from tests.support.runs import contents, facts_in_parts, parts

pytestmark = pytest.mark.usefixtures("no_figures", "no_proof")

ALL = "activations.corrupted=[hidden,attn,mlp]"
SOME = ("activations.layers=[2,0]", "activations.positions=[last_subject,last]")
N_SAMPLES = 3


def bits(folder: Path, kind: str) -> dict[int, dict[str, Any]]:
    """Every field of every fact, arrays as bytes."""
    return {
        record.index: {
            "where": (record.layers.tolist(), record.positions.tolist(), record.roles),
            **{s: (v.shape, v.dtype.str, v.tobytes()) for s, v in record.states.items()},
        }
        for record in StatesRecord.read(RunFolders(folder).activations(kind), *SITES)
    }


def states(folder: Path, kind: str, site: str) -> dict[int, np.ndarray]:
    """By known_id, for those that have any."""
    store = RunFolders(folder).activations(kind)
    found = {record.known_id: record.states[site] for record in StatesRecord.read(store, site)}
    return {known_id: array for known_id, array in found.items() if array.size}


@dataclass(frozen=True)
class Whole:
    """A run that keeps everything.

    Attributes:
        output: its folder.
        run: the folder of its noise.
    """

    output: Path
    run: Path


@pytest.fixture(scope="module")
def whole(own: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    output = tmp_path_factory.mktemp("whole") / "out"
    common = (*own, f"output_dir={output}", f"noise.samples={N_SAMPLES}", "stage=corrupted")
    return Whole(output, pipeline.run(composed([*common, ALL])).folder)


@pytest.fixture
def kept(config: Compose, whole: Whole, tmp_path: Path) -> Compose:
    """As `config`, where all of that is stored."""
    shutil.copytree(whole.output, tmp_path / "out")
    return config


def hooked_states(
    folder: Path, record: CleanRecord, dtype: torch.dtype, noise: np.ndarray | None
) -> Mapping[str, torch.Tensor]:
    """Of one row, by transformers and torch alone; `noise` is added to the subject's embeddings."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    if dtype is torch.float32:
        model.set_attn_implementation("eager")
    found: dict[str, list[torch.Tensor]] = {site: [] for site in SITES}

    def keep(site: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            found[site].append((output[0] if isinstance(output, tuple) else output)[0].clone())

        return hook

    def corrupt(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        start, stop = record.span
        changed = output.clone()
        changed[0, start:stop] = (changed[0, start:stop].float() + torch.tensor(noise).float()).to(
            dtype
        )
        return changed

    if noise is not None:
        model.model.embed_tokens.register_forward_hook(corrupt)
    for block in model.model.layers:
        for site, module in zip(SITES, (block, block.self_attn, block.mlp), strict=True):
            module.register_forward_hook(keep(site))
    with torch.inference_mode():
        model(input_ids=torch.tensor([record.input_ids.tolist()]), use_cache=False)
    return {site: torch.stack(layers) for site, layers in found.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_comes_back_is_what_hooks_see(
    config: Compose, whole: Whole, model_folder: Path, dtype: str
) -> None:
    """From the command to `load_activations`, of both runs, every site, layer and position."""
    run = whole.run
    if dtype == "bfloat16":
        run = pipeline.run(config(ALL, "model.dtype=bfloat16", "stage=corrupted")).folder
    folders = RunFolders(run)
    level = next(folders.corrupted.read("noise_level"))["noise_level"]
    records = [record for record in CleanRecord.read(folders.clean) if record.is_candidate]
    assert len(records) >= 5
    for record in records:
        start, stop = record.span
        drawn = np.random.RandomState(1).randn(N_SAMPLES, stop - start, 32) * level
        clean = hooked_states(model_folder, record, getattr(torch, dtype), None)
        noised = [hooked_states(model_folder, record, getattr(torch, dtype), x) for x in drawn]
        for site in SITES:
            for layer in range(3):
                asked: dict[str, Any] = {"known_id": record.known_id}
                found = ktrace.load_activations(run, site, layer, **asked)
                expected = clean[site][layer].float().numpy()
                np.testing.assert_array_equal(found.states, expected)
                found = ktrace.load_activations(run, site, layer, None, "corrupted", **asked)
                by_sample = [states[site][layer].float().numpy() for states in noised]
                np.testing.assert_array_equal(found.states, np.stack(by_sample, axis=1))


def test_roles_are_rows_of_the_whole(config: Compose, whole: Whole) -> None:
    run = pipeline.run(config(ALL, *SOME, "activations.samples=2", "stage=corrupted")).folder
    assert (
        RunFolders(run).activations("clean").fingerprint()
        != RunFolders(whole.run).activations("clean").fingerprint()
    )
    for kind in RUN_KINDS:
        for site in SITES:
            for layer in (0, 2):
                for role in ("last_subject", "last"):
                    part, all_of_it = (
                        ktrace.load_activations(folder, site, layer, role, kind)
                        for folder in (run, whole.run)
                    )
                    assert len(part.states) == 6
                    expected = all_of_it.states[:, :2] if kind == "corrupted" else all_of_it.states
                    np.testing.assert_array_equal(part.states, expected)
                    np.testing.assert_array_equal(part.known_ids, all_of_it.known_ids)
    records = [*StatesRecord.read(RunFolders(run).activations("clean"))]
    assert {role for record in records for role in record.roles} == {"last subject", "last"}


@pytest.mark.parametrize(
    "noise", ["pair", "zero", "token_replacement", "multivariate", "student_t", "mean", "uniform"]
)
def test_every_noise(config: Compose, noise: str) -> None:
    """Facts that it cannot corrupt are in no store of corrupted states."""
    facts = "pairs" if noise == "pair" else "facts"
    n_samples = NoiseConfig().samples if noise in ("multivariate", "student_t", "uniform") else 1
    asked = composed(
        [
            *("model=tiny", f"dataset={facts}", "dataset.limit=8", f"noise={noise}"),
            *(f"output_dir={config().output_dir}", "stage=corrupted", ALL, SOME[1]),
        ]
    )
    outcome = pipeline.run(asked)
    found = ktrace.load_activations(outcome.folder, "hidden", 0, "last", "corrupted")
    assert found.states.shape == (outcome.counts["traced"], n_samples, 128)
    clean = ktrace.load_activations(outcome.folder, "hidden", 0, "last")
    same = np.isin(clean.known_ids, found.known_ids)
    # The last token attends to what is corrupted, already in the first layer.
    assert (found.states != clean.states[same][:, None]).any(axis=-1).all()


def test_engines_and_shards_give_the_same_bits(
    config: Compose, whole: Whole, tmp_path: Path
) -> None:
    for other in (("shard=2/2", "shard=1/2"), ("engine=reference",)):
        output = tmp_path / str(len(other))
        for override in other:
            asked = config(ALL, "stage=restore", f"output_dir={output}", override)
            folder = pipeline.run(asked).folder
        for kind in RUN_KINDS:
            assert bits(folder, kind) == bits(whole.run, kind)
        restored = [*RunFolders(folder).restored("hidden").read()]
        assert facts_in_parts(output) == 7 + 7 + 6 + 6 + len(restored)
        before = parts(output)
        for override in other:
            pipeline.run(config(ALL, "stage=restore", f"output_dir={output}", override))
        assert parts(output) == before


def test_shards_share_what_is_lacking_of_states_alone(
    config: Compose, whole: Whole, tmp_path: Path
) -> None:
    none = ("activations.clean=[]", "stage=restore")
    run = pipeline.run(config(*none)).folder
    pipeline.run(config("shard=1/2", "stage=restore", ALL))
    assert 0 < len(bits(run, "clean")) < 7
    assert 0 < len(bits(run, "corrupted")) < 6
    pipeline.run(config("shard=2/2", "stage=restore", ALL))
    for kind in RUN_KINDS:
        assert bits(run, kind) == bits(whole.run, kind)


@pytest.mark.parametrize("kind", RUN_KINDS)
def test_an_interrupted_run_goes_on_to_the_same_bits(
    config: Compose, whole: Whole, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ktrace.store.writer._PART_FACTS", 2)
    original = activations.StateStore.record
    calls = []

    def interrupted(self: activations.StateStore, *args: Any) -> StatesRecord:
        calls.append(self.kind)
        if calls.count(kind) == 4:
            raise KeyboardInterrupt
        return original(self, *args)

    asked = config(ALL, "stage=corrupted")
    monkeypatch.setattr(activations.StateStore, "record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(asked)
    done, output = parts(Path(asked.output_dir)), Path(asked.output_dir)
    run = output / whole.run.relative_to(whole.output)
    assert len(bits(run, kind)) == 3
    monkeypatch.setattr(activations.StateStore, "record", original)
    pipeline.run(asked)
    assert done.items() < parts(output).items()
    assert contents(run) == contents(whole.run)
    assert facts_in_parts(output) == facts_in_parts(whole.output)


def loads_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(session.Session, "__init__", fail)


@pytest.mark.parametrize(
    "fewer",
    [
        ("activations.corrupted=[]",),
        ("activations.clean=[]", "activations.corrupted=[mlp]"),
        SOME,
        ("activations.samples=1",),
    ],
)
def test_asking_for_less_than_is_stored_goes_on_with_that(
    kept: Compose, whole: Whole, fewer: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = parts(Path(kept().output_dir))
    with monkeypatch.context() as patch:
        loads_no_model(patch)
        pipeline.run(kept(ALL, "stage=corrupted", *fewer))
    assert parts(Path(kept().output_dir)) == before
    # And what is added is as what is there: a store never holds facts of two kinds.
    folders = RunFolders(Path(kept().output_dir) / whole.run.relative_to(whole.output))
    for kind in RUN_KINDS:
        shutil.rmtree(folders.activations(kind).folder)
    pipeline.run(kept(ALL, "stage=corrupted", "dataset.limit=3"))
    pipeline.run(kept("activations.corrupted=[attn]", *SOME, "stage=corrupted"))
    for kind in RUN_KINDS:
        assert bits(folders.run, kind) == bits(whole.run, kind)


@pytest.mark.parametrize(
    ("more", "stored", "now"),
    [
        (("activations.clean=[attn,mlp]",), '"sites": ["attn"]', '"sites": ["attn", "mlp"]'),
        (("activations.layers=[0,1]",), '"layers": [0, 2]', '"layers": [0, 1]'),
        (("activations.layers=null",), '"layers": [0, 2]', '"layers": null'),
        (("activations.positions=all",), '"positions": ["last_subject"', '"positions": "all"'),
        (("activations.corrupted=[hidden]",), '"sites": ["mlp"]', '"sites": ["hidden"]'),
        (("activations.samples=3",), '"samples": 2', '"samples": 3'),
        (("activations.samples=null", "shard=1/2"), '"samples": 2', '"samples": 3'),
    ],
)
def test_asking_for_more_is_refused_with_both_values(
    config: Compose,
    more: tuple[str, ...],
    stored: str,
    now: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = ("activations.clean=[attn]", "activations.corrupted=[mlp]", *SOME)
    given += ("activations.samples=2", "dataset.limit=2", "stage=corrupted")
    folder = pipeline.run(config(*given)).folder
    before = parts(folder.parent)
    loads_no_model(monkeypatch)
    with pytest.raises(KtraceError, match="holds fewer states than are asked for") as raised:
        pipeline.run(config(*given, *more))
    assert stored in str(raised.value).split(", now ")[0]
    assert now in str(raised.value).split(", now ")[1]
    assert "\n" not in str(raised.value)
    assert parts(folder.parent) == before


def test_other_settings_are_refused(kept: Compose, whole: Whole) -> None:
    """States of another model are not taken for this one's, though the scores are gone."""
    run = Path(kept().output_dir) / whole.run.relative_to(whole.output)
    shutil.rmtree(run.parent / "clean")
    shutil.rmtree(run / "corrupted")
    with pytest.raises(KtraceError, match=r"activations/clean holds results of other settings"):
        pipeline.run(kept("model.dtype=float64", "stage=filter"))
    other = RunFolders(run.with_name("gaussian-x3-n3-seed2")).activations("corrupted").folder
    RunFolders(run).activations("corrupted").folder.rename(other)
    with pytest.raises(KtraceError, match=r"results of noise gaussian-x3-n3-seed1, and lies in"):
        pipeline.run(kept(ALL, "noise.seed=2", "stage=corrupted"))


def test_a_layer_that_the_model_has_not(kept: Compose, config: Compose, tmp_path: Path) -> None:
    for asked in (
        kept("activations.layers=[0,3]"),  # all are stored: no model is loaded to tell
        config("activations.layers=[0,3]", f"output_dir={tmp_path / 'new'}"),
    ):
        with pytest.raises(KtraceError, match=r"activations\.layers: 3 is out of range: .* 0 to 2"):
            pipeline.run(asked)
    assert not (tmp_path / "new").exists()


def test_scores_are_read_without_states(
    kept: Compose,
    whole: Whole,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever lies there: an analysis does not look, and a run looks at what it would add to."""
    output = Path(kept().output_dir)
    run = output / whole.run.relative_to(whole.output)
    pipeline.run(kept(ALL, "stage=restore"))
    opened: list[Path] = []
    original = store_module.read_part

    def noting(path: Path, *args: Any) -> Any:
        opened.append(path)
        return original(path, *args)

    monkeypatch.setattr(store_module, "read_part", noting)
    pipeline.run(kept(ALL, "stage=analyze"))
    assert opened
    assert not [path for path in opened if "activations" in path.parts]
    with_states = (run / "analysis" / "aie.csv").read_bytes()
    shutil.rmtree(run.parent / "activations")
    pipeline.run(kept(ALL, "stage=analyze"))
    assert (run / "analysis" / "aie.csv").read_bytes() == with_states
    assert len(ktrace.load_effects(run))
    assert not (run.parent / "activations").exists()
    before = parts(output)
    with monkeypatch.context() as patch:
        loads_no_model(patch)
        pipeline.run(kept("activations.clean=[]", "stage=restore"))
    with caplog.at_level(logging.INFO, logger="ktrace"):
        pipeline.run(kept(ALL, "stage=restore"))
    said = f"{run.parent / 'activations' / 'clean'} lacks 7 of 7 facts whose clean runs are stored"
    assert said in caplog.text
    assert before.items() < parts(output).items(), "scores were written again"
    for kind in RUN_KINDS:
        assert bits(run, kind) == bits(whole.run, kind)


def test_clean_runs_and_their_states_are_one_pass(
    config: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And states are computed once, for every noise and mediator."""
    runs: list[Any] = []
    original = candidates.clean_run

    def counted(*args: Any, **kwargs: Any) -> Any:
        runs.append(args[1])
        return original(*args, **kwargs)

    monkeypatch.setattr(candidates, "clean_run", counted)
    pipeline.run(config("stage=filter"))
    assert len(runs) == 7
    pipeline.run(config("noise.seed=2", "mediator=mlp", "stage=restore", ALL))
    assert len(runs) == 7


def test_facts_that_are_no_candidates_have_none(whole: Whole) -> None:
    known = {record.known_id: record for record in CleanRecord.read(RunFolders(whole.run).clean)}
    for kind in RUN_KINDS:
        store = RunFolders(whole.run).activations(kind)
        assert store.schema is ACTIVATIONS[kind]
        for record in StatesRecord.read(store, *SITES):
            candidate = known[record.known_id].is_candidate
            n_positions = len(known[record.known_id].input_ids)
            assert len(record.positions) == (n_positions if candidate else 0)
            assert list(record.layers) == ([0, 1, 2] if candidate else [])
            assert record.roles == (known[record.known_id].roles if candidate else ())
            assert all(bool(array.size) == candidate for array in record.states.values())
    assert len(states(whole.run, "clean", "attn")) == len(states(whole.run, "corrupted", "attn"))


def test_the_seed_keeps_what_the_published_pipeline_keeps(tmp_path: Path) -> None:
    asked: RunConfig = composed(
        [
            *("experiment=seed", "dataset.limit=2", "noise.samples=2", "stage=corrupted"),
            *(f"output_dir={tmp_path}", f"model.path={resource('data/tiny')}"),
        ]
    )
    folder = pipeline.run(asked).folder
    for kind, sites in (("clean", {"hidden", "attn", "mlp"}), ("corrupted", {"attn", "mlp"})):
        stored = {site for site in SITES if states(folder, kind, site)}
        assert stored == sites
        for site in sites:
            for array in states(folder, kind, site).values():
                assert array.shape[-3] == 6
                assert array.shape[:-3] == ((2,) if kind == "corrupted" else ())
