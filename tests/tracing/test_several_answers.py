"""Several right answers: their probabilities are added, in every run and by every engine.

The truth is each answer traced by itself, or transformers alone.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from ktrace.config import DatasetConfig
from ktrace.config.compose import composed
from ktrace.facts import Fact, Span
from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from ktrace.pipeline.records import case_of, clean_record
from ktrace.terms import METRICS
from ktrace.tracing.answers import baselines, branches, distinct, restorations
from ktrace.tracing.candidates import clean_fact
from ktrace.tracing.encode import encode_facts
from ktrace.tracing.encoded import EncodedFact
from ktrace.tracing.engine import Baseline, Case, Engine, Scores
from tests.facts.kinds import KINDS
from tests.support.configs import configured
from tests.support.models import known_case, micro_llama
from tests.tracing.engine_contract import ALL, NOISE, Make, every_engine

Ids = tuple[int, ...]
# One token each; with some in common; and such as need runs of their own.
FIRST_TOKENS: list[Ids] = [(11,), (12,), (13,)]
SHARED: list[Ids] = [(11, 21), (11, 22), (14, 15, 16), (11, 23), (17,)]
every_kind_of_answers = pytest.mark.parametrize(
    "answers", [FIRST_TOKENS, SHARED], ids=["first tokens", "whole answers"]
)


def of(case: Case, answers: Sequence[Ids]) -> Case:
    return replace(case, answer_ids=answers[0], also=tuple(answers[1:]))


def by_itself(engine: Engine, case: Case) -> tuple[Baseline, dict[str, Scores]]:
    [(_, baseline)] = engine.baseline([case])
    [(_, restored)] = engine.restored([case], ALL)
    return baseline, dict(restored)


def both(engine: Engine, group: Sequence[Case]) -> list[tuple[Baseline, dict[str, Scores]]]:
    """Baselines, and the restorations that go on from them, in the order of the group."""
    found = {case.index: baseline for case, baseline in baselines(engine, group)}
    group = [replace(case, baseline=found[case.index]) for case in group]
    restored = {case.index: dict(scores) for case, scores in restorations(engine, group, ALL)}
    return [(found[case.index], restored[case.index]) for case in group]


@every_engine
@every_kind_of_answers
def test_probabilities_are_added(llama: LanguageModel, make: Make, answers: list[Ids]) -> None:
    case, engine = known_case(llama, 3), make(llama, NOISE)
    [(baseline, restored)] = both(engine, [of(case, answers)])
    alone = [by_itself(engine, of(case, [ids])) for ids in answers]
    for run in ("clean", "corrupted"):
        expected = sum(getattr(own, run)["probability"] for own, _ in alone)
        scores = getattr(baseline, run)
        np.testing.assert_allclose(scores["probability"], expected, rtol=1e-5)
        np.testing.assert_allclose(scores["log_probability"], np.log(expected), rtol=1e-5)
    for mediator in ALL:
        expected = sum(own[mediator.key]["probability"] for _, own in alone)
        scores = restored[mediator.key]
        np.testing.assert_allclose(scores["probability"], expected, rtol=2e-4, atol=1e-7)
        np.testing.assert_allclose(np.exp(scores["log_probability"]), expected, rtol=2e-4)
        # Those of the case's own answer alone, to the rounding of another batch.
        for metric in ("logit", "kl"):
            own = alone[0][1][mediator.key][metric]
            np.testing.assert_allclose(scores[metric], own, rtol=2e-4, atol=2e-4)
        # Where restoring changes nothing it gives the baseline's very scores.
        for metric in METRICS:
            before = scores[metric][..., : case.span.start]
            assert (before == baseline.base(mediator)[metric][:, None, None]).all()


@every_engine
def test_what_restoring_does_not_change_has_the_stored_scores(
    llama: LanguageModel, make: Make
) -> None:
    """To the bit, also where they were computed on another device or in other company."""
    engine, case = make(llama, NOISE), of(known_case(llama, 3), SHARED)
    [(_, baseline)] = baselines(engine, [case])
    stored = {metric: scores + 2**-20 for metric, scores in baseline.corrupted.items()}
    case = replace(case, baseline=replace(baseline, corrupted=stored))
    [(_, restored)] = restorations(engine, [case], ALL[:1])
    for metric in METRICS:
        before = restored[ALL[0].key][metric][..., : case.span.start]
        assert (before == stored[metric][:, None, None]).all()


@every_engine
def test_a_foil_is_no_right_answer(llama: LanguageModel, make: Make) -> None:
    """Else the difference would be between two right answers."""
    case, engine = known_case(llama, 3), make(llama, NOISE)
    [(_, plain)] = engine.baseline([of(case, [(11,)])])
    [likely] = set(plain.foil_ids)
    [(_, second)] = engine.baseline([of(case, [(11,), likely])])
    assert likely not in second.foil_ids
    # In whole answers, where they part from the own one, and nowhere else.
    [(_, plain)] = engine.baseline([of(case, [(11, 21)])])
    [(one, two)] = set(plain.foil_ids)
    [(baseline, _)] = both(engine, [of(case, [(11, 21), (11, two), (one, 30)])])
    [(other, another)] = set(baseline.foil_ids)
    assert other != one
    assert another != two


@every_engine
def test_company_changes_no_number(llama: LanguageModel, make: Make) -> None:
    """Facts of one and of several answers, and of others of other lengths, in one group."""
    engine = make(llama, NOISE)
    cases = [known_case(llama, seed) for seed in range(4)]
    given = [[cases[0].answer_ids], SHARED, FIRST_TOKENS, SHARED[2:]]
    group = [of(case, answers) for case, answers in zip(cases, given, strict=True)]
    for together, case in zip(both(engine, group), group, strict=True):
        [(baseline, restored)] = both(engine, [case])
        for metric in METRICS:
            for run in ("clean", "corrupted"):
                found, expected = (getattr(one, run)[metric] for one in (together[0], baseline))
                np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)
            for key, scores in restored.items():
                found = together[1][key][metric]
                np.testing.assert_allclose(found, scores[metric], rtol=2e-4, atol=2e-4)


def test_answers_that_others_begin_are_counted_once() -> None:
    assert distinct([(1, 2), (3,), (1, 2), (3, 4), (1, 5)]) == [(1, 2), (3,), (1, 5)]
    assert distinct([(1,), (1,)]) == [(1,)]
    assert distinct([(1, 2, 3), (1, 2)]) == [(1, 2)]
    assert branches([(1, 2), (3,), (1, 5), (4,)]) == [[(1, 2), (1, 5)], [(3,), (4,)]]


# The model's answers, as text.

FACT = Fact(0, "The Kingdom was the land of", "Kingdom", "the", also=("Paris", "Moscow is"))


def model(kind: str = "byte_level_bpe") -> LanguageModel:
    tokenizer = KINDS[kind]()
    return language_model(micro_llama(2, vocabulary=len(tokenizer)), tokenizer)


def encoded(lm: LanguageModel, fact: Fact, answer: str) -> EncodedFact:
    settings = configured(DatasetConfig, name="made-up", path=None, answer=answer)
    [found] = encode_facts(lm, [fact], settings)
    return found


def probability(lm: LanguageModel, prompt: Ids, answer: Ids) -> float:
    """From transformers alone."""
    with torch.inference_mode():
        logits = lm.model(torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :]
    p = logits.double().softmax(-1)
    return float(np.prod([p[n, token] for n, token in enumerate(answer)]))


@pytest.mark.parametrize("answer", ["first_token", "full"])
def test_a_clean_probability_is_of_every_answer(answer: str) -> None:
    lm = model()
    found = encoded(lm, FACT, answer)
    assert len(found.answers) == 3
    assert (found.n_answer > 1) is (answer == "full")
    ids = found.prompt.input_ids
    with torch.inference_mode():
        first, second = lm.model(torch.tensor([ids])).logits[0, -1].topk(2).indices.tolist()
        third = int(lm.model(torch.tensor([[*ids, second]])).logits[0, -1].argmax())
    # As likely as each other, or nothing would be seen of the smaller one.
    likely = replace(found, answer_ids=(first,), also=((second, third),))
    for given in (found, likely):
        run, _ = clean_fact(lm, FACT, given)
        assert run is not None
        each = [probability(lm, ids, answer_ids) for answer_ids in given.answers]
        assert run.probability == pytest.approx(sum(each), rel=1e-5)
    assert max(each) < 0.99 * sum(each)


@pytest.mark.parametrize("answer", ["first_token", "full"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_fact_is_a_candidate_if_one_of_them_is_predicted(answer: str, place: int) -> None:
    """And that one is the case's own, wherever it stands in the list."""
    lm = model()
    ids = list(encoded(lm, FACT, answer).prompt.input_ids)
    n_prompt = len(ids)
    for _ in range(2):
        with torch.inference_mode():
            ids.append(int(lm.model(torch.tensor([ids])).logits[0, -1].argmax()))
    said = lm.tokenizer.decode(ids[n_prompt:]).strip()
    texts = ["Paris", "Moscow"]
    assert clean_fact(lm, FACT, encoded(lm, FACT, answer))[1] == "another answer is predicted"
    texts.insert(place, said)
    fact = replace(FACT, attribute=texts[0], also=tuple(texts[1:]))
    found = encoded(lm, fact, answer)
    record = clean_record(lm, 5, fact, found, clean_fact(lm, fact, found))
    assert record.is_candidate, record.left_out
    assert record.attribute == " | ".join(texts)
    case = case_of(record)
    assert case.answer_ids == tuple(ids[n_prompt:])[: len(case.answer_ids)]
    assert {case.answer_ids, *case.also} == set(found.answers)
    assert len(case.also) == 2


def test_answers_that_cannot_be_read_from_one_place_are_left_out_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Before the year a space is read, before the word it is a part of the token."""
    lm = model("tiktoken_style")
    fact = Fact(7, "The Kingdom was founded in", "Kingdom", "1958", also=("the", "1960"))
    found = encoded(lm, fact, "full")
    assert caplog.messages == [
        "1 of 3 right answers are left out, and others of their facts scored (first known_id=7, "
        "'the': it does not begin at the token where others do)"
    ]
    without = encoded(lm, replace(fact, also=("1960",)), "full")
    assert found.answers == without.answers
    assert found.prompt == without.prompt
    assert len(found.answers) == 2
    # The place is that of the first.
    word = encoded(lm, replace(fact, attribute="the", also=("1958",)), "full")
    assert word.answers == encoded(lm, replace(fact, attribute="the", also=()), "full").answers


@pytest.mark.parametrize("answers", [("the", "speaking"), ("speaking", "the")])
def test_an_answer_that_merges_with_the_prompt_is_left_out_alone(
    answers: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    lm = model("ignore_merges")
    fact = Fact(7, "The Kingdom is French-", "Kingdom", answers[0], also=answers[1:])
    found = encoded(lm, fact, "full")
    [line] = [line for line in caplog.messages if "left out" in line]
    assert line.startswith(
        "1 of 2 right answers are left out, and others of their facts scored (first known_id=7, "
        "'speaking': the answer merges with the prompt's last token"
    )
    assert found.problem == ""
    assert found.answers == encoded(lm, replace(fact, attribute="the", also=()), "full").answers
    assert found.shape is not None
    # With none left the fact is no candidate, and the reason says so.
    caplog.clear()
    none = encoded(lm, replace(fact, attribute="speaking", also=(" speaking",)), "full")
    assert (none.answers, none.shape) == ((), None)
    assert none.problem.startswith("the answer merges with the prompt's last token")
    assert not [line for line in caplog.messages if "left out" in line]


@pytest.mark.parametrize("place", [0, 1])
def test_a_bad_spelling_costs_no_candidate(place: int) -> None:
    """From the list to the candidate: the other one is predicted."""
    lm = model("ignore_merges")
    fact = Fact(7, "The Kingdom is French-", "Kingdom", "the")
    ids = encoded(lm, fact, "full").answer_ids
    said = torch.zeros(lm.n_embeddings)
    said[ids[0]] = 100.0
    lm.model.get_output_embeddings().register_forward_hook(lambda *given: given[2] + said)
    texts = ["speaking"]
    texts.insert(place, "the")
    fact = replace(fact, attribute=texts[0], also=tuple(texts[1:]))
    found = encoded(lm, fact, "first_token")
    record = clean_record(lm, 5, fact, found, clean_fact(lm, fact, found))
    assert record.is_candidate, record.left_out
    assert tuple(record.answer_ids) == ids[:1]
    assert len(record.also_lengths) == 0


def test_a_span_stays_what_it_is() -> None:
    plain = encoded(model(), replace(FACT, also=()), "full")
    assert encoded(model(), FACT, "full").span == plain.span == Span(*plain.span)


def test_config_asks_for_other_answers_with_a_prompt_alone() -> None:
    prompt = ["dataset=prompt", "dataset.prompt=Ana is", "dataset.subject=Ana"]
    with pytest.raises(Exception, match=r"dataset\.also=\['b'\] is for dataset=prompt with"):
        composed([*prompt, "dataset.also=[b]"])
    one, other = (
        composed([*prompt, "dataset.attribute=a", *more]).dataset
        for more in ([], ["dataset.also=[b]"])
    )
    assert (one.also, other.also) == ([], ["b"])
    assert one.name != other.name
