"""Models that a replay would get wrong: each is replayed exactly, or not at all."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from ktrace.config import EngineConfig
from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from ktrace.terms import PUBLISHED_MEDIATORS, Direction
from ktrace.tracing.engine import Engine, Shape, Use
from ktrace.tracing.engines import make_engine
from ktrace.tracing.mediators import Mediator, make_mediator
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.suffix import expected, judge, plan, runs, walk
from ktrace.tracing.suffix.engine import SuffixEngine
from ktrace.tracing.suffix.layout import BlockCall, Index
from ktrace.tracing.suffix.limits import Limits
from ktrace.tracing.suffix.plan import Cell
from ktrace.tracing.suffix.runs import features_of
from ktrace.tracing.suffix.verdicts import Verdict
from tests.support.models import known_case, micro_llama
from tests.support.proof import forget_verdicts
from tests.tracing.agreement import (
    AS_WIDE,
    NOISE,
    SCORES_IN_FLOAT32,
    largest_difference,
    made,
    model_of,
    scores,
    without_severing,
)

ALL = [make_mediator(name, 3) for name in PUBLISHED_MEDIATORS]
HIDDEN = ALL[:1]
LONGEST = 14


def engine_of(lm: LanguageModel, mediators: list[Mediator] = ALL, longest: int = LONGEST) -> Engine:
    forget_verdicts()
    return judged_engine(lm, mediators, longest)


def judged_engine(lm: LanguageModel, mediators: list[Mediator], longest: int = LONGEST) -> Engine:
    """Of a model that may have been judged before."""
    use = Use(mediators, [Shape(7, 1), Shape(longest, 2)])
    return make_engine(EngineConfig(), lm, NOISE, use, AS_WIDE)


def require_exact(lm: LanguageModel, engine: Engine, longest: int = LONGEST) -> None:
    """On three facts in one group, of the longest length and of another."""
    for n_positions in (7, longest):
        cases = [known_case(lm, seed, n_positions) for seed in (1, 2, 3)]
        right = scores(ReferenceEngine(lm, NOISE), cases, HIDDEN)
        assert largest_difference(scores(engine, cases, HIDDEN), right) <= 1e-12


def llama() -> Any:
    return micro_llama().double()


def blocks_given(model: Any, make: Callable[[torch.Tensor], object], use: Any) -> Any:
    """Blocks with one more argument, made from the token ids, and used on the block's input."""
    body = model.model
    original = body.forward

    def forward(input_ids: torch.Tensor, **options: Any) -> Any:
        return original(input_ids=input_ids, extra=make(input_ids), **options)

    body.forward = forward
    for block in body.layers:
        block.forward = _with_extra(block.forward, use)
    return model


def _with_extra(block: Any, use: Any) -> Any:
    def forward(hidden_states: torch.Tensor, extra: Any = None, **options: Any) -> Any:
        return block(use(hidden_states, extra), **options)

    return forward


def table(width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(96, width, generator=generator).double()


@pytest.mark.parametrize(
    ("make", "use"),
    [
        # Per-layer inputs, as of the Gemma-4 kind.
        (lambda ids: table()[ids], lambda states, extra: states + extra),
        # The token ids themselves.
        (lambda ids: ids, lambda states, extra: states + table()[extra]),
        # One number a row.
        (lambda ids: table(1)[ids[:, 0]], lambda states, extra: states * (1 + extra[:, None])),
        # In a tuple, as rotary embeddings are.
        (
            lambda ids: (table()[ids], table(1)[ids]),
            lambda states, extra: states * extra[1] + extra[0],
        ),
    ],
    ids=["inputs of each layer", "token ids", "a number a row", "a tuple"],
)
def test_arguments_that_differ_between_rows(make: Any, use: Any) -> None:
    lm = language_model(blocks_given(llama(), make, use))
    engine = engine_of(lm)
    assert isinstance(engine, SuffixEngine)
    require_exact(lm, engine)


def mlps_give(model: Any, change: Callable[..., torch.Tensor]) -> Any:
    for layer in model.model.layers:
        layer.mlp.forward = _changed(layer.mlp.forward, change)
    return model


def _changed(original: Any, change: Any) -> Any:
    return lambda states: change(original(states))


def blocks_give(model: Any, change: Callable[..., torch.Tensor]) -> Any:
    for number, block in enumerate(model.model.layers):
        block.forward = _changed_block(block.forward, change, number)
    return model


def _changed_block(original: Any, change: Any, number: int) -> Any:
    def forward(hidden_states: torch.Tensor, **options: Any) -> Any:
        return change(original(hidden_states, **options), number)

    return forward


def from_the_ninth_token() -> Any:
    """Its blocks do otherwise with nine tokens or more."""
    return blocks_give(llama(), lambda out, _: out * (1.5 if out.shape[1] >= 9 else 1.0))


def after_the_head() -> Any:
    """Its blocks read what each pass, also the head's over one token, writes at its beginning."""
    model, memo = llama(), {"n": 0}
    body = model.model
    original = body.forward

    def forward(input_ids: torch.Tensor, **options: Any) -> Any:
        memo["n"] = input_ids.shape[1]
        return original(input_ids=input_ids, **options)

    body.forward = forward
    return mlps_give(model, lambda out: out * (1 + 0.05 * memo["n"]))


def from_an_earlier_block() -> Any:
    """Blocks add what the first one gave, which is no argument."""
    memo: dict[str, torch.Tensor] = {}

    def change(states: torch.Tensor, number: int) -> torch.Tensor:
        if number == 0:
            memo["first"] = states
        return states if number == 0 else states + 0.5 * memo["first"]

    return blocks_give(llama(), change)


def from_the_position_before() -> Any:
    """Blocks mix each position with the one before, without a cache."""
    return blocks_give(
        llama(),
        lambda states, _: states + torch.nn.functional.pad(states, (0, 0, 1, 0))[:, :-1],
    )


def by_the_number_of_tokens() -> Any:
    return blocks_give(llama(), lambda states, _: states * (1 + 0.1 * states.shape[1]))


def by_the_place_in_the_call() -> Any:
    """Positions counted from the first token of a call."""

    def change(states: torch.Tensor, _: int) -> torch.Tensor:
        places = torch.arange(states.shape[1], dtype=states.dtype)
        return states * (1 + 0.1 * places[:, None])

    return blocks_give(llama(), change)


def in_a_dictionary() -> Any:
    return blocks_given(
        llama(),
        lambda ids: {"inputs": table()[ids]},
        lambda states, extra: states + extra["inputs"],
    )


def rows_on_another_axis() -> Any:
    return blocks_given(
        llama(),
        lambda ids: table()[ids].transpose(0, 1),
        lambda states, extra: states + extra.transpose(0, 1),
    )


def an_average_over_positions() -> Any:
    """Of all that were read so far: a running sum, which a suffix does not begin at."""

    def change(states: torch.Tensor, _: int) -> torch.Tensor:
        counts = torch.arange(1, states.shape[1] + 1, dtype=states.dtype)
        return states + states.cumsum(1) / counts[:, None]

    return blocks_give(llama(), change)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (from_the_ninth_token, "of 14 is off by"),
        (after_the_head, "is off by"),
        (
            from_an_earlier_block,
            "its blocks fail on suffixes of a prompt of 6 tokens: RuntimeError",
        ),
        (from_the_position_before, "is off by"),
        (by_the_number_of_tokens, "is off by"),
        (by_the_place_in_the_call, "is off by"),
        (an_average_over_positions, "is off by"),
        (in_a_dictionary, "its blocks take a dict"),
        (rows_on_another_axis, "which axis is that of the rows"),
    ],
)
def test_what_cannot_be_replayed_falls_back_and_says_why(
    make: Callable[[], Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    lm = language_model(make())
    with caplog.at_level(logging.WARNING, logger="ktrace"):
        assert isinstance(engine_of(lm, HIDDEN), ReferenceEngine)
    [record] = caplog.records
    message = record.getMessage()
    assert message.startswith("engine=suffix cannot be proven on LlamaForCausalLM (")
    assert message.endswith("): going on with engine=reference")
    assert reason in message
    if "off by" in reason:
        assert "log p of hidden at layer " in message


def test_the_proof_reaches_as_far_as_the_longest_prompt() -> None:
    """Below nine tokens nothing is wrong, and nothing longer will come."""
    lm = language_model(from_the_ninth_token())
    engine = engine_of(lm, HIDDEN, longest=8)
    assert isinstance(engine, SuffixEngine)
    require_exact(lm, engine, longest=8)


_REACH = 24


def a_window_counted_from_the_end(model: Any) -> Any:
    """Keys before the last so many count less: in a pack, the last are another suffix's.

    So many that a pack of the short prompt's suffixes does not come so far.
    """
    for layer in model.model.layers:
        layer.self_attn.forward = _fewer_keys(layer.self_attn.forward)
    return model


def _fewer_keys(original: Any) -> Any:
    def forward(hidden_states: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> Any:
        mask = attention_mask.clone()
        if mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, torch.finfo(hidden_states.dtype).min)
        mask[..., : max(0, mask.shape[-1] - _REACH)] -= 1
        return original(hidden_states, attention_mask=mask, **options)

    return forward


def test_packs_are_proven_as_long_as_they_get(caplog: pytest.LogCaptureFixture) -> None:
    model = llama()
    model.set_attn_implementation("eager")
    lm = language_model(a_window_counted_from_the_end(model))
    with caplog.at_level(logging.INFO, logger="ktrace"):
        engine = engine_of(lm, HIDDEN)
    assert isinstance(engine, SuffixEngine)
    assert not engine.packed
    assert "takes no packed suffixes: log p of hidden at layer " in caplog.text
    assert f" of {LONGEST} is off by " in caplog.text
    require_exact(lm, engine)


@contextmanager
def no_severing_in_the_path() -> Iterator[None]:
    original = Cell.path_until

    def path_until(self: Cell, layer: int, n_layers: int) -> Any:
        path = original(self, layer, n_layers)
        return path[:3] if isinstance(path, tuple) else path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cell, "path_until", path_until)
        patch.setattr(plan, "_planned", plan._planned.__wrapped__)
        yield


def test_a_mediator_is_proven_in_windows_that_part_late(caplog: pytest.LogCaptureFixture) -> None:
    """One that a user adds: it restores a window of MLP outputs, and severs attention."""
    lm = language_model(llama())
    both = Mediator("mlp_attn_severed", "mlp", severs="attn", window=1)
    assert isinstance(engine_of(lm, [both]), SuffixEngine)
    with no_severing_in_the_path(), caplog.at_level(logging.WARNING, logger="ktrace"):
        assert isinstance(engine_of(lm, [both]), ReferenceEngine)
    assert "log p of mlp_attn_severed-w" in caplog.text


def test_only_what_is_in_use_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of one mediator does not pay for the others."""
    seen: set[str] = set()
    original = SuffixEngine.restored_at

    def restored(self: Any, group: Any, mediators: Any, *rest: Any) -> Any:
        seen.update(mediator.key for mediator in mediators)
        return original(self, group, mediators, *rest)

    monkeypatch.setattr(SuffixEngine, "restored_at", restored)
    engine_of(language_model(llama()), [make_mediator("mlp", 10)])
    assert seen == {"mlp-w1", "mlp-w2", "mlp-w3", "mlp-w10"}


@pytest.mark.parametrize("name", sorted(SCORES_IN_FLOAT32))
def test_what_a_model_rounds_in_any_dtype_is_measured(name: str) -> None:
    """Part of it computes in float32: in float64 two right programs differ by 1e-7 there, too."""
    lm = model_of(name, torch.float64)
    engine = made(lm)
    assert isinstance(engine, SuffixEngine)
    assert engine.packed


def test_and_a_wrong_cell_is_above_what_is_measured() -> None:
    with without_severing():
        assert isinstance(made(model_of("GPTJForCausalLM", torch.float64)), ReferenceEngine)


def of_the_next_head(head: int, n_heads: int, n_features: int) -> slice:
    """Put where the next head is: its own values there."""
    return features_of((head + 1) % n_heads, n_heads, n_features)


def of_half_a_head_more(head: int, n_heads: int, n_features: int) -> slice:
    """Only of the last head, whose slice begins too early."""
    features = features_of(head, n_heads, n_features)
    width = features.stop - features.start
    return slice(features.start - width // 2 * (head == n_heads - 1), features.stop)


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("wrong", [of_the_next_head, of_half_a_head_more])
def test_a_wrong_slice_of_a_head_is_found(
    wrong: Callable[[int, int, int], slice],
    direction: Direction,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lm = language_model(llama())
    heads = [make_mediator("head", 1, direction)]
    assert isinstance(engine_of(lm, heads), SuffixEngine)
    monkeypatch.setattr(runs, "features_of", wrong)
    with caplog.at_level(logging.WARNING, logger="ktrace"):
        assert isinstance(engine_of(lm, heads), ReferenceEngine)
    assert f"log p of {heads[0].key} at layer 0, head " in caplog.text


def known_from_elsewhere(call: BlockCall) -> BlockCall:
    """What a projection gives is taken from the run that it is not of."""
    return replace(call, known=[replace(p, from_source=not p.from_source) for p in call.known])


def known_one_before(call: BlockCall) -> BlockCall:
    one_before = [
        replace(p, positions=Index((p.positions.numbers - 1).clip(0))) for p in call.known
    ]
    return replace(call, known=one_before)


def computed_nowhere(call: BlockCall) -> BlockCall:
    return replace(call, computed={part: Index([0]) for part in call.computed})


@pytest.mark.parametrize("wrong", [known_from_elsewhere, known_one_before, computed_nowhere])
def test_what_is_wrongly_left_out_is_found(
    wrong: Callable[[BlockCall], BlockCall], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = walk.Walk._called
    monkeypatch.setattr(
        walk.Walk, "_called", lambda self, call, *rest: original(self, wrong(call), *rest)
    )
    assert isinstance(engine_of(language_model(llama()), HIDDEN), ReferenceEngine)


def test_mediators_of_some_roles_are_compared_where_they_act(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also at positions where no other is."""
    lm = language_model(llama())
    at_last_subject = [make_mediator("hidden", 1, positions=["last_subject"])]
    assert isinstance(engine_of(lm, at_last_subject, longest=15), SuffixEngine)
    original = SuffixEngine.restored_at

    def off_by_one(self: Any, *arguments: Any) -> Any:
        for case, found in original(self, *arguments):
            yield case, {key: {m: s + 1 for m, s in of.items()} for key, of in found.items()}

    monkeypatch.setattr(SuffixEngine, "restored_at", off_by_one)
    assert isinstance(engine_of(lm, at_last_subject, longest=15), ReferenceEngine)


def the_next_source(sources: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(source + 1 for source in sources)


def all_but_the_last(sources: tuple[int, ...]) -> tuple[int, ...]:
    """Where a group is cut."""
    return sources[:-1] or sources


def none_before_the_last(sources: tuple[int, ...]) -> tuple[int, ...]:
    return sources[-1:]


@pytest.mark.parametrize("wrong", [the_next_source, all_but_the_last, none_before_the_last])
def test_a_cut_of_other_sources_is_found(
    wrong: Callable[[tuple[int, ...]], tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lm = language_model(llama())
    edges = [make_mediator("knockout", 2)]
    assert isinstance(engine_of(lm, edges), SuffixEngine)
    original = walk.call_block

    def call_block(*arguments: Any) -> Any:
        *others, cut = arguments
        last = max((source for sources in cut.values() for source in sources), default=0)
        changed = {row: wrong(sources) for row, sources in cut.items()}
        kept = {r: tuple(s for s in sources if s <= last) for r, sources in changed.items()}
        return original(*others, kept)

    monkeypatch.setattr(walk, "call_block", call_block)
    with caplog.at_level(logging.WARNING, logger="ktrace"):
        assert isinstance(engine_of(lm, edges), ReferenceEngine)
    assert "log p of knockout-w" in caplog.text


def test_a_cut_in_one_layer_too_few_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only windows of several layers tell."""
    lm = language_model(llama())
    edges = [make_mediator("knockout", 2)]
    original, layers = walk.call_block, []

    def call_block(recording: Any, layer: int, *arguments: Any) -> Any:
        *others, cut = arguments
        layers.append(layer)
        return original(recording, layer, *others, {} if layer == lm.n_layers - 1 else cut)

    monkeypatch.setattr(walk, "call_block", call_block)
    assert isinstance(engine_of(lm, edges), ReferenceEngine)
    assert lm.n_layers - 1 in layers


def judgements(monkeypatch: pytest.MonkeyPatch) -> list[list[Mediator]]:
    """Whenever a model is judged, of which mediators."""
    judged: list[list[Mediator]] = []
    original = judge.proven

    def proven(lm: LanguageModel, use: Use, limits: Limits) -> Verdict:
        judged.append(list(use.mediators))
        return original(lm, use, limits)

    monkeypatch.setattr(judge, "proven", proven)
    return judged


def test_a_model_is_judged_once_for_a_use_and_again_when_it_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm, judged = language_model(llama()), judgements(monkeypatch)
    for _ in range(2):
        assert isinstance(judged_engine(lm, HIDDEN), SuffixEngine)
    assert len(judged) == 1
    judged_engine(lm, HIDDEN, longest=15)
    judged_engine(lm, ALL, longest=15)
    # Of more mediators those alone that are new.
    assert judged[1:] == [HIDDEN, ALL[1:]]
    # Shorter prompts and fewer mediators hold with these; longer ones do not.
    judged_engine(lm, HIDDEN, longest=14)
    judged_engine(lm, ALL[1:3])
    assert len(judged) == 3
    judged_engine(lm, HIDDEN, longest=16)
    assert len(judged) == 4
    blocks_give(lm.model, lambda out, _: out * (1 + 0.1 * out.shape[1]))
    assert isinstance(judged_engine(lm, HIDDEN), ReferenceEngine)
    assert len(judged) == 5


def between_the_longest_and_the_shortest() -> Any:
    """Its blocks do otherwise with ten or eleven tokens."""
    return blocks_give(llama(), lambda out, _: out * (1.5 if out.shape[1] in (10, 11) else 1.0))


def test_suffixes_between_are_proven() -> None:
    assert isinstance(
        engine_of(language_model(between_the_longest_and_the_shortest()), HIDDEN), ReferenceEngine
    )


def test_each_of_the_facts_meets_every_layer_and_every_length() -> None:
    """In the long prompt each cell is compared on one of them."""
    lm = language_model(micro_llama(8))
    asked = expected.asked_of_longest(lm, HIDDEN, Shape(40, 1))
    cells = [set(of_case) for of_case in asked.cells]
    assert not cells[0] & cells[1]
    every = {(cell.layer, cell.place) for cell in cells[0] | cells[1]}
    layers, places = (sorted(set(axis)) for axis in zip(*every, strict=True))
    assert len(every) == len(layers) * len(places)
    assert layers == [0, 4, 6]
    for of_case in cells:
        assert {cell.layer for cell in of_case} == set(layers)
        assert {cell.place for cell in of_case} == set(places)


def test_as_many_layers_are_walked_as_fill_a_pack() -> None:
    lm = replace(language_model(micro_llama(8)), d_embedding=256)
    walked = {
        n_tokens: expected._filling(lm, HIDDEN, [0, 4, 6], n_tokens) for n_tokens in (20, 30, 128)
    }
    assert walked == {20: [0, 1, 2, 3, 4, 5, 6], 30: [0, 3, 4, 5, 6], 128: [0, 4, 6]}


def test_logits_of_the_answer_alone_are_the_same() -> None:
    lm = language_model(llama())
    case = known_case(lm, 1, 9)
    whole, few = (ReferenceEngine(lm, NOISE, few_logits=few) for few in (False, True))
    assert (whole.few_logits, few.few_logits) == (False, True)
    assert largest_difference(scores(few, [case], ALL), scores(whole, [case], ALL)) <= 1e-12


def test_the_proof_asks_for_no_more_room_than_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of the reference engine are cut until they fit."""
    lm, sizes = language_model(llama()), []
    original = ReferenceEngine._logits

    def in_little_room(self: Any, case: Any, edits: Any, corrupted: Any = (True,)) -> Any:
        sizes.append(len(corrupted))
        if len(corrupted) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return original(self, case, edits, corrupted)

    monkeypatch.setattr(ReferenceEngine, "_logits", in_little_room)
    assert isinstance(engine_of(lm, HIDDEN), SuffixEngine)
    assert {*sizes} > {1, 2}
