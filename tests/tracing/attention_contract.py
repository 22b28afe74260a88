"""What must hold for every engine of heads and edges, beside `EngineContract`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ktrace.facts import Span
from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from ktrace.terms import METRICS, SOURCE_GROUPS, Direction
from ktrace.tracing.clean import clean_run
from ktrace.tracing.engine import Case, Engine
from ktrace.tracing.groups import group_cases
from ktrace.tracing.mediators import Mediator, Place, make_mediator
from ktrace.tracing.noise import Noise, PromptPair
from tests.support.models import known_case, micro_llama
from tests.tracing.engine_contract import EXACT, NOISE, Make

EVERYWHERE = [make_mediator("head", 1, direction, ["all"]) for direction in Direction]
KNOCKOUT = make_mediator("knockout", 2)


class _CutsNothing(Mediator):
    def sources(self, place: Place, span: Span, n_positions: int) -> tuple[int, ...]:
        return ()

    def places(self, span: Span, n_positions: int) -> list[Place]:
        return [0]


class _CutsAllOthers(_CutsNothing):
    def sources(self, place: Place, span: Span, n_positions: int) -> tuple[int, ...]:
        return tuple(range(n_positions - 1))


def _as_knockout(kind: type[Mediator]) -> Mediator:
    return kind("knockout", "attn", window=1, query="last")


def probabilities(engine: Engine, case: Case, mediators: Sequence[Mediator]) -> dict[str, Any]:
    [(_, found)] = engine.restored([case], mediators)
    return {key: scores["probability"] for key, scores in found.items()}


@contextmanager
def attending_to_itself(lm: LanguageModel, layer: int) -> Iterator[None]:
    """By hand: what a Llama's attention gives at the last position that sees itself alone."""
    attention = lm.blocks[layer].self_attn
    config = lm.model.config
    groups = config.num_attention_heads // config.num_key_value_heads

    def edit(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        values = module.v_proj(states[:, -1]).view(len(states), config.num_key_value_heads, -1)
        alone = module.o_proj(values.repeat_interleave(groups, dim=1).flatten(1))
        changed = output[0].clone()
        changed[:, -1] = alone
        return (changed, *output[1:])

    handle = attention.register_forward_hook(edit, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class AttentionContract:
    """Inherited by the tests of each engine, which say how it is made."""

    make: Make  # a static method

    @pytest.fixture(scope="class")
    @classmethod
    def attended(cls, llama: LanguageModel) -> Case:
        return known_case(llama, 3, 6, 2, 5)

    def engine_with(self, lm: LanguageModel, noise: Noise = NOISE) -> Engine:
        return self.make(lm, noise)

    def test_the_only_head_is_the_attention(self) -> None:
        model = micro_llama(n_heads=1)
        lm = language_model(model)
        case = known_case(lm, 3, 6, 2, 5)
        attn = [make_mediator("attn", 1, direction) for direction in Direction]
        found = probabilities(self.engine_with(lm), case, [*EVERYWHERE, *attn])
        for head, whole in zip(EVERYWHERE, attn, strict=True):
            assert np.ptp(found[whole.key]) > 0.01
            np.testing.assert_allclose(found[head.key][:, :, 0], found[whole.key], atol=EXACT)

    def test_a_head_is_a_slice_of_the_projections_input(
        self, llama: LanguageModel, attended: Case
    ) -> None:
        """By hand, with torch's own hooks; grouped queries have a head each."""
        other = known_case(llama, 8, 6, 2, 5).input_ids
        pair = replace(attended, corrupted_ids=(*attended.input_ids[:2], *other[2:5], 4))
        engine = self.engine_with(llama, PromptPair({}))
        found = probabilities(engine, pair, EVERYWHERE)
        layer, head, position = 2, 3, 4
        projection = llama.blocks[layer].self_attn.o_proj
        width = projection.in_features // llama.model.config.num_attention_heads
        kept: dict[str, torch.Tensor] = {}
        for mediator, ids, source in (
            (EVERYWHERE[0], pair.corrupted_ids, pair.input_ids),
            (EVERYWHERE[1], pair.input_ids, pair.corrupted_ids),
        ):

            def keep(module: Any, args: Any) -> None:
                kept["source"] = args[0][0, position].clone()

            def put(module: Any, args: Any) -> Any:
                changed = args[0].clone()
                of_head = slice(head * width, (head + 1) * width)
                changed[0, position, of_head] = kept["source"][of_head]
                return (changed,)

            with projection.register_forward_pre_hook(keep):
                clean_run(llama, source, pair.answer_ids)
            with projection.register_forward_pre_hook(put):
                p = clean_run(llama, ids, pair.answer_ids).probability
            cells = found[mediator.key]
            assert cells.shape == (1, llama.n_layers, 4, 6)
            assert cells[0, layer, head, position] == pytest.approx(p, abs=EXACT)
            assert np.ptp(cells[0, layer, :, position]) > 10 * EXACT

    def test_heads_before_the_subject_have_no_effect(
        self, llama: LanguageModel, attended: Case
    ) -> None:
        engine = self.engine_with(llama)
        [(_, baseline)] = engine.baseline([attended])
        [(_, found)] = engine.restored([replace(attended, baseline=baseline)], EVERYWHERE)
        for mediator in EVERYWHERE:
            for metric in METRICS:
                before = found[mediator.key][metric][..., : attended.span.start]
                base = baseline.base(mediator)[metric]
                assert (before == base[:, None, None, None]).all()

    def test_cutting_nothing_gives_the_clean_run(
        self, llama: LanguageModel, attended: Case
    ) -> None:
        nothing = _as_knockout(_CutsNothing)
        found = probabilities(self.engine_with(llama), attended, [nothing])[nothing.key]
        p_clean = clean_run(llama, attended.input_ids, attended.answer_ids).probability
        assert found.shape == (NOISE.samples, llama.n_layers, 1)
        np.testing.assert_allclose(found, p_clean, atol=EXACT)

    def test_without_all_others_a_query_attends_to_itself(
        self, llama: LanguageModel, attended: Case
    ) -> None:
        alone = _as_knockout(_CutsAllOthers)
        found = probabilities(self.engine_with(llama), attended, [alone])[alone.key]
        p_clean = clean_run(llama, attended.input_ids, attended.answer_ids).probability
        for layer in range(llama.n_layers):
            with attending_to_itself(llama, layer):
                p = clean_run(llama, attended.input_ids, attended.answer_ids).probability
            np.testing.assert_allclose(found[:, layer, 0], p, atol=EXACT)
        assert np.abs(found - p_clean).max() > 0.01

    def test_groups_cut_their_sources_together(self, llama: LanguageModel, attended: Case) -> None:
        """Two positions before the subject, three of it, none behind it; and itself."""
        found = probabilities(self.engine_with(llama), attended, [KNOCKOUT])[KNOCKOUT.key]
        places = KNOCKOUT.places(attended.span, 6)
        assert places == [0, 1, 2, 3, 4, -1, -2, -4]
        sources = {p: KNOCKOUT.sources(p, attended.span, 6) for p in places}
        assert sources[-1] == (0, 1)
        assert sources[-2] == (2, 3, 4)
        assert sources[-4] == (5,)
        single = known_case(llama, 3, 6, 2, 3)
        of_one = probabilities(self.engine_with(llama), single, [KNOCKOUT])[KNOCKOUT.key]
        places = KNOCKOUT.places(single.span, 6)
        assert len(places) == 5 + len(SOURCE_GROUPS)
        np.testing.assert_allclose(
            of_one[..., places.index(-2)], of_one[..., places.index(2)], atol=EXACT
        )
        assert np.ptp(found) > 0.01

    def test_windows_in_one_walk_are_those_alone(
        self, llama: LanguageModel, attended: Case
    ) -> None:
        mediators = [make_mediator(n, w) for n in ("mlp", "attn", "knockout") for w in (1, 2, 3, 9)]
        engine = self.engine_with(llama)
        together = probabilities(engine, attended, mediators)
        for mediator in mediators:
            alone = probabilities(engine, attended, [mediator])[mediator.key]
            np.testing.assert_allclose(together[mediator.key], alone, atol=EXACT)

    def test_facts_of_other_subjects_share_a_group(self, llama: LanguageModel) -> None:
        """Their roles are at other positions, and their groups of sources differ."""
        cases = [
            replace(known_case(llama, seed, 7, 1, stop), index=seed)
            for seed, stop in enumerate((2, 4, 3, 4))
        ]
        engine = self.engine_with(llama)
        mediators = [make_mediator("head", 1), make_mediator("hidden", 1), KNOCKOUT]
        for group in group_cases(cases, engine.cases_together):
            for case, found in engine.restored(group, mediators):
                alone = probabilities(engine, case, mediators)
                for key, expected in alone.items():
                    np.testing.assert_allclose(found[key]["probability"], expected, atol=EXACT)

    def test_positions_by_role_are_those_of_everywhere(
        self, llama: LanguageModel, attended: Case
    ) -> None:
        roles = ["last", "last_subject"]
        some = [make_mediator(name, 2, positions=roles) for name in ("hidden", "mlp", "head")]
        every = [make_mediator(name, 2, positions=["all"]) for name in ("hidden", "mlp", "head")]
        found = probabilities(self.engine_with(llama), attended, [*some, *every])
        for chosen, whole in zip(some, every, strict=True):
            np.testing.assert_allclose(found[chosen.key], found[whole.key][..., [4, 5]], atol=EXACT)
