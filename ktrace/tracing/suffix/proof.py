"""Whether the suffix engine gives the reference engine's numbers on the model at hand."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ktrace.errors import KtraceError
from ktrace.facts import Span
from ktrace.lm.model import LanguageModel
from ktrace.terms import MEDIATOR_NAMES
from ktrace.tracing.clean import clean_run
from ktrace.tracing.engine import Case, Foils
from ktrace.tracing.measure import embed
from ktrace.tracing.mediators import Mediator, make_mediator
from ktrace.tracing.noise import Noise, RandomNoise
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.suffix.engine import SuffixEngine

# Of log p. Rounding stays well below; a wrong mask or prefix is far above.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
# In half precision rounding depends on the model and the device, so that it is measured: by how
# much the reference engine differs from itself in batches of other sizes.
_HALF_TOLERANCE = (0.02, 0.25)  # at least, at most
_FLOORS = 4.0  # so many times what was measured


# log p of the reference engine by mediator key, layer and position.
Cells = dict[tuple[str, int, int], npt.NDArray[np.float64]]


# Of the made-up prompt.
_PROBE_IDS = tuple(range(1, 7))


def probe_noise(lm: LanguageModel) -> Noise:
    # Of the prompt alone: in float32, the whole matrix of a large model is gigabytes.
    level = 3 * float(embed(lm, _PROBE_IDS).float().std())
    # Tokens that no text holds may share one embedding; without noise nothing would be compared.
    return RandomNoise(level or 1.0, samples=2)


def disproof(lm: LanguageModel, engine: SuffixEngine, expected: Cells) -> str | None:
    """How an engine differs from the reference engine on a made-up prompt.

    None where they agree in every cell tried. `expected` is filled with what the reference engine
    says, or used if it is filled already.
    """
    case = Case(0, _PROBE_IDS, Span(1, 3), clean_run(lm, _PROBE_IDS).predicted_ids)
    have = lm.paths.sites(0)
    mediators = [
        mediator
        for mediator in (make_mediator(name, 2) for name in MEDIATOR_NAMES)
        if have.keys() >= set(mediator.sites)
    ]
    try:
        [(_, ours)] = engine.restored([case], mediators)
    except KtraceError as error:
        return str(error)
    except Exception as error:  # whatever a family does with its arguments may raise anything
        return f"{type(error).__name__}: {error}"
    if not expected:
        _fill(expected, ReferenceEngine(lm, engine.noise), case, mediators)
    tolerance = _TOLERANCE.get(lm.model.dtype) or _half_tolerance(lm, case, engine.noise)
    for (key, layer, position), log_p in expected.items():
        found = ours[key]["log_probability"][:, layer, position]
        difference = float(np.abs(found - log_p).max())
        if not difference <= tolerance:
            return (
                f"log p of {key} at layer {layer}, position {position} is off by {difference:.2g}"
            )
    return None


def _fill(
    expected: Cells, engine: ReferenceEngine, case: Case, mediators: Sequence[Mediator]
) -> None:
    n_layers = engine.lm.n_layers
    # First, middle and last layers and positions meet every kind of step.
    for mediator in mediators:
        for layer in sorted({0, n_layers // 2, n_layers - 1}):
            for position in (1, 4, 5):
                cell = engine.cell(case, mediator, layer, position)
                expected[mediator.key, layer, position] = cell["log_probability"]


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

    def foils(self, case: Case) -> Foils | None:
        foils = self.noise.foils(case)
        return None if foils is None else [*foils] * self.times


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
