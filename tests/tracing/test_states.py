"""States that are kept of clean and corrupted runs, against torch's own hooks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ktrace.facts import Span
from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from ktrace.terms import SITES
from ktrace.tracing.clean import clean_run
from ktrace.tracing.engine import Case
from ktrace.tracing.noise import (
    ConstantNoise,
    Noise,
    Partner,
    PromptPair,
    RandomNoise,
    TokenReplacement,
)
from ktrace.tracing.states import Kept, StateReader, corrupted_states
from tests.support.families import tiny_model
from tests.support.models import all_states, known_case, micro_llama

IDS, SPAN = (7, 11, 13, 17, 19, 23), Span(1, 3)
CASE = Case(0, IDS, SPAN, (29,))
OTHER = (7, 31, 37, 17, 19, 23)
N_SAMPLES, N_LAYERS, WIDTH = 3, 4, 32


def replacing(lm: LanguageModel) -> TokenReplacement:
    embeddings = dict(enumerate(lm.model.get_input_embeddings().weight.detach()))
    partners = [Partner((31 + number, 37), (41,)) for number in range(N_SAMPLES)]
    return TokenReplacement(embeddings, {0: partners}, samples=N_SAMPLES)


@contextmanager
def captured(lm: LanguageModel, subject: torch.Tensor | None) -> Iterator[dict[Any, torch.Tensor]]:
    """Every site of every layer by torch alone; a subject of other embeddings, where given."""
    body = lm.model.model
    found: dict[Any, torch.Tensor] = {}

    def keep(site: str, layer: int, module: torch.nn.Module) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            found[site, layer] = states[0].detach().clone()

        return module.register_forward_hook(hook)

    def corrupt(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        assert subject is not None
        return torch.cat([output[:, : SPAN.start], subject[None], output[:, SPAN.stop :]], dim=1)

    handles = [] if subject is None else [body.embed_tokens.register_forward_hook(corrupt)]
    for layer, block in enumerate(body.layers):
        parts = {"hidden": block, "attn": block.self_attn, "mlp": block.mlp}
        handles += [keep(site, layer, module) for site, module in parts.items()]
    yield found
    for handle in handles:
        handle.remove()


def by_hooks(
    lm: LanguageModel, ids: tuple[int, ...], subject: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """By site, `(n_layers, n_positions, d_model)`."""
    with captured(lm, subject) as found, torch.inference_mode():
        lm.model(input_ids=torch.tensor([ids]), use_cache=False)
    layers = range(lm.n_layers)
    return {site: torch.stack([found[site, layer] for layer in layers]) for site in SITES}


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["wide", "half"])
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return language_model(micro_llama(N_LAYERS).to(request.param))


def test_clean_states_are_those_of_hooks(lm: LanguageModel) -> None:
    found = clean_run(lm, IDS, kept=all_states(lm, len(IDS))).states
    expected = by_hooks(lm, IDS)
    assert found.keys() == expected.keys() == set(SITES)
    for site, states in found.items():
        assert states.dtype is lm.model.dtype
        assert torch.equal(states, expected[site])
    assert clean_run(lm, IDS).states == {}


def subjects(lm: LanguageModel, noise: Noise) -> torch.Tensor:
    """What stands in the subject's place, by the definition of each noise, `(n_samples, 2, d)`."""
    weight = lm.model.get_input_embeddings().weight.detach()
    clean = weight[list(IDS[SPAN.start : SPAN.stop])]
    if isinstance(noise, RandomNoise):
        drawn = np.random.RandomState(noise.seed).randn(noise.samples, 2, WIDTH) * noise.scale
        wide = clean.float() + torch.from_numpy(drawn).float()
        return wide.to(clean.dtype)
    if isinstance(noise, ConstantNoise):
        return torch.zeros(1, 2, WIDTH, dtype=clean.dtype)
    if isinstance(noise, TokenReplacement):
        return torch.stack([weight[list(partner.ids)] for partner in noise.chosen(CASE)])
    return weight[list(OTHER[SPAN.start : SPAN.stop])][None]


@pytest.mark.parametrize("kind", ["random", "constant", "replacement", "pair"])
def test_corrupted_states_are_those_of_hooks(lm: LanguageModel, kind: str) -> None:
    noises: dict[str, Noise] = {
        "random": RandomNoise(0.5, samples=N_SAMPLES),
        "constant": ConstantNoise(np.zeros(WIDTH)),
        "replacement": replacing(lm),
        "pair": PromptPair({}),
    }
    noise = noises[kind]
    case = replace(CASE, corrupted_ids=OTHER) if kind == "pair" else CASE
    found = corrupted_states(lm, noise, case, all_states(lm, len(IDS)), noise.samples)
    expected = [by_hooks(lm, IDS, subject) for subject in subjects(lm, noise)]
    assert len(expected) == noise.samples
    clean = by_hooks(lm, IDS)
    assert found.keys() == set(SITES)
    for site, states in found.items():
        assert states.shape == (noise.samples, N_LAYERS, len(IDS), WIDTH)
        assert states.dtype is lm.model.dtype
        for sample, of_sample in enumerate(expected):
            assert torch.equal(states[sample], of_sample[site])
            assert not torch.equal(states[sample, 0, SPAN.start], clean[site][0, SPAN.start])
        # What comes before the subject is not corrupted, to the bit.
        assert (states[:, :, : SPAN.start] == clean[site][:, : SPAN.start]).all()


def test_no_noise_leaves_the_bits_of_the_clean_run(lm: LanguageModel) -> None:
    case = replace(known_case(lm, 3), span=SPAN)
    case = replace(case, answer_ids=(*case.answer_ids, 5))  # a longer pass has other bits
    kept = all_states(lm, len(case.input_ids))
    found = corrupted_states(lm, RandomNoise(0.0, samples=2), case, kept, 2)
    clean = clean_run(lm, case.input_ids, case.answer_ids, kept=kept).states
    for site, states in found.items():
        assert all(torch.equal(of_sample, clean[site]) for of_sample in states)


def test_what_is_kept_is_a_part_of_all(lm: LanguageModel) -> None:
    """And holds the same bits, however little of it is kept."""
    noise = RandomNoise(0.5, samples=N_SAMPLES)
    whole = corrupted_states(lm, noise, CASE, all_states(lm, len(IDS)), N_SAMPLES)
    clean = clean_run(lm, IDS, kept=all_states(lm, len(IDS))).states
    kept = Kept(["attn", "hidden"], (1, 3), (2, 5))
    some = corrupted_states(lm, noise, CASE, kept, 2)
    assert some.keys() == {"attn", "hidden"}
    for site, states in some.items():
        assert torch.equal(states, whole[site][:2, [1, 3]][:, :, [2, 5]])
        of_clean = clean_run(lm, IDS, kept=kept).states[site]
        assert torch.equal(of_clean, clean[site][[1, 3]][:, [2, 5]])
    nowhere = clean_run(lm, IDS, kept=replace(kept, positions=())).states
    assert nowhere["attn"].shape == (2, 0, WIDTH)


def test_nothing_that_is_kept_stays_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long prompt's states need not fit there together: each goes when its block is done."""
    lm = language_model(micro_llama(N_LAYERS))
    moved: list[int] = []
    original = StateReader._part

    def watched(reader: StateReader, output: torch.Tensor) -> torch.Tensor:
        moved.append(len(reader._found))
        part = original(reader, output)
        # Of the pass's own memory nothing is held: not even by a view.
        assert part.untyped_storage().data_ptr() != output.untyped_storage().data_ptr()
        assert part.device.type == "cpu"
        return part

    monkeypatch.setattr(StateReader, "_part", watched)
    clean_run(lm, IDS, kept=all_states(lm, len(IDS)))
    assert moved == list(range(len(SITES) * N_LAYERS)), "they were not kept one by one"


def test_layers_that_differ() -> None:
    """Jamba's attention is in layers 1 and 3."""
    lm = language_model(tiny_model("JambaForCausalLM"))
    case = known_case(lm, 1)
    noise, n_positions = RandomNoise(0.5, samples=2), len(case.input_ids)
    whole = corrupted_states(lm, noise, case, all_states(lm, n_positions), 2)
    assert whole["attn"][:, [0, 2]].isnan().all()
    assert not whole["attn"][:, [1, 3]].isnan().any()
    one = corrupted_states(lm, noise, case, Kept(SITES, (0, 1), (n_positions - 1,)), 1)
    assert torch.equal(one["attn"][0, 1, 0], whole["attn"][0, 1, -1])
    none = corrupted_states(lm, noise, case, Kept(SITES, (0, 2), (0,)), 1)
    assert none.keys() == {"hidden", "mlp"}
