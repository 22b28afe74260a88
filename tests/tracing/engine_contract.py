"""What must hold for every engine: the definition of causal tracing, not of one program.

An engine inherits it in test_truths.py, and is one of `ENGINES` for tests against numbers that are
known otherwise (on paper, published).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import pytest
import torch

from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from ktrace.terms import METRICS, PUBLISHED_MEDIATORS
from ktrace.tracing.clean import clean_run
from ktrace.tracing.engine import Baseline, Case, Engine, Scores
from ktrace.tracing.groups import group_cases
from ktrace.tracing.mediators import make_mediator
from ktrace.tracing.noise import Noise, PromptPair, RandomNoise
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.suffix.engine import SuffixEngine
from tests.support.families import both_directions
from tests.support.models import VOCABULARY, known_case, micro_llama
from tests.tracing.agreement import AS_WIDE, largest_difference, scores

Make = Callable[[LanguageModel, Noise], Engine]


def make_suffix(lm: LanguageModel, noise: Noise) -> Engine:
    return SuffixEngine(lm, noise, limits=AS_WIDE)


def make_packed(lm: LanguageModel, noise: Noise) -> Engine:
    return SuffixEngine(lm, noise, packed=True, limits=AS_WIDE)


ENGINES: dict[str, Make] = {
    "reference": ReferenceEngine,
    "suffix": make_suffix,
    "suffix-packed": make_packed,
}
every_engine = pytest.mark.parametrize("make", list(ENGINES.values()), ids=list(ENGINES))

NOISE = RandomNoise(1.5, samples=3, seed=7)
EXACT = 1e-6  # of probabilities: float32 rounding
ALL = both_directions([make_mediator(name, 2) for name in PUBLISHED_MEDIATORS])
HIDDEN = [mediator for mediator in ALL if mediator.site == "hidden"]


class QuietFirst(RandomNoise):
    """Random noise, but for the first sample, which leaves the embeddings as they are."""

    def corrupt(self, case: Case, embeddings: torch.Tensor) -> torch.Tensor:
        corrupted = super().corrupt(case, embeddings)
        corrupted[0] = embeddings
        return corrupted


@dataclass
class Noted:
    """A noise that keeps what it was asked for, and what it gave."""

    noise: Noise
    asked: list[torch.Tensor] = field(default_factory=list)
    given: list[torch.Tensor] = field(default_factory=list)

    @property
    def samples(self) -> int:
        return self.noise.samples

    def corrupt(self, case: Case, embeddings: torch.Tensor) -> torch.Tensor:
        self.asked.append(embeddings.clone())
        self.given.append(self.noise.corrupt(case, embeddings))
        return self.given[-1]

    def foils(self, case: Case) -> None:
        """None of its own."""


def corrupted(engine: Engine, case: Case) -> np.ndarray:
    [(_, baseline)] = engine.baseline([case])
    return baseline.corrupted["probability"]


class EngineContract:
    """Inherited by the tests of each engine, which say how it is made."""

    make: Make  # a static method

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, llama: LanguageModel) -> Case:
        """Two positions before the subject, one after it."""
        return known_case(llama, 3, 6, 2, 5)

    @pytest.fixture(scope="class")
    @classmethod
    def p_clean(cls, llama: LanguageModel, case: Case) -> float:
        return clean_run(llama, case.input_ids, case.answer_ids).probability

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, llama: LanguageModel) -> Engine:
        return cls.make(llama, NOISE)

    @pytest.fixture(scope="class")
    @classmethod
    def restored(cls, engine: Engine, case: Case) -> dict[str, Scores]:
        """Scores of every restoration, by mediator."""
        [(_, found)] = engine.restored([case], ALL)
        return dict(found)

    def test_effects_are_large_enough_to_tell(
        self, engine: Engine, case: Case, restored: dict[str, Scores], p_clean: float
    ) -> None:
        """Else every other test here would pass on a model that does not listen."""
        for key, of_mediator in restored.items():
            after = of_mediator["probability"][:, :, case.span.start :]
            assert np.ptp(after) > 0.01, key
        assert np.abs(p_clean - corrupted(engine, case)).max() > 0.01

    def test_restoring_what_is_not_corrupted_changes_nothing(
        self, llama: LanguageModel, case: Case, p_clean: float
    ) -> None:
        """Nor does severing, or noising: without noise both runs are clean, whatever is done."""
        engine = self.make(llama, QuietFirst(1.5, samples=3, seed=7))
        assert corrupted(engine, case)[0] == pytest.approx(p_clean, abs=EXACT)
        for key, found in scores(engine, [case], ALL).items():
            np.testing.assert_allclose(found[0], p_clean, atol=EXACT, err_msg=str(key))
            assert np.ptp(found[1:]) > 0.01

    def test_zero_noise_gives_no_total_effect(
        self, llama: LanguageModel, case: Case, p_clean: float
    ) -> None:
        quiet = self.make(llama, replace(NOISE, scale=0.0))
        np.testing.assert_allclose(corrupted(quiet, case), p_clean, atol=EXACT)

    def test_the_last_layer_at_the_last_position_is_all_of_the_other_run(
        self, engine: Engine, case: Case, restored: dict[str, Scores], p_clean: float
    ) -> None:
        """Restored it gives p_clean; noised, p_corrupted of each sample."""
        p_corrupted = corrupted(engine, case)
        assert np.ptp(p_corrupted) > 1e-3
        for mediator in HIDDEN:
            last = restored[mediator.key]["probability"][:, -1, -1]
            expected = p_corrupted if mediator.noises else np.full_like(last, p_clean)
            np.testing.assert_allclose(last, expected, atol=EXACT)

    def test_positions_before_the_subject_have_no_effect(
        self, llama: LanguageModel, engine: Engine
    ) -> None:
        """To the bit, in every metric, also where facts share a batch."""
        cases = [known_case(llama, seed, 4, 2, 3) for seed in range(3)]
        for group in group_cases(cases, engine.cases_together):
            baselines = {case.index: baseline for case, baseline in engine.baseline(group)}
            for case, found in engine.restored(group, ALL):
                for mediator, metric in product(ALL, METRICS):
                    of_run = baselines[case.index]
                    values = (of_run.clean if mediator.noises else of_run.corrupted)[metric]
                    before = found[mediator.key][metric][:, :, : case.span.start]
                    assert before.shape[-1] > 0
                    assert (before == values[:, None, None]).all(), mediator.key

    def test_a_pair_goes_from_one_prompt_to_the_other(
        self, llama: LanguageModel, case: Case
    ) -> None:
        """Its runs are those of the two prompts, and the last layer's last position is all."""
        other = known_case(llama, 8, 6, 2, 5).input_ids
        mixed = (*case.input_ids[:2], *other[2:5], case.input_ids[5])
        pair = replace(case, corrupted_ids=mixed)
        engine = self.make(llama, PromptPair({}))
        p = [clean_run(llama, ids, case.answer_ids).probability for ids in (case.input_ids, mixed)]
        assert abs(p[0] - p[1]) > 0.01
        [(_, baseline)] = engine.baseline([pair])
        assert baseline.clean["probability"] == pytest.approx([p[0]], abs=EXACT)
        assert baseline.corrupted["probability"] == pytest.approx([p[1]], abs=EXACT)
        pair = replace(pair, baseline=baseline)
        [(_, found)] = engine.restored([pair], ALL)
        for mediator in ALL:
            of_mediator = found[mediator.key]["probability"]
            base, source = reversed(p) if not mediator.noises else p
            np.testing.assert_allclose(of_mediator[:, :, :2], base, atol=EXACT)
            assert np.ptp(of_mediator[:, :, 2:]) > 0.01
            if mediator.site == "hidden":
                np.testing.assert_allclose(of_mediator[:, -1, -1], source, atol=EXACT)

    def test_a_pair_of_equal_prompts_has_no_effect(self, llama: LanguageModel, case: Case) -> None:
        engine = self.make(llama, PromptPair({}))
        same = replace(case, corrupted_ids=case.input_ids)
        p_clean = clean_run(llama, case.input_ids, case.answer_ids).probability
        for key, found in scores(engine, [same], ALL).items():
            np.testing.assert_allclose(found, p_clean, atol=EXACT, err_msg=str(key))

    def test_every_pass_sees_the_same_noise(self, llama: LanguageModel, case: Case) -> None:
        """It is added to the subject's clean embeddings, and to nothing else."""
        noise = Noted(NOISE)
        engine = self.make(llama, noise)
        scores(engine, [case], [make_mediator("hidden_mlp_severed", 1)])
        corrupted(engine, case)
        subject = case.input_ids[case.span.start : case.span.stop]
        embedded = llama.embedding_weight[list(subject)]
        assert len(noise.given) > 1
        for asked, given in zip(noise.asked, noise.given, strict=True):
            assert torch.equal(asked, embedded)
            assert torch.equal(given, noise.given[0])

    def test_a_case_does_not_depend_on_its_company(
        self, llama: LanguageModel, engine: Engine, case: Case, restored: dict[str, Scores]
    ) -> None:
        """Of its own shape, and of others; on either side."""
        others = [known_case(llama, 4, 6, 2, 5), known_case(llama, 5, 5, 2, 4)]
        mediators = [ALL[2], ALL[4], ALL[5]]
        alone = {(case.index, m.key): restored[m.key]["probability"] for m in mediators}
        for company in ([*others, case], [case, *others[:1]]):
            together = scores(engine, company, mediators)
            ours = {key: together[key] for key in alone}
            assert largest_difference(ours, alone) <= EXACT
        found = {}
        for group in group_cases([*others, case], engine.cases_together):
            found |= {each.index: baseline for each, baseline in engine.baseline(group)}
        np.testing.assert_allclose(
            found[case.index].corrupted["probability"], corrupted(engine, case), atol=EXACT
        )

    def test_the_same_groups_give_the_same_bits(
        self, llama: LanguageModel, case: Case, restored: dict[str, Scores]
    ) -> None:
        """Asked again, of an engine made again."""
        [(_, again)] = self.make(llama, NOISE).restored([case], ALL)
        for key, by_metric in restored.items():
            for metric, values in by_metric.items():
                assert (again[key][metric] == values).all(), (key, metric)

    def test_float64_agrees_to_its_own_rounding(
        self, case: Case, restored: dict[str, Scores]
    ) -> None:
        """Noise shrinks, bugs do not: float32 differs from float64 by float32 rounding alone."""
        wide = self.make(language_model(micro_llama().double()), NOISE)
        mediator = ALL[3]
        [(_, found)] = wide.restored([case], [mediator])
        exact = found[mediator.key]["probability"]
        assert 0 < np.abs(restored[mediator.key]["probability"] - exact).max() < 1e-5

    def test_the_clean_run_is_its_own_baseline(self, engine: Engine, case: Case) -> None:
        [(_, baseline)] = engine.baseline([case])
        clean = baseline.clean
        assert clean["kl"] == pytest.approx(0, abs=1e-5)
        assert clean["probability"] == pytest.approx(np.exp(clean["log_probability"]))
        assert case.answer_ids not in baseline.foil_ids
        assert (baseline.corrupted["kl"] > 0.01).any()

    def test_what_a_baseline_says_is_kept_to_the_bit(
        self, engine: Engine, case: Case, restored: dict[str, Scores]
    ) -> None:
        """A corrupted run in other company differs by rounding, which would look like an effect."""
        [(_, baseline)] = engine.baseline([case])
        stored = Baseline(
            clean={metric: values + 1e-3 for metric, values in baseline.clean.items()},
            corrupted={metric: values + 1e-3 for metric, values in baseline.corrupted.items()},
            foil_ids=(((case.answer_ids[0] + 1) % VOCABULARY,),) * NOISE.samples,
        )
        some = [mediator for mediator in ALL if mediator.name in ("hidden", "mlp")]
        assert len(some) == 4
        [(_, found)] = engine.restored([replace(case, baseline=stored)], some)
        for mediator, metric in product(some, METRICS):
            before = found[mediator.key][metric][:, :, : case.span.start]
            unchanged = (stored.clean if mediator.noises else stored.corrupted)[metric]
            assert (before == unchanged[:, None, None]).all()
        differing = found["hidden"]["logit_difference"] - restored["hidden"]["logit_difference"]
        assert np.abs(differing[:, 0, -1]).max() > 1e-2  # another foil
        if isinstance(engine, SuffixEngine):  # which need not run it
            assert (found["hidden"]["logit"][:, -1, -1] == stored.clean["logit"]).all()
            noised = found["hidden-noise"]["logit"][:, -1, -1]
            assert (noised == stored.corrupted["logit"]).all()

    def test_the_model_is_left_as_it_was(
        self, llama: LanguageModel, engine: Engine, case: Case
    ) -> None:
        """Also after an exception in the middle of a pass."""
        bad = replace(case, input_ids=(*case.input_ids[:-1], 10**6))
        with pytest.raises(IndexError):
            corrupted(engine, bad)
        scores(engine, [case], ALL[:1])
        for module in llama.model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
            assert "forward" not in module.__dict__
        assert torch.is_inference_mode_enabled() is False
