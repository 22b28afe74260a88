"""The suffix engine gives the reference engine's numbers, on every family and every shape."""

import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from ktrace.config import EngineConfig, EngineName
from ktrace.errors import NoMemoryLeftError, NotReplayedError
from ktrace.facts import Span
from ktrace.lm import linear
from ktrace.lm.families import FAMILIES
from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from ktrace.terms import METRICS, PUBLISHED_MEDIATORS
from ktrace.tracing.engine import Case, Use
from ktrace.tracing.engines import make_engine
from ktrace.tracing.groups import group_cases
from ktrace.tracing.mediators import make_mediator
from ktrace.tracing.noise import PromptPair, RandomNoise
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.suffix import rounding, walk
from ktrace.tracing.suffix.engine import SuffixEngine
from ktrace.tracing.suffix.layout import Pack
from ktrace.tracing.suffix.limits import Limits
from ktrace.tracing.suffix.plan import Cell, make_plan, split
from ktrace.tracing.suffix.prefix import Prefix
from ktrace.tracing.suffix.recording import Recorder
from tests.support.families import REPLAYED, TINY_FAMILIES, both_directions, mediators_of
from tests.support.models import VOCABULARY, known_case, micro_llama
from tests.tracing.agreement import (
    AS_WIDE,
    LEAST_SPREAD,
    MODELS,
    NOISE,
    NOT_PACKED,
    SCORES_IN_FLOAT32,
    SINKS_IN_FLOAT32,
    all_of,
    case_of,
    largest_difference,
    made,
    model_of,
    reference_scores,
    scores,
    softmax_in,
    without_severing,
)

MEDIATORS = [
    *both_directions([make_mediator(name, 3) for name in PUBLISHED_MEDIATORS]),
    make_mediator("head", 1),
    make_mediator("knockout", 3),
]
# What differs most: an output within blocks, in a window, and states with severed outputs.
TWO = [MEDIATORS[2], MEDIATORS[3]]
TOLERANCE = 1e-6  # of probabilities, in float32, on the small Llama
# How far float32 may be from float64, of probabilities: more would hide a wrong cell.
MOST_ROUNDING = 2e-5
# So many times the reference engine's own distance from float64 is allowed to the suffix engine.
ROUNDINGS = 3


def suffix(
    lm: LanguageModel, row_budget: int | None = None, *, packed: bool = False
) -> SuffixEngine:
    """The suffix engine on a small model, as if it were a wide one."""
    return SuffixEngine(lm, NOISE, row_budget, packed=packed, limits=AS_WIDE)


@pytest.mark.parametrize("name", MODELS)
def test_parity_on_every_family(name: str) -> None:
    """Where effects are large, so that a wrong cell would show; its variants too.

    In float32 two right programs differ: they add in other orders, and by how much that shows
    hangs on the model and the processor. A bound on their difference would be a guess. So both are
    compared with float64, where rounding is out of the way
    (`test_rounding_vanishes_in_float64` holds the suffix engine there to 1e-12): the suffix engine
    may be as far from it as the reference engine's float32 is. These are the largest of some 240
    errors, so that chance parts them, by up to 1.6 times on any of these models; a wrong cell is
    off by 1e-2.
    """
    lm, case = model_of(name), case_of(name)
    exact, expected = (reference_scores(name, dtype) for dtype in (torch.float64, torch.float32))
    for mediator in all_of(lm):
        least = LEAST_SPREAD / 5 if mediator.has_heads or mediator.cuts else LEAST_SPREAD
        values = exact[case.index, mediator.key]
        assert np.nanmax(values) - np.nanmin(values) >= least, mediator.key
    engine = made(lm)
    assert isinstance(engine, SuffixEngine), "fell back to the reference engine"
    assert engine.packed == (name not in NOT_PACKED)
    rounding = largest_difference(expected, exact)
    assert rounding <= MOST_ROUNDING
    ours = scores(engine, [case], all_of(lm))
    assert largest_difference(ours, exact) <= ROUNDINGS * rounding


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
    case = known_case(llama, 1, 5, 3, 4)
    scores(ReferenceEngine(llama, NOISE), [case], TWO)
    assert calls == 0
    scores(suffix(llama), [case], TWO)
    assert calls > 100


def test_only_wide_models_pack(llama: LanguageModel) -> None:
    for width, packed in ((llama.d_embedding, True), (llama.d_embedding + 1, False)):
        engine = make_engine(
            EngineConfig(), llama, NOISE, Use(TWO), replace(AS_WIDE, pack_width=width)
        )
        assert isinstance(engine, SuffixEngine)
        assert engine.packed == packed


def test_the_config_names_the_engine_and_its_budget(llama: LanguageModel) -> None:
    reference = make_engine(EngineConfig(EngineName.reference), llama, NOISE, Use(TWO))
    assert isinstance(reference, ReferenceEngine)
    shape = known_case(llama, 1).shape
    budgeted = make_engine(EngineConfig(row_budget=8), llama, NOISE, Use(TWO))
    assert budgeted.cases_together(shape) == 2  # of four rows each


def test_every_family_has_a_tiny_model() -> None:
    assert set(TINY_FAMILIES) == set(FAMILIES)


@pytest.mark.parametrize(
    ("name", "attention"),
    [*product(MODELS, [None]), *product(REPLAYED, ["eager"])],
)
def test_rounding_vanishes_in_float64(name: str, attention: str | None) -> None:
    lm = model_of(name, torch.float64, attention)
    expected = reference_scores(name, torch.float64, attention)
    for packed in {False, name not in NOT_PACKED}:
        with softmax_in(torch.float64):
            ours = scores(suffix(lm, packed=packed), [case_of(name)], all_of(lm))
        rounds = name in SINKS_IN_FLOAT32 or (packed and name in SCORES_IN_FLOAT32)
        assert largest_difference(ours, expected) <= (TOLERANCE if rounds else 1e-12)


@cache
def wide_llama() -> LanguageModel:
    return language_model(micro_llama(3).double())


@dataclass(frozen=True)
class Example:
    """A group of cases of one shape, and how it is run."""

    n_positions: int
    span: Span
    samples: int
    window: int
    n_cases: int
    n_answer: int
    row_budget: int | None
    pack_tokens: int  # from one position a call, over some, to all of them


def examples() -> Iterator[Example]:
    """Every prompt of up to six tokens with every subject; S and windows in all pairs, in turn."""
    generator = random.Random(0)
    pairs = list(product((1, 2, 3), (1, 2, 3, 4, 5)))
    spans = [(t, b, e) for t in range(1, 7) for b in range(t) for e in range(b + 1, t + 1)]
    for number, (n_positions, start, stop) in enumerate(spans):
        yield Example(
            n_positions,
            Span(start, stop),
            *pairs[number % len(pairs)],
            n_cases=generator.randint(1, 3),
            n_answer=generator.randint(1, 3),
            row_budget=generator.choice([None, 1, 5, 12]),
            pack_tokens=generator.choice([1, 8, 30, 1000]),
        )


@pytest.mark.parametrize("n_positions", range(1, 7))
def test_parity_on_every_shape(n_positions: int) -> None:
    """The suffix engine runs all; the reference engine one case and two mediators, drawn."""
    lm, generator = wide_llama(), random.Random(n_positions)
    for example in examples():
        if example.n_positions != n_positions:
            continue
        cases = [
            Case(
                index,
                tuple(generator.randrange(2, VOCABULARY) for _ in range(n_positions)),
                example.span,
                tuple(generator.randrange(VOCABULARY) for _ in range(example.n_answer)),
            )
            for index in range(example.n_cases)
        ]
        noise = RandomNoise(1.0, example.samples, seed=2)
        mediators = both_directions([make_mediator(n, example.window) for n in PUBLISHED_MEDIATORS])
        limits = Limits(cpu=AS_WIDE.cpu._replace(tokens=example.pack_tokens))
        engine = SuffixEngine(lm, noise, example.row_budget, packed=True, limits=limits)
        ours = scores(engine, cases, mediators)
        some = [generator.choice(cases)], generator.sample(mediators, 2)
        theirs = scores(ReferenceEngine(lm, noise), *some)
        of_case = {key: ours[key] for key in theirs}
        assert largest_difference(of_case, theirs) <= 1e-12, example


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Gemma4ForCausalLM", "BloomForCausalLM"])
def test_parity_of_pairs(name: str) -> None:
    """Two facts of one shape, each with a prompt of its own; some models read ids in each layer."""
    lm = model_of(name, torch.float64)
    cases = [case_of(name), known_case(lm, 2, 6, 2, 4)]
    others = [known_case(lm, seed, 6, 2, 4).input_ids for seed in (3, 4)]
    pairs = [
        replace(case, corrupted_ids=(*case.input_ids[:2], *other[2:]))
        for case, other in zip(cases, others, strict=True)
    ]
    noise = PromptPair({2: (7,)})
    with softmax_in(torch.float64):
        ours = scores(SuffixEngine(lm, noise, limits=AS_WIDE), pairs, all_of(lm), "logit")
        theirs = scores(ReferenceEngine(lm, noise), pairs, all_of(lm), "logit")
    assert largest_difference(ours, theirs) <= 1e-10
    own = [np.ptp(values) for (index, _), values in theirs.items() if index == cases[0].index]
    assert min(own) > 0.1


@pytest.mark.parametrize("n_answer", [1, 3])
def test_parity_of_every_metric(n_answer: int) -> None:
    """Foils and clean distributions belong to their own fact, also in a shared batch."""
    lm = wide_llama()
    cases = [known_case(lm, seed, 5, 2, 4) for seed in (1, 2)]
    cases = [replace(case, answer_ids=(*case.answer_ids, 5, 9)[:n_answer]) for case in cases]
    engine, reference = suffix(lm), ReferenceEngine(lm, NOISE)
    assert len(group_cases(cases, engine.cases_together)) == 1
    theirs = dict(reference.restored(cases, MEDIATORS))
    for case, restored in engine.restored(cases, MEDIATORS):
        for key, by_metric in restored.items():
            assert by_metric.keys() == set(METRICS)
            for metric, values in by_metric.items():
                expected = theirs[case][key][metric]
                np.testing.assert_allclose(values, expected, rtol=0, atol=1e-10, err_msg=metric)


def test_facts_of_one_shape_share_a_batch(llama: LanguageModel) -> None:
    cases = [known_case(llama, 1), known_case(llama, 2, 8), known_case(llama, 3)]
    engine = suffix(llama)
    assert [
        [case.index for case in group] for group in group_cases(cases, engine.cases_together)
    ] == [[1, 3], [2]]


def hold_rows(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Let memory hold so many rows, in the recorded pass as in the walks; returns rows that ran."""
    originals, ran = (Recorder.record, walk.call_block), []

    def check(n_rows: int) -> None:
        if n_rows > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        ran.append(n_rows)

    def record(self: Recorder, input_ids: torch.Tensor, *rest: Any) -> Any:
        check(len(input_ids))
        return originals[0](self, input_ids, *rest)

    def call_block(recording: Any, layer: int, states: torch.Tensor, pack: Pack, *rest: Any) -> Any:
        check(-(-states.shape[:2].numel() // pack.n_positions))
        return originals[1](recording, layer, states, pack, *rest)

    monkeypatch.setattr(Recorder, "record", record)
    monkeypatch.setattr(walk, "call_block", call_block)
    return ran


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("most", [4, 9, 13])
def test_out_of_memory_goes_on_with_less_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    most: int,
    packed: bool,
) -> None:
    """Rows of a group: 16 recorded, up to 96 in a walk. One fact needs 4 of them.

    In float64: packs of other sizes sum in another order.
    """
    lm = language_model(micro_llama().double())
    cases = [known_case(lm, seed) for seed in range(4)]
    expected = scores(suffix(lm), cases, TWO)
    hold_rows(monkeypatch, most)
    engine = suffix(lm, 300, packed=packed)
    with caplog.at_level(logging.WARNING):
        found = scores(engine, cases, TWO)
    assert "going on with engine.row_budget=" in caplog.text
    assert largest_difference(found, expected) <= 1e-12
    n_warnings = len(caplog.records)
    scores(engine, cases[:1], TWO)
    assert len(caplog.records) == n_warnings  # what was learnt is kept


def test_out_of_memory_in_corrupted_runs_goes_on_too(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [known_case(llama, seed) for seed in range(4)]
    hold_rows(monkeypatch, 8)
    found = [case.index for case, _ in suffix(llama).baseline(cases)]
    assert found == [0, 1, 2, 3]


@pytest.mark.parametrize("packed", [False, True])
def test_a_row_budget_bounds_every_call(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    cases = [known_case(llama, seed) for seed in range(4)]
    ran = hold_rows(monkeypatch, 12)
    engine = suffix(llama, 12, packed=packed)
    scores(engine, cases, MEDIATORS)
    list(engine.baseline(cases))
    assert 4 < max(ran) <= 12


def test_a_long_prompt_holds_no_more_states_than_the_budget(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Suffixes of 40 positions are 820 tokens a row: held at once, they would grow with T²."""
    held = []
    original = walk.Walk.run

    def watched(self: walk.Walk) -> torch.Tensor:
        rows = max(
            step.n_by_output + (step.calls[0].pack.n_rows if step.calls else 0)
            for step in self.steps
        )
        tokens = sum(self.runs.n_positions - position for position in self.positions)
        held.append(self.runs.n_base * rows * tokens)
        return original(self)

    monkeypatch.setattr(walk.Walk, "run", watched)
    case = known_case(llama, 1, 40, 0, 2)
    found = scores(suffix(llama, 12), [case], MEDIATORS[:1])
    assert len(held) > 1
    assert max(held) <= 4 * 12 * 40
    expected = scores(suffix(llama), [case], MEDIATORS[:1])
    assert largest_difference(found, expected) <= TOLERANCE


def no_memory(*args: Any) -> Any:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")


def test_out_of_memory_with_one_row_is_the_users_to_mend(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "call_block", no_memory)
    with pytest.raises(NoMemoryLeftError, match=r"noise\.samples"):
        scores(suffix(llama), [known_case(llama, 1)], MEDIATORS)


def test_out_of_memory_in_the_proof_proves_nothing(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is taken for one that cannot be replayed would run for days, unasked."""
    for problem in (no_memory, lambda *args: (_ for _ in ()).throw(MemoryError())):
        monkeypatch.setattr(walk, "call_block", problem)
        with pytest.raises(NoMemoryLeftError, match="out of memory with a made-up prompt"):
            made(llama)


def broken(*args: Any) -> Any:
    raise RuntimeError("a bug")


def test_other_runtime_errors_are_not_swallowed(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "call_block", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        scores(suffix(llama), [known_case(llama, 1)], MEDIATORS)


def test_the_proof_logs_the_traceback_of_what_it_catches(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of ours must not look like a family's habit."""
    monkeypatch.setattr(walk, "call_block", broken)
    with caplog.at_level(logging.DEBUG, logger="ktrace"):
        assert isinstance(made(llama), ReferenceEngine)
    assert "tokens: RuntimeError: a bug)" in caplog.text
    assert "in broken" in caplog.text
    assert [record.levelname for record in caplog.records] == [
        "DEBUG",
        "DEBUG",
        "WARNING",
    ]  # packed, and not


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Gemma3ForCausalLM"])
def test_the_proof_sees_a_missing_severing_in_half_precision(
    architecture: str,
) -> None:
    """Whose effect is 0.1 on the small Gemma-3: a guess at rounding would let it pass."""
    lm = model_of(architecture, torch.bfloat16)
    assert isinstance(made(lm), SuffixEngine)
    with without_severing():
        assert isinstance(made(lm), ReferenceEngine)


@pytest.mark.parametrize("architecture", REPLAYED[::6])
def test_half_precision_differs_by_no_more_than_the_batch_size_does(architecture: str) -> None:
    lm = model_of(architecture, torch.bfloat16)
    case = known_case(lm, 1, 5, 2, 4)
    floor = rounding.rounding_floor(lm, case, NOISE, MEDIATORS[0])
    # The last of five positions is in a chunk of its own (Llama-4): nothing is left without itself.
    mediators = [
        m for m in mediators_of(lm) if not (m.cuts and architecture == "Llama4ForCausalLM")
    ]
    ours, theirs = (
        scores(engine, [case], mediators, "log_probability")
        for engine in (suffix(lm), ReferenceEngine(lm, NOISE))
    )
    assert largest_difference(ours, theirs) <= floor


class Curious(torch.nn.Module):
    """Asks its cache, where it is given one, for more than the keys and values of its own call."""

    def __init__(self, attention: Any, ask: Any) -> None:
        super().__init__()
        self.attention, self.ask = attention, ask

    def forward(self, **kwargs: Any) -> Any:
        if kwargs.get("past_key_values") is not None:
            self.ask(kwargs["past_key_values"])
        return self.attention(**kwargs)


@pytest.mark.parametrize(
    ("ask", "named"),
    [
        (lambda cache: cache.layers[0].keys, "layers"),
        (lambda cache: cache.get_mask_sizes(1, 0), "get_mask_sizes"),
        (lambda cache: len(cache), "layers"),
    ],
)
def test_what_a_replay_has_not_is_refused_by_name(
    ask: Any, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    lm = language_model(micro_llama())
    lm.model.model.layers[1].self_attn = Curious(lm.model.model.layers[1].self_attn, ask)
    with caplog.at_level(logging.WARNING, logger="ktrace"):
        assert isinstance(made(lm), ReferenceEngine)
    assert f"(its blocks ask their cache for {named!r}, which a replay has not)" in caplog.text


def test_a_prefix_lacks_what_it_does_not_serve() -> None:
    """As any object does that lacks an attribute."""
    keys = torch.zeros(1, 2, 3, 4)
    prefix = Prefix(keys, keys)
    assert prefix
    assert prefix.get_seq_length() == 3
    assert not hasattr(prefix, "is_sliding")
    assert getattr(prefix, "layers", None) is None
    with pytest.raises(NotReplayedError):
        prefix.crop(1)


@pytest.mark.parametrize("n_layers", [1, 2, 6])
@pytest.mark.parametrize("window", [1, 2, 3, 10])
def test_a_plan_restores_and_severs_what_the_mediator_says(n_layers: int, window: int) -> None:
    """Followed from its last row back, each cell meets its own layers and no others."""
    mediators = both_directions([make_mediator(name, window) for name in PUBLISHED_MEDIATORS])
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
                is_by_output = row >= step.n_suffixes
                assert is_by_output == (mediator.site != "hidden")
                assert is_by_output or step.joining_restored[row - len(step.sources)]
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
