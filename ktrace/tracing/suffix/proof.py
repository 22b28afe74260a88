"""Whether the suffix engine gives the reference engine's numbers on the model at hand."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import torch

from ktrace.errors import NoMemoryLeftError, NotReplayedError
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
from ktrace.tracing.suffix.memory import is_out_of_memory

log = logging.getLogger(__name__)

# Of log p. Rounding stays well below; a wrong mask or prefix is far above.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
# In half precision rounding depends on the model and the device, so that it is measured: by how
# much the reference engine differs from itself in batches of other sizes.
_HALF_TOLERANCE = (0.02, 0.25)  # at least, at most
_FLOORS = 4.0  # so many times what was measured

# The made-up prompt, its subject, and where it is restored: first, middle and last positions, as
# layers, meet every kind of step.
_PROBE_IDS = tuple(range(1, 7))
_PROBE_SPAN = Span(1, 3)
_PROBE_POSITIONS = (1, 4, 5)


@dataclass(frozen=True)
class ReferenceCells:
    """What the reference engine says of a made-up prompt.

    Attributes:
        case: the prompt, with the model's own prediction as the answer.
        noise: what corrupts it.
        mediators: those that have a meaning for the model.
        log_p: `(n_samples,)` by mediator key, layer and position.
        tolerance: of log p.
    """

    case: Case
    noise: Noise
    mediators: Sequence[Mediator]
    log_p: dict[tuple[str, int, int], npt.NDArray[np.float64]]
    tolerance: float


def reference_cells(lm: LanguageModel) -> ReferenceCells:
    """Run the reference engine on first, middle and last layers and positions."""
    case = Case(0, _PROBE_IDS, _PROBE_SPAN, clean_run(lm, _PROBE_IDS).predicted_ids)
    noise = probe_noise(lm)
    have = lm.paths.sites(0).keys()
    mediators = [make_mediator(name, 2) for name in MEDIATOR_NAMES]
    mediators = [mediator for mediator in mediators if have >= set(mediator.sites)]
    engine = ReferenceEngine(lm, noise)
    log_p = {
        (mediator.key, *place): cell["log_probability"]
        for mediator in mediators
        for place, cell in engine.cells(case, mediator, product(_layers(lm), _PROBE_POSITIONS))
    }
    tolerance = _TOLERANCE.get(lm.model.dtype) or _half_tolerance(lm, case, noise)
    return ReferenceCells(case, noise, mediators, log_p, tolerance)


def _layers(lm: LanguageModel) -> list[int]:
    return sorted({0, lm.n_layers // 2, lm.n_layers - 1})


def probe_noise(lm: LanguageModel) -> RandomNoise:
    """What corrupts the made-up prompt."""
    # Of the prompt alone: in float32, the whole matrix of a large model is gigabytes.
    level = 3 * float(embed(lm, _PROBE_IDS).float().std())
    # Tokens that no text holds may share one embedding; without noise nothing would be compared.
    return RandomNoise(level or 1.0, samples=2)


def disproof(engine: SuffixEngine, expected: ReferenceCells) -> str | None:
    """How an engine differs from the reference engine; None where they agree in every cell.

    Args:
        engine: of the same model and noise.
        expected: what the reference engine says.

    Raises:
        NoMemoryLeftError: nothing is proven either way.
    """
    try:
        [(_, ours)] = engine.restored([expected.case], expected.mediators)
    except NotReplayedError as error:
        return str(error)
    except Exception as error:  # whatever a family does with its arguments may raise anything
        if isinstance(error, NoMemoryLeftError) or is_out_of_memory(error):
            raise NoMemoryLeftError(
                "out of memory with a made-up prompt of six tokens: give the model more room or "
                "fewer bits (model.device, model.device_map, model.dtype, model.quantization)"
            ) from error
        log.debug("the suffix engine fails on %s", type(engine.lm.model).__name__, exc_info=True)
        return f"{type(error).__name__}: {error}"
    for (key, layer, position), log_p in expected.log_p.items():
        found = ours[key]["log_probability"][:, layer, position]
        difference = float(np.abs(found - log_p).max())
        if not difference <= expected.tolerance:
            return (
                f"log p of {key} at layer {layer}, position {position} is off by {difference:.2g}"
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
    for layer in _layers(lm):
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
