"""Each noise against its definition, computed here with numpy alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ktrace.config import NoiseConfig, NoiseKind
from ktrace.facts import Span
from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from ktrace.tracing.engine import Case
from ktrace.tracing.measure import (
    FEW_PARTNERS,
    NO_PARTNER,
    MeasuredNoise,
    Subject,
    covariance_root,
    make_noise,
    partners_of,
)
from ktrace.tracing.mediators import make_mediator
from ktrace.tracing.noise import Partner, RandomNoise, TokenReplacement
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.suffix.engine import SuffixEngine
from tests.support.configs import configured
from tests.support.families import tiny_model

ONE, TWO, THREE = (71,), (72,), (73,)  # answers
SUBJECTS = [
    Subject((5, 9), (5, 9), "a", "r", ONE),
    Subject((9, 7), (30, 7), "b", "r", TWO),
    Subject((40, 41), (40, 41), "c", "r", ONE),
    Subject((12, 13, 14), (12, 13, 14), "d", "r", THREE),
    Subject((60, 61), (60, 61), "e", "other", TWO),
]
TOKENS = [token for subject in SUBJECTS for token in subject.alone]


def made(lm: LanguageModel, **choice: object) -> MeasuredNoise:
    config = configured(NoiseConfig, **{"samples": 4, "seed": 3, **choice})
    return make_noise(config, lm, SUBJECTS)


def case(index: int = 0) -> Case:
    subject = SUBJECTS[index]
    ids = (2, *subject.in_prompt, 3)
    return Case(index, ids, Span(1, 1 + len(subject.in_prompt)), (4,))


@pytest.fixture
def table(llama: LanguageModel) -> np.ndarray:
    return llama.embedding_weight.double().numpy()


def token_ids(partners: dict[int, list[Partner]]) -> dict[int, list[tuple[int, ...]]]:
    return {index: [partner.ids for partner in pool] for index, pool in partners.items()}


def corrupted(lm: LanguageModel, measured: MeasuredNoise, of: Case) -> np.ndarray:
    ids = torch.tensor(of.input_ids[of.span.start : of.span.stop])
    return measured.noise.corrupt(of, lm.embedding_weight[ids]).double().numpy()


def test_sigma_is_the_spread_of_all_subjects_tokens(
    llama: LanguageModel, table: np.ndarray
) -> None:
    measured = made(llama)
    assert measured.sigma == pytest.approx(table[TOKENS].std(ddof=1), rel=1e-6)
    assert measured.level == pytest.approx(3 * measured.sigma)
    assert made(llama, std=0.25).level == 0.25


def test_sigma_is_measured_after_any_scaling() -> None:
    """Gemma's embedding module multiplies by the root of the width."""
    lm = language_model(tiny_model("GemmaForCausalLM"))
    table = lm.embedding_weight.double().numpy() * np.sqrt(32)
    assert made(lm).sigma == pytest.approx(table[TOKENS].std(ddof=1), rel=1e-6)


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(
    ("kind", "unit"),
    [
        ("gaussian", lambda: np.random.RandomState(3).randn(4, 2, 32)),
        ("uniform", lambda: np.random.RandomState(3).uniform(-1, 1, (4, 2, 32))),
        ("student_t", lambda: np.random.RandomState(3).standard_t(5.0, (4, 2, 32))),
    ],
)
def test_levelled_noises(
    llama: LanguageModel, table: np.ndarray, kind: str, unit: object, replace: bool
) -> None:
    measured = made(llama, kind=kind, replace=replace)
    expected = measured.level * unit()  # type: ignore[operator]  # a parameter of the test
    if not replace:
        expected = expected + table[[5, 9]]
    np.testing.assert_allclose(corrupted(llama, measured, case()), expected, atol=1e-5)


def test_the_level_is_absolute_and_the_tails_are_as_asked(
    llama: LanguageModel, table: np.ndarray
) -> None:
    measured = made(llama, kind="student_t", std=0.25, degrees=2.5)
    expected = 0.25 * np.random.RandomState(3).standard_t(2.5, (4, 2, 32)) + table[[5, 9]]
    np.testing.assert_allclose(corrupted(llama, measured, case()), expected, atol=1e-5)


def test_gaussian_noise_is_the_published_draw_for_every_fact() -> None:
    expected = 0.5 * np.random.RandomState(1).randn(10, 3, 8)
    noise = RandomNoise(0.5)
    for _ in range(2):  # afresh for each fact, whatever came before
        np.testing.assert_array_equal(noise.draws(3, 8), expected)


@pytest.mark.parametrize("replace", [False, True])
def test_multivariate_noise_has_the_tokens_covariance(
    llama: LanguageModel, table: np.ndarray, replace: bool
) -> None:
    tokens = table[TOKENS]
    root = covariance_root(tokens)
    np.testing.assert_allclose(root.T @ root, np.cov(tokens.T), atol=1e-12)
    measured = made(llama, kind="multivariate", multiple=2.0, replace=replace)
    unit = np.random.RandomState(3).randn(4, 2, len(root))
    centre = tokens.mean(axis=0) if replace else table[[5, 9]]
    expected = centre + 2 * unit @ root
    np.testing.assert_allclose(corrupted(llama, measured, case()), expected, atol=1e-4)


def test_zero_and_mean_stand_in_place(llama: LanguageModel, table: np.ndarray) -> None:
    zero = corrupted(llama, made(llama, kind="zero", samples=1), case())
    assert (zero == np.zeros((1, 2, 32))).all()
    mean = corrupted(llama, made(llama, kind="mean", samples=1), case())
    expected = np.broadcast_to(table[TOKENS].mean(axis=0), (1, 2, 32))
    np.testing.assert_allclose(mean, expected, atol=1e-6)


def test_replacement_takes_a_partner_of_the_same_relation_and_length(
    llama: LanguageModel, table: np.ndarray
) -> None:
    measured = made(llama, kind="token_replacement", samples=1)
    # Of the subjects as long as "a" in its relation, "c" has the same answer: only "b" is left,
    # with the tokens that it has in its own prompt.
    found = corrupted(llama, measured, case(0))
    np.testing.assert_array_equal(found, table[[30, 7]][None])
    assert measured.unusable == {3: NO_PARTNER, 4: NO_PARTNER}
    # "b" has two partners and takes both; nobody has three.
    two = made(llama, kind="token_replacement", samples=2)
    first, second = corrupted(llama, two, case(1))
    assert {first[0, 0], second[0, 0]} == {table[5, 0], table[40, 0]}


def test_samples_that_replacement_cannot_fill_are_never_repeated(llama: LanguageModel) -> None:
    """A row that comes twice would count as two independent samples."""
    few = FEW_PARTNERS.format(samples=2)
    two = made(llama, kind="token_replacement", samples=2)
    assert two.unusable == {0: few, 2: few, 3: NO_PARTNER, 4: NO_PARTNER}
    # A subject of two facts is one partner.
    again = replace(SUBJECTS[0], answer_ids=THREE)
    partners = token_ids(partners_of(SUBJECTS, [*SUBJECTS, again]))
    assert partners[1] == [(5, 9), (40, 41)]
    assert partners[2] == [(30, 7), (5, 9)]


def test_a_partner_answers_with_other_tokens() -> None:
    """Texts may differ where the scored token is the same, and a prediction has no text at all."""
    subject = replace(SUBJECTS[0], relation="", text="z", in_prompt=(80, 81))
    merged = replace(SUBJECTS[1], answer_ids=())  # nothing says what it would answer
    assert token_ids(partners_of([subject], [*SUBJECTS, merged])) == {0: [(30, 7), (60, 61)]}
    assert partners_of([subject], [merged]) == {0: []}
    # Other text, same tokens: the prompt would stay as it is.
    again = partners_of([replace(SUBJECTS[1], text="B")], SUBJECTS)
    assert token_ids(again) == {0: [(5, 9), (40, 41)]}
    # "New York" and "New York City": whoever says the one may go on to say the other.
    long = replace(subject, answer_ids=(71, 74))
    assert token_ids(partners_of([long], SUBJECTS)) == {0: [(30, 7), (60, 61)]}


def test_the_foil_is_the_answer_of_the_subject_that_stands_in(llama: LanguageModel) -> None:
    two = made(llama, kind="token_replacement", samples=2, foil="replacement").noise
    chosen = two.chosen(case(1))  # type: ignore[attr-defined]  # a TokenReplacement
    assert sorted(partner.ids for partner in chosen) == [(5, 9), (40, 41)]
    assert two.foils(case(1)) == [ONE, ONE]  # "a" and "c" have the same answer
    assert made(llama, kind="token_replacement", samples=2).noise.foils(case(1)) is None


def test_whole_answers_are_compared_where_they_part() -> None:
    """What would follow the foil's first other token is no alternative to the answer's tokens."""
    of = replace(case(), answer_ids=(71, 74, 75))
    stands_in = Partner((30, 7), (71, 80, 81, 82))
    noise = TokenReplacement({}, {0: [stands_in]}, compared=True)
    assert noise.foils(of) == [(71, 80, 75)]


def test_a_noise_may_be_measured_on_other_subjects(llama: LanguageModel, table: np.ndarray) -> None:
    alone = Subject((80, 81), (80, 81), "z", "", THREE)  # one prompt, without relation
    kinds = {
        kind: make_noise(NoiseConfig(NoiseKind(kind), samples=4, seed=3), llama, [alone], SUBJECTS)
        for kind in ("gaussian", "mean", "token_replacement")
    }
    assert kinds["gaussian"].sigma == pytest.approx(table[TOKENS].std(ddof=1), rel=1e-6)
    of = Case(0, (2, 80, 81, 3), Span(1, 3), (4,))
    mean = corrupted(llama, kinds["mean"], of)[0, 0]
    np.testing.assert_allclose(mean, table[TOKENS].mean(axis=0), atol=1e-6)
    # Of every relation, as it has none: a, b, c and e are as long as it.
    stand_ins = corrupted(llama, kinds["token_replacement"], of)
    assert {row[0, 0] for row in stand_ins} == {table[token, 0] for token in (5, 30, 40, 60)}


def test_noise_is_rounded_once() -> None:
    """Adding rounded noise to rounded embeddings would round twice."""
    noise = RandomNoise(0.1, samples=2)
    clean = torch.linspace(-3, 3, 8).to(torch.bfloat16)[None]
    exact = clean.double().numpy() + noise.draws(1, 8)
    found = noise.corrupt(case(), clean)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, torch.from_numpy(exact).to(torch.float32).to(torch.bfloat16))


@pytest.mark.parametrize(
    "kind", ["uniform", "student_t", "multivariate", "zero", "mean", "token_replacement"]
)
def test_both_engines_take_every_noise(llama: LanguageModel, kind: str) -> None:
    samples = 1 if kind in ("zero", "mean", "token_replacement") else 2
    noise = made(llama, kind=kind, samples=samples).noise
    mediators = [make_mediator("hidden", 1), make_mediator("mlp", 2)]
    [(_, fast)] = SuffixEngine(llama, noise).restored([case()], mediators)
    [(_, plain)] = ReferenceEngine(llama, noise).restored([case()], mediators)
    for key, scores in plain.items():
        assert scores["probability"].shape == (samples, 4, 4)
        np.testing.assert_allclose(
            fast[key]["probability"], scores["probability"], rtol=0, atol=1e-6
        )
