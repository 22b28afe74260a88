"""The suffix engine gives the reference engine's numbers, on every family and every shape."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ktrace.errors import KtraceError
from ktrace.facts import Span
from ktrace.lm import linear
from ktrace.lm.families import FAMILIES
from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from ktrace.terms import MEDIATOR_NAMES, METRICS
from ktrace.tracing import engines
from ktrace.tracing.engine import Baseline, Case, Engine
from ktrace.tracing.groups import group_cases
from ktrace.tracing.mediators import Mediator, make_mediator
from ktrace.tracing.noise import RandomNoise
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.suffix import engine as suffix
from ktrace.tracing.suffix import proof, runs, walk
from ktrace.tracing.suffix.engine import SuffixEngine
from ktrace.tracing.suffix.plan import Cell, make_plan, split
from ktrace.tracing.suffix.replay import Pack
from tests.support.families import REPLAYED, TINY_FAMILIES, tiny_model
from tests.support.models import VOCABULARY, known_case, micro_llama, sharpened

pytestmark = pytest.mark.usefixtures("narrow_models_as_wide")

NOISE = RandomNoise(1.0, samples=3)
MEDIATORS = [make_mediator(name, 3) for name in MEDIATOR_NAMES]
TOLERANCE = 1e-6  # of probabilities, in float32
# Their blocks know more of positions than the mask says: biases by distance, or a window.
NOT_PACKED = {"BloomForCausalLM", "MptForCausalLM", "GPTNeoForCausalLM"}
# They cast queries and keys, whatever they compute in, and the masks of packs reorder sums.
SCORES_IN_FLOAT32 = {"GPTJForCausalLM", "CodeGenForCausalLM"}


def scores(
    engine: Engine,
    cases: Sequence[Case],
    mediators: Sequence[Mediator] = MEDIATORS,
    metric: str = "probability",
) -> dict[tuple[int, str], np.ndarray]:
    found = {}
    for group in group_cases(cases, engine.cases_together):
        for case, restored in engine.restored(group, mediators):
            for key, by_metric in restored.items():
                found[case.index, key] = by_metric[metric]
    assert len(found) == len(cases) * len(mediators)
    return found


def largest_difference(ours: Mapping[Any, np.ndarray], theirs: Mapping[Any, np.ndarray]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(ours[key] - theirs[key]).max()) for key in theirs)


@pytest.mark.parametrize("architecture", REPLAYED)
def test_parity_on_every_family(architecture: str) -> None:
    """Where effects are large, so that a wrong cell would show."""
    lm = language_model(tiny_model(architecture))
    cases = [known_case(lm, seed, 7, 2, 4) for seed in (1, 2)]
    expected = scores(ReferenceEngine(lm, NOISE), cases)
    spreads = {
        mediator.key: max(np.ptp(expected[case.index, mediator.key]) for case in cases)
        for mediator in MEDIATORS
    }
    assert min(spreads.values()) >= 0.1, spreads
    engine = engines.make_engine("suffix", lm, NOISE)
    assert isinstance(engine, SuffixEngine), "fell back to the reference engine"
    assert engine.packed == (architecture not in NOT_PACKED)
    assert largest_difference(scores(engine, cases), expected) <= TOLERANCE


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN")
def test_the_suffix_engine_alone_multiplies_by_onednn(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference engine stays torch's own, so that comparing the two says something."""
    product = linear._operator()
    assert product is not None
    calls = 0

    def counted(states: torch.Tensor, weight: torch.Tensor, bias: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return product(states, weight, bias)

    monkeypatch.setattr(linear, "_operator", lambda: counted)
    case = known_case(llama, 1, 5, 1, 2)
    scores(ReferenceEngine(llama, NOISE), [case])
    assert calls == 0
    scores(SuffixEngine(llama, NOISE), [case])
    assert calls > 100


def test_only_wide_models_pack(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "PACK_WIDTH", llama.d_embedding)
    assert engines.make_engine("suffix", llama, NOISE).packed
    monkeypatch.setattr(engines, "PACK_WIDTH", llama.d_embedding + 1)
    assert not engines.make_engine("suffix", llama, NOISE).packed


def test_every_family_has_a_tiny_model() -> None:
    assert set(TINY_FAMILIES) == set(FAMILIES)


@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.parametrize("architecture", REPLAYED)
def test_rounding_vanishes_in_float64(
    architecture: str, attention: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    softmax = torch.nn.functional.softmax
    # Eager attention takes it in float32 whatever the model computes in.
    monkeypatch.setattr(
        torch.nn.functional, "softmax", lambda states, dim, **options: softmax(states, dim)
    )
    lm = language_model(tiny_model(architecture, attention).double())
    cases = [known_case(lm, 3)]
    expected = scores(ReferenceEngine(lm, NOISE), cases)
    for packed in {False, architecture not in NOT_PACKED}:
        ours = scores(SuffixEngine(lm, NOISE, packed=packed), cases)
        rounds = packed and architecture in SCORES_IN_FLOAT32
        assert largest_difference(ours, expected) <= (TOLERANCE if rounds else 1e-12)


@cache
def wide_llama() -> LanguageModel:
    return language_model(micro_llama(3).double())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_parity_on_every_shape(data: st.DataObject) -> None:
    lm = wide_llama()
    n_positions = data.draw(st.integers(1, 6), "T")
    start = data.draw(st.integers(0, n_positions - 1), "b")
    stop = data.draw(st.integers(start + 1, n_positions), "e")
    ids = st.lists(st.integers(2, VOCABULARY - 1), min_size=n_positions, max_size=n_positions).map(
        tuple
    )
    n_cases = data.draw(st.integers(1, 3), "cases")
    n_answer = data.draw(st.integers(1, 3), "answer tokens")
    answer = st.lists(st.integers(0, VOCABULARY - 1), min_size=n_answer, max_size=n_answer).map(
        tuple
    )
    cases = [
        Case(index, data.draw(ids), Span(start, stop), data.draw(answer))
        for index in range(n_cases)
    ]
    noise = RandomNoise(1.0, samples=data.draw(st.integers(1, 3), "S"), seed=2)
    window = data.draw(st.integers(1, 5), "window")
    mediators = [make_mediator(name, window) for name in MEDIATOR_NAMES]
    budget = data.draw(st.sampled_from([None, 1, 5, 12]), "row budget")
    # From one position a call, over some, to all of them.
    pack_tokens = data.draw(st.sampled_from([1, 8, 30, 1000]), "tokens of a pack")
    with mock.patch.dict(suffix.ENOUGH_TOKENS, cpu=pack_tokens):
        ours = scores(SuffixEngine(lm, noise, budget, packed=True), cases, mediators)
    theirs = scores(ReferenceEngine(lm, noise), cases, mediators)
    assert largest_difference(ours, theirs) <= 1e-12


def test_the_corrupted_run_is_the_same_in_both_methods(llama: LanguageModel) -> None:
    """To the bit: else positions before the subject would show an effect."""
    cases = [known_case(llama, seed, 7, 2, 4) for seed in range(3)]
    engine = SuffixEngine(llama, NOISE)
    restored = scores(engine, cases)
    for group in group_cases(cases, engine.cases_together):
        for case, baseline in engine.baseline(group):
            corrupted = baseline.corrupted["probability"]
            for mediator in MEDIATORS:
                before = restored[case.index, mediator.key][:, :, :2]
                assert (before == corrupted[:, None, None]).all()


@pytest.mark.parametrize("n_answer", [1, 3])
@pytest.mark.parametrize("metric", METRICS)
def test_parity_of_every_metric(metric: str, n_answer: int) -> None:
    """Foils and clean distributions belong to their own fact, also in a shared batch."""
    lm = wide_llama()
    cases = [known_case(lm, seed) for seed in (1, 2)]
    cases = [replace(case, answer_ids=(*case.answer_ids, 5, 9)[:n_answer]) for case in cases]
    engine = SuffixEngine(lm, NOISE)
    assert len(group_cases(cases, engine.cases_together)) == 1
    ours = scores(engine, cases, metric=metric)
    theirs = scores(ReferenceEngine(lm, NOISE), cases, metric=metric)
    assert largest_difference(ours, theirs) <= 1e-10


@pytest.mark.parametrize("make", [ReferenceEngine, SuffixEngine])
def test_what_a_baseline_says_is_kept_to_the_bit(
    llama: LanguageModel, make: type[ReferenceEngine | SuffixEngine]
) -> None:
    """A corrupted run in other company differs by rounding, which would look like an effect."""
    case = known_case(llama, 1)
    [(_, baseline)] = make(llama, NOISE).baseline([case])
    stored = Baseline(
        clean={metric: values + 1e-3 for metric, values in baseline.clean.items()},
        corrupted={metric: values + 1e-3 for metric, values in baseline.corrupted.items()},
        foil_ids=(((case.answer_ids[0] + 1) % VOCABULARY,),) * NOISE.samples,
    )
    hidden, mlp = MEDIATORS[0], MEDIATORS[3]
    engine = make(llama, NOISE)
    [(_, found)] = engine.restored([replace(case, baseline=stored)], [hidden, mlp])
    [(_, plain)] = engine.restored([case], [hidden])
    for metric in METRICS:
        for mediator in (hidden, mlp):
            before = found[mediator.key][metric][:, :, : case.span.start]
            assert (before == stored.corrupted[metric][:, None, None]).all()
    differing = found["hidden"]["logit_difference"] - plain["hidden"]["logit_difference"]
    assert np.abs(differing[:, 0, -1]).max() > 1e-2  # another foil
    if make is SuffixEngine:
        assert (found["hidden"]["logit"][:, -1, -1] == stored.clean["logit"]).all()


def test_facts_of_one_shape_share_a_batch(llama: LanguageModel) -> None:
    cases = [known_case(llama, 1), known_case(llama, 2, 8), known_case(llama, 3)]
    engine = SuffixEngine(llama, NOISE)
    assert [
        [case.index for case in group] for group in group_cases(cases, engine.cases_together)
    ] == [[1, 3], [2]]
    together = scores(engine, cases)
    alone = {key: value for case in cases for key, value in scores(engine, [case]).items()}
    assert largest_difference(together, alone) <= TOLERANCE


def test_the_same_groups_give_the_same_bits(llama: LanguageModel) -> None:
    cases = [known_case(llama, seed) for seed in range(4)]
    once = scores(SuffixEngine(llama, NOISE), cases)
    again = scores(SuffixEngine(llama, NOISE), cases)
    assert all((once[key] == again[key]).all() for key in once)


def hold_rows(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Let memory hold so many rows, in the recorded pass as in the walks; returns rows that ran."""
    originals, ran = (runs.record, walk.call_block), []

    def check(n_rows: int) -> None:
        if n_rows > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        ran.append(n_rows)

    def record(lm: LanguageModel, input_ids: torch.Tensor, *rest: Any) -> Any:
        check(len(input_ids))
        return originals[0](lm, input_ids, *rest)

    def call_block(recording: Any, layer: int, states: torch.Tensor, pack: Pack, *rest: Any) -> Any:
        check(-(-states.shape[:2].numel() // pack.n_positions))
        return originals[1](recording, layer, states, pack, *rest)

    monkeypatch.setattr(runs, "record", record)
    monkeypatch.setattr(walk, "call_block", call_block)
    return ran


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("most", [4, 9, 13])
def test_out_of_memory_goes_on_with_less_and_loses_nothing(
    llama: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    most: int,
    packed: bool,
) -> None:
    """Rows of a group: 16 recorded, up to 240 in a walk. One fact needs 4 of them."""
    cases = [known_case(llama, seed) for seed in range(4)]
    expected = scores(SuffixEngine(llama, NOISE), cases)
    hold_rows(monkeypatch, most)
    engine = SuffixEngine(llama, NOISE, row_budget=300, packed=packed)
    with caplog.at_level(logging.WARNING):
        found = scores(engine, cases)
    assert "going on with engine.row_budget=" in caplog.text
    assert largest_difference(found, expected) <= TOLERANCE
    n_warnings = len(caplog.records)
    scores(engine, cases)
    assert len(caplog.records) == n_warnings  # what was learnt is kept


def test_out_of_memory_in_corrupted_runs_goes_on_too(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [known_case(llama, seed) for seed in range(4)]
    hold_rows(monkeypatch, 8)
    found = [case.index for case, _ in SuffixEngine(llama, NOISE).baseline(cases)]
    assert found == [0, 1, 2, 3]


@pytest.mark.parametrize("packed", [False, True])
def test_a_row_budget_bounds_every_call(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    cases = [known_case(llama, seed) for seed in range(4)]
    ran = hold_rows(monkeypatch, 12)
    engine = SuffixEngine(llama, NOISE, row_budget=12, packed=packed)
    scores(engine, cases)
    list(engine.baseline(cases))
    assert 4 < max(ran) <= 12


def test_a_long_prompt_holds_no_more_states_than_the_budget(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Suffixes of 40 positions are 820 tokens a row: held at once, they would grow with T²."""
    held = []
    original = walk.Walk.run

    def watched(self: walk.Walk) -> torch.Tensor:
        rows = max(step.n_rows for step in self.plan.steps)
        tokens = sum(self.runs.n_positions - position for position in self.positions)
        held.append(self.runs.n_base * rows * tokens)
        return original(self)

    monkeypatch.setattr(walk.Walk, "run", watched)
    case = known_case(llama, 1, 40, 0, 2)
    engine = SuffixEngine(llama, NOISE, row_budget=12)
    found = scores(engine, [case], MEDIATORS[:1])
    assert len(held) > 1
    assert max(held) <= 4 * 12 * 40
    expected = scores(SuffixEngine(llama, NOISE), [case], MEDIATORS[:1])
    assert largest_difference(found, expected) <= TOLERANCE


def test_out_of_memory_with_one_row_is_the_users_to_mend(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*args: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")

    monkeypatch.setattr(walk, "call_block", no_memory)
    with pytest.raises(KtraceError, match=r"noise\.samples"):
        scores(SuffixEngine(llama, NOISE), [known_case(llama, 1)])


def test_other_runtime_errors_are_not_swallowed(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(walk, "call_block", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        scores(SuffixEngine(llama, NOISE), [known_case(llama, 1)])


def test_a_family_that_cannot_be_proven_falls_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A block that looks at positions it is not called with gives other numbers when replayed."""
    model = sharpened(micro_llama())
    attention = type(model.model.layers[0].self_attn)
    original = attention.forward

    def forward(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        mean = hidden_states.mean(dim=1, keepdim=True)
        return original(self, hidden_states + mean, *args, **kwargs)

    monkeypatch.setattr(attention, "forward", forward)
    with caplog.at_level(logging.WARNING):
        engine = engines.make_engine("suffix", language_model(model), NOISE)
    assert isinstance(engine, ReferenceEngine)
    assert len(caplog.records) == 1
    assert "is off by" in caplog.text


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Gemma3ForCausalLM"])
def test_the_proof_sees_a_missing_severing_in_half_precision(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose effect is 0.1 on the small Gemma-3: a guess at rounding would let it pass."""
    lm = language_model(tiny_model(architecture).to(torch.bfloat16))
    assert isinstance(engines.make_engine("suffix", lm, NOISE), SuffixEngine)
    original = walk.Walk._edits

    def edits_without_severing(self: Any, step: Any, *rest: Any) -> Any:
        return original(self, replace(step, severed={}), *rest)

    monkeypatch.setattr(walk.Walk, "_edits", edits_without_severing)
    assert isinstance(engines.make_engine("suffix", lm, NOISE), ReferenceEngine)


@pytest.mark.parametrize("architecture", REPLAYED[::6])
def test_half_precision_differs_by_no_more_than_the_batch_size_does(architecture: str) -> None:
    lm = language_model(tiny_model(architecture).to(torch.bfloat16))
    case = known_case(lm, 1)
    floor = proof.rounding_floor(lm, case, NOISE, MEDIATORS[0])
    ours, theirs = (
        scores(make(lm, NOISE), [case], metric="log_probability")
        for make in (SuffixEngine, ReferenceEngine)
    )
    assert largest_difference(ours, theirs) <= floor


def test_the_model_is_left_as_it_was(llama: LanguageModel) -> None:
    scores(SuffixEngine(llama, NOISE), [known_case(llama, 1)])
    for module in llama.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in module.__dict__


@pytest.mark.parametrize("n_layers", [1, 2, 6])
@pytest.mark.parametrize("window", [1, 2, 3, 10])
def test_a_plan_restores_and_severs_what_the_mediator_says(n_layers: int, window: int) -> None:
    """Followed from its last row back, each cell meets its own layers and no others."""
    mediators = [make_mediator(name, window) for name in MEDIATOR_NAMES]
    cells = [Cell(mediator, layer) for mediator in mediators for layer in range(n_layers)]
    plan = make_plan(cells, n_layers)
    for cell in cells:
        mediator = cell.mediator
        if mediator.site == "hidden" and cell.layer == n_layers - 1:
            assert cell not in plan.row_of
            continue
        row: int | None = plan.row_of[cell]
        restored, severed, joined = [], [], None
        for layer in reversed(range(n_layers)):
            step = plan.steps[layer]
            assert row is not None
            assert row < step.n_rows
            if row in step.restored.get(mediator.site, []):
                restored.append(layer)
            if mediator.severs and row in step.severed.get(mediator.severs, []):
                severed.append(layer)
            if row >= len(step.sources):
                joined = layer
                is_hidden = step.joining_restored[row - len(step.sources)]
                assert is_hidden == (mediator.site == "hidden")
                break
            row = step.sources[row]
        expected = list(mediator.restored_layers(cell.layer, n_layers))
        if mediator.site == "hidden":
            assert joined == cell.layer + 1
            assert restored == []
        else:
            assert joined == expected[0]
            assert restored[::-1] == expected
        assert severed[::-1] == list(mediator.severed_layers(cell.layer, n_layers))


def test_clipped_windows_share_their_common_layers() -> None:
    """With w = 10 of 12 layers, the windows of layers 0 to 5 all start at layer 0."""
    mediator = make_mediator("mlp", 10)
    plan = make_plan([Cell(mediator, layer) for layer in range(12)], 12)
    # The six part when the first of them ends, after layer 4.
    assert [step.n_rows for step in plan.steps] == [1, 2, 3, 4, 5, 7, 9, 10, 11, 12, 12, 12]


def test_split_keeps_the_order_and_loses_nothing() -> None:
    cells = [Cell(replace(MEDIATORS[0]), layer) for layer in range(7)]
    parts = split(cells, 3)
    assert [len(part) for part in parts] == [3, 3, 1]
    assert [cell for part in parts for cell in part] == cells
