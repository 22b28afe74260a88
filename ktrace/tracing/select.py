"""Make an engine, and prove the suffix engine on the model before trusting it."""

import logging
from dataclasses import dataclass

import numpy as np
import torch

from ktrace.errors import KtraceError
from ktrace.facts import Span
from ktrace.lm.load import LanguageModel
from ktrace.tracing.clean import clean_run
from ktrace.tracing.engine import Case, Engine
from ktrace.tracing.mediators import MEDIATOR_NAMES, Mediator, make_mediator
from ktrace.tracing.noise import Noise, RandomNoise
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.suffix import SuffixEngine

log = logging.getLogger(__name__)

# Of log p. Rounding stays well below; a wrong mask or prefix is far above.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
# In half precision rounding depends on the model and the device, so that it is measured: by how
# much the reference engine differs from itself in batches of other sizes.
_HALF_TOLERANCE = (0.02, 0.25)  # at least, at most
_FLOORS = 4.0  # so many times what was measured


def make_engine(
    name: str, lm: LanguageModel, noise: Noise, *, row_budget: int | None = None
) -> Engine:
    """An engine by its config name.

    A family whose blocks cannot be replayed gets the reference engine, and one logged line says so.
    """
    if name == "reference":
        return ReferenceEngine(lm, noise)
    try:
        problem = _disproof(lm)
    except KtraceError as error:
        problem = str(error)
    except Exception as error:  # whatever a family does with its arguments may raise anything
        problem = f"{type(error).__name__}: {error}"
    if problem is None:
        return SuffixEngine(lm, noise, row_budget)
    log.warning(
        "engine=suffix cannot be proven on %s (%s): going on with engine=reference",
        type(lm.model).__name__,
        problem,
    )
    return ReferenceEngine(lm, noise)


def _disproof(lm: LanguageModel) -> str | None:
    """How the engines differ on a made-up prompt; None where they agree in every cell tried."""
    ids = tuple(range(1, 7))
    noise: Noise = RandomNoise(3 * float(lm.embedding_weight.float().std()), samples=2)
    case = Case(0, ids, Span(1, 3), clean_run(lm, ids).predicted_ids)
    suffix, reference = SuffixEngine(lm, noise), ReferenceEngine(lm, noise)
    have = lm.paths.sites(0)
    mediators = [
        mediator
        for mediator in (make_mediator(name, 2) for name in MEDIATOR_NAMES)
        if mediator.site in have and (mediator.severs is None or mediator.severs in have)
    ]
    [(_, ours)] = suffix.restored([case], mediators)
    tolerance = _TOLERANCE.get(lm.model.dtype) or _half_tolerance(lm, case, noise)
    for mediator in mediators:
        # First, middle and last layers and positions meet every kind of step.
        for layer in sorted({0, lm.n_layers // 2, lm.n_layers - 1}):
            for position in (1, 4, 5):
                expected = reference.cell(case, mediator, layer, position)["probability"]
                found = ours[mediator.key]["probability"][:, layer, position]
                difference = float(np.abs(np.log(found) - np.log(expected)).max())
                if not difference <= tolerance:
                    return (
                        f"log p of {mediator.key} at layer {layer}, position {position} is off by "
                        f"{difference:.2g}"
                    )
    return None


@dataclass(frozen=True)
class _Repeated:
    """A noise whose samples come several times over: the same numbers in a larger batch."""

    noise: Noise
    times: int

    @property
    def samples(self) -> int:
        return self.noise.samples * self.times

    def corrupt(self, case: Case, embeddings: torch.Tensor) -> torch.Tensor:
        return self.noise.corrupt(case, embeddings).repeat(self.times, 1, 1)


def rounding_floor(lm: LanguageModel, case: Case, noise: Noise, mediator: Mediator) -> float:
    """By how much log p differs, for no other reason than the size of the batch.

    Largest over three batch sizes and over first, middle and last layers, at the last position of
    the subject.
    """
    position = case.span.stop - 1
    largest = 0.0
    for layer in {0, lm.n_layers // 2, lm.n_layers - 1}:
        alone, *larger = (
            ReferenceEngine(lm, _Repeated(noise, times)).cell(case, mediator, layer, position)
            for times in (1, 2, 5)
        )
        for cell in larger:
            difference = cell["log_probability"][: noise.samples] - alone["log_probability"]
            largest = max(largest, float(np.abs(difference).max()))
    return largest


def _half_tolerance(lm: LanguageModel, case: Case, noise: Noise) -> float:
    least, most = _HALF_TOLERANCE
    floor = rounding_floor(lm, case, noise, make_mediator("hidden", 1))
    return min(most, max(least, _FLOORS * floor))
