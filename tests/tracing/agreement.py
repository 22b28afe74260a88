"""What the reference engine says of small models: computed once, and shared by the tests."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import torch

from ktrace.config import EngineConfig
from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from ktrace.tracing.engine import Case, Engine, Use
from ktrace.tracing.engines import make_engine
from ktrace.tracing.groups import group_cases
from ktrace.tracing.mediators import Mediator
from ktrace.tracing.noise import Noise, RandomNoise
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.suffix.layout import BlockCall
from ktrace.tracing.suffix.limits import Limits
from ktrace.tracing.suffix.walk import Walk
from tests.support.families import REPLAYED, VARIANTS, both_directions, mediators_of, tiny_model
from tests.support.models import known_case
from tests.support.proof import forget_verdicts

# Small models are run as wide ones are: packed, and by oneDNN.
AS_WIDE = Limits(pack_width=0, onednn_weights=0)
NOISE = RandomNoise(1.0, samples=3)

# Architecture and changes of its config, by name.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{architecture: (architecture, {}) for architecture in REPLAYED},
    **VARIANTS,
}
# Their blocks know more of positions than the mask says: biases by distance, or a window.
NOT_PACKED = {
    *("BloomForCausalLM", "MptForCausalLM", "GPTNeoForCausalLM"),
    "bloom, residual after the norm",
}

# They cast queries and keys, whatever they compute in, and the masks of packs reorder sums.
SCORES_IN_FLOAT32 = {"GPTJForCausalLM", "CodeGenForCausalLM", "FlintForCausalLM"}
# Their attention scales what heads give by a sigmoid in float32, whatever it computes in.
SINKS_IN_FLOAT32 = {"GraniteSWAForCausalLM", "GraniteMoeSWAForCausalLM"}
# Of probabilities: the largest spread over the cells of each mediator is no less than this; of one
# head, or an edge, than a fifth of it.
LEAST_SPREAD = 0.1

# `(n_samples, n_layers, n_positions)`, by case and mediator's key.
Found = dict[tuple[int, str], np.ndarray]


def all_of(lm: LanguageModel) -> list[Mediator]:
    """Every mediator of a model, in both directions."""
    return both_directions(mediators_of(lm))


@contextmanager
def without_severing() -> Iterator[None]:
    """Walks whose severed states are left as they are computed."""
    original = Walk._called

    def called(self: Walk, call: BlockCall, *rest: Any) -> Any:
        puts = {site: [p for p in some if p.from_source] for site, some in call.puts.items()}
        return original(self, replace(call, puts=puts, computed={}), *rest)

    with mock.patch.object(Walk, "_called", called):
        yield


def made(lm: LanguageModel, noise: Noise = NOISE) -> Engine:
    """What `engine=suffix` gives, as if the model were a wide one."""
    forget_verdicts()  # tests change engines, too
    return make_engine(EngineConfig(), lm, noise, Use(all_of(lm)), AS_WIDE)


def scores(
    engine: Engine,
    cases: Sequence[Case],
    mediators: Sequence[Mediator],
    metric: str = "probability",
) -> Found:
    """Of every restoration, in the groups that the engine asks for."""
    found = {}
    for group in group_cases(cases, engine.cases_together):
        for case, restored in engine.restored(group, mediators):
            for key, by_metric in restored.items():
                found[case.index, key] = by_metric[metric]
    assert len(found) == len(cases) * len(mediators)
    return found


def largest_difference(ours: Mapping[Any, np.ndarray], theirs: Mapping[Any, np.ndarray]) -> float:
    """Over all cells; those of layers without a site are empty in both."""
    assert ours.keys() == theirs.keys()
    assert all((np.isnan(ours[key]) == np.isnan(theirs[key])).all() for key in theirs)
    return max(float(np.nanmax(np.abs(ours[key] - theirs[key]))) for key in theirs)


@cache
def model_of(
    name: str, dtype: torch.dtype = torch.float32, attention: str | None = None
) -> LanguageModel:
    """A small model of a family; None leaves attention to transformers."""
    architecture, changes = MODELS[name]
    return language_model(tiny_model(architecture, attention, **changes).to(dtype))


@cache
def case_of(name: str) -> Case:
    """A prompt longer than local attention reaches, on which this family's effects are large.

    The answer is what the model predicts in float64, so that it is the same in every dtype.
    """
    seed = 15 if name == "OlmoForCausalLM" else 12
    return known_case(model_of(name, torch.float64), seed, 6, 2, 4)


def reference_scores(name: str, dtype: torch.dtype, attention: str | None = None) -> Found:
    """The reference engine's scores of a family's case, for each mediator that it has."""
    lm = model_of(name, dtype, attention)
    return _reference_scores(name, dtype, lm.model.config._attn_implementation)


@cache
def _reference_scores(name: str, dtype: torch.dtype, implementation: str) -> Found:
    lm = model_of(name, dtype, implementation)
    with softmax_in(dtype):
        return scores(ReferenceEngine(lm, NOISE), [case_of(name)], all_of(lm))


@contextmanager
def softmax_in(dtype: torch.dtype) -> Iterator[None]:
    """Let float64 be float64: attention and routers take softmax in float32 whatever comes in."""
    softmax = torch.nn.functional.softmax

    def as_it_comes(states: torch.Tensor, dim: int, **options: Any) -> torch.Tensor:
        return softmax(states, dim)

    if dtype is not torch.float64:
        yield
        return
    with mock.patch.object(torch.nn.functional, "softmax", as_it_comes):
        yield
