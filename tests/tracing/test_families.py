"""What families do beside the usual, and the table of how well the engines agree on each."""

import logging

import numpy as np
import pytest

from ktrace.errors import KtraceError
from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from ktrace.terms import MEDIATOR_NAMES, PUBLISHED_MEDIATORS
from ktrace.tracing.clean import clean_run
from ktrace.tracing.engine import Case
from ktrace.tracing.mediators import make_mediator
from ktrace.tracing.noise import RandomNoise
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.suffix.engine import SuffixEngine
from ktrace.tracing.suffix.expected import probe_noise
from tests.support.families import NOT_REPLAYED, TINY_FAMILIES, mediators_of, tiny_model
from tests.support.models import all_states, known_case
from tests.support.places import ROOT
from tests.tracing.agreement import (
    AS_WIDE,
    LEAST_SPREAD,
    NOISE,
    NOT_PACKED,
    largest_difference,
    made,
    scores,
)
from tests.tracing.engine_contract import Make, every_engine
from tests.tracing.parity_table import BEGIN, END, row_of


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("BloomForCausalLM", {}),
        ("FalconForCausalLM", {"alibi": True}),
        ("MptForCausalLM", {"max_seq_len": 8}),
        ("LlamaForCausalLM", {}),
    ],
)
@pytest.mark.parametrize("n_positions", [2, 4, 8])
@pytest.mark.parametrize("samples", [1, 3])
def test_sizes_that_agree_by_chance(
    architecture: str, changes: dict[str, int], n_positions: int, samples: int
) -> None:
    """As many rows, heads, positions: an axis must be known by more than its size."""
    lm = language_model(tiny_model(architecture, **changes).double())
    case, noise = known_case(lm, 3, n_positions, 0, 1), RandomNoise(1.0, samples)
    mediators = [make_mediator("hidden_attn_severed", 1)]
    expected = scores(ReferenceEngine(lm, noise), [case], mediators)
    for packed in {False, architecture not in NOT_PACKED}:
        engine = SuffixEngine(lm, noise, packed=packed, limits=AS_WIDE)
        assert largest_difference(scores(engine, [case], mediators), expected) <= 1e-12


def test_the_probe_is_noisy_even_where_its_tokens_share_an_embedding() -> None:
    """Rows that no text reaches may be equal; without noise, a wrong engine would pass."""
    lm = language_model(tiny_model("GemmaForCausalLM"))
    rows = lm.embedding_weight[1:7].double().numpy() * np.sqrt(32)
    assert probe_noise(lm).scale == pytest.approx(3 * rows.std(ddof=1), rel=1e-5)
    lm.embedding_weight[1:7] = 0
    assert probe_noise(lm).scale == 1


def test_a_module_that_changes_its_output_later_is_recorded_as_it_was() -> None:
    """Falcon adds its attention's output to its MLP's in place."""
    lm = language_model(tiny_model("FalconForCausalLM"))
    case = known_case(lm, 1)
    kept = all_states(lm, len(case.input_ids))
    run = clean_run(lm, case.input_ids, case.answer_ids, kept=kept)
    hidden, attn, mlp = (run.states[site] for site in ("hidden", "attn", "mlp"))
    np.testing.assert_allclose(hidden[1:] - hidden[:-1], attn[1:] + mlp[1:], atol=1e-4)


@pytest.fixture(scope="module")
def mamba() -> LanguageModel:
    return language_model(tiny_model("MambaForCausalLM"))


@pytest.mark.parametrize("architecture", sorted(NOT_REPLAYED))
def test_what_cannot_be_replayed_falls_back(
    architecture: str, caplog: pytest.LogCaptureFixture
) -> None:
    lm = language_model(tiny_model(architecture))
    with caplog.at_level(logging.WARNING, logger="ktrace"):
        assert isinstance(made(lm), ReferenceEngine)
    kept = "(its layers do not all keep keys and values of each position, and those alone)"
    assert kept in caplog.text


def test_hidden_alone_is_traced_where_there_is_nothing_else(mamba: LanguageModel) -> None:
    case = known_case(mamba, 1)
    [mediator] = mediators_of(mamba)
    engine = ReferenceEngine(mamba, NOISE)
    [(_, restored)] = engine.restored([case], [mediator])
    [(_, baseline)] = engine.baseline([case])
    cells = restored["hidden"]["probability"]
    assert np.ptp(cells) >= 0.1
    np.testing.assert_allclose(cells[:, -1, -1], baseline.clean["probability"], atol=1e-6)
    kept = all_states(mamba, len(case.input_ids))
    assert clean_run(mamba, case.input_ids, kept=kept).states.keys() == {"hidden"}


@pytest.mark.parametrize("name", ["mlp", "attn", "hidden_mlp_severed", "hidden_attn_severed"])
@every_engine
def test_other_mediators_are_refused_there(mamba: LanguageModel, make: Make, name: str) -> None:
    engine = make(mamba, NOISE)
    with pytest.raises(KtraceError, match=r"no site '(mlp|attn)'.*its sites are hidden$"):
        list(
            engine.restored(
                [Case(0, (2, 3), known_case(mamba, 1).span, (4,))], [make_mediator(name, 3)]
            )
        )


def test_the_table_says_how_well_every_family_agrees() -> None:
    text = (ROOT / "docs" / "models.md").read_text("utf-8")
    header, _, *rows = text.split(BEGIN)[1].split(END)[0].strip().splitlines()
    names = [cell.strip().strip("`") for cell in header.strip("|").split("|")][2:]
    assert names == list(MEDIATOR_NAMES)
    listed = []
    for row in rows:
        architecture, engine, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        listed.append(architecture := architecture.strip("`"))
        if architecture in NOT_REPLAYED:
            assert engine == f"reference: {NOT_REPLAYED[architecture]}"
        else:
            assert engine in ("suffix", "suffix, packed"), row
        mediators = mediators_of(language_model(tiny_model(architecture)))
        assert [n for n, cell in zip(names, cells, strict=True) if cell != "none"] == [
            mediator.name for mediator in mediators
        ]
        for name, cell in zip(names, cells, strict=True):
            if cell == "none":
                continue
            difference, spread = cell.rsplit("of ", 1)
            least = LEAST_SPREAD if name in PUBLISHED_MEDIATORS else LEAST_SPREAD / 5
            # Of a hybrid, attention is in few layers; and nothing is compared with it.
            assert float(spread) >= (0.01 if architecture in NOT_REPLAYED else least), row
            # Rounding of float32, which vanishes in float64 (test_suffix.py): of single heads more.
            if architecture not in NOT_REPLAYED:
                assert float(difference) <= (2e-6 if name == "head" else 1e-6), row
    assert listed == sorted(TINY_FAMILIES)
    assert row_of("MambaForCausalLM") in rows
