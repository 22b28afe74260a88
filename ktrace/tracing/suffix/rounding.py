"""By how much two right programs may differ on a model: as its dtype says, or as measured."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ktrace.lm.model import LanguageModel
from ktrace.tracing.engine import Case, Foils
from ktrace.tracing.mediators import Mediator
from ktrace.tracing.noise import Noise
from ktrace.tracing.reference import ReferenceEngine

# Of log p: rounding stays well below the first; a wrong mask or prefix is far above. Where more is
# found, it is measured by how much the reference engine differs from itself in batches of other
# sizes: in half precision that hangs on the model and the device, and some models compute a part in
# float32 whatever their dtype. So many times what was measured is allowed, as the third says, but
# no more than the second.
_TOLERANCE = {torch.float64: (1e-9, 1e-4, 32.0), torch.float32: (1e-3, 1e-3, 1.0)}
_HALF_TOLERANCE = (0.02, 0.25, 4.0)


class Rounding:
    """How much of log p may be rounding: measured only where it counts.

    Args:
        lm: the model.
        noise: what corrupts the case.
        case: a fact.
        mediator: that it is restored by.
    """

    def __init__(self, lm: LanguageModel, noise: Noise, case: Case, mediator: Mediator) -> None:
        self.lm = lm
        self._measured_on = case, noise, mediator
        self._least, self._most, self._floors = _TOLERANCE.get(lm.model.dtype, _HALF_TOLERANCE)

    def covers(self, difference: float) -> bool:
        """Whether a difference is no more than rounding; NaN is more."""
        if self._least < difference <= self._most:
            floor = rounding_floor(self.lm, *self._measured_on)
            self._least = min(self._most, max(self._least, self._floors * floor))
            self._most = self._least
        return difference <= self._least


@dataclass(frozen=True)
class _Repeated:
    """A noise whose samples come several times over: the same numbers in a larger batch.

    Attributes:
        noise: the noise.
        times: how often each sample comes.
        scale: of what it gives: 1, or so near that only rounding tells.
    """

    noise: Noise
    times: int
    scale: float = 1.0

    @property
    def samples(self) -> int:
        return self.noise.samples * self.times

    def corrupt(self, case: Case, embeddings: torch.Tensor) -> torch.Tensor:
        return self.scale * self.noise.corrupt(case, embeddings).repeat(self.times, 1, 1)

    def foils(self, case: Case) -> Foils | None:
        foils = self.noise.foils(case)
        return None if foils is None else [*foils] * self.times


def rounding_floor(lm: LanguageModel, case: Case, noise: Noise, mediator: Mediator) -> float:
    """By how much log p differs for no other reason than rounding.

    Largest over three batch sizes and over early, middle and late layers, at the last position of
    the subject; in float64 see also `_bend`.
    """
    position = case.span.stop - 1
    largest = 0.0
    for layer in sorted({0, lm.n_layers // 2, lm.n_layers - 1}):

        def log_p(a_noise: Noise, layer: int = layer) -> npt.NDArray[np.float64]:
            cell = ReferenceEngine(lm, a_noise).cell(case, mediator, layer, position)
            return cell["log_probability"][: noise.samples]

        alone = log_p(noise)
        differences = [log_p(_Repeated(noise, times)) - alone for times in (2, 5)]
        if lm.model.dtype == torch.float64:
            differences.append(_bend(log_p, noise))
        largest = max(largest, *(float(np.abs(found).max()) for found in differences))
    return largest


def _bend(
    log_p: Callable[[Noise], npt.NDArray[np.float64]], noise: Noise
) -> npt.NDArray[np.float64]:
    """How far log p is from a straight line over half of float32's last bit of the embeddings.

    Nothing in float64; where a part of a model computes in float32, whatever its dtype, as much as
    its rounding makes of it.
    """
    half_a_bit = torch.finfo(torch.float32).eps / 4
    below, here, above = (log_p(_Repeated(noise, 1, 1 + n * half_a_bit)) for n in (-1, 0, 1))
    return below + above - 2 * here
