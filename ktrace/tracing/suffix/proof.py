"""Whether the suffix engine gives the reference engine's numbers on the model at hand.

What a replay takes for granted of a model's blocks is compared where it could fail: on two facts
that differ in every token, in a short prompt and in one as long as the dataset's longest; from
early, middle and late positions on; in several walks, one after the other; in packs. See `Use` for
what hangs on the run.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from ktrace.errors import NoMemoryLeftError, NotReplayedError
from ktrace.facts import Span
from ktrace.lm.memory import MORE_ROOM, is_out_of_memory, within_memory
from ktrace.lm.model import LanguageModel
from ktrace.tracing.clean import clean_run
from ktrace.tracing.engine import Case, Foils, Shape, Use
from ktrace.tracing.measure import embed
from ktrace.tracing.mediators import Mediator
from ktrace.tracing.noise import Noise, RandomNoise
from ktrace.tracing.reference import ReferenceEngine, Restoration
from ktrace.tracing.suffix.engine import SuffixEngine
from ktrace.tracing.suffix.limits import Limits
from ktrace.tracing.suffix.runs import recorded_rows

log = logging.getLogger(__name__)

# Of log p: rounding stays well below the first; a wrong mask or prefix is far above. Where more is
# found, it is measured by how much the reference engine differs from itself in batches of other
# sizes: in half precision that hangs on the model and the device, and some models compute a part in
# float32 whatever their dtype. So many times what was measured is allowed, as the third says, but
# no more than the second.
_TOLERANCE = {torch.float64: (1e-9, 1e-4, 32.0), torch.float32: (1e-3, 1e-3, 1.0)}
_HALF_TOLERANCE = (0.02, 0.25, 4.0)

_SHORT = 6  # positions of the shorter prompt
_SPAN = Span(1, 3)  # of both prompts' subjects
_SAMPLES = 2
# Windows that meet every kind of step between layers, whatever window is in use.
_WINDOWS = (1, 2, 3)
_WALKS = 3  # cells are cut into as many, if there are enough
_TOKENS_TOGETHER = 2048  # of a pass of the reference engine


@dataclass(frozen=True)
class Expected:
    """What the reference engine says of two made-up facts of one shape.

    Attributes:
        cases: the facts.
        mediators: that they are restored by.
        positions: where.
        log_p: `(n_samples,)` of each fact, by cell.
    """

    cases: Sequence[Case]
    mediators: Sequence[Mediator]
    positions: Sequence[int]
    log_p: Sequence[dict[Restoration, npt.NDArray[np.float64]]]


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes:
        problem: why the suffix engine is not proven; None where it is.
        packed: whether suffixes of several positions may share block calls.
        against_packs: why not, where they would be worth while.
    """

    problem: str | None = None
    packed: bool = False
    against_packs: str | None = None


@within_memory("with a made-up prompt")
def judge(lm: LanguageModel, use: Use, limits: Limits) -> Verdict:
    """Compare the suffix engine with the reference engine.

    Raises:
        NoMemoryLeftError: nothing is proven either way.
    """
    noise = probe_noise(lm)
    longest = _longest(lm, use)
    expected = [expectation(lm, noise, Shape(_SHORT, _SPAN.start), _in_windows(use.mediators))]
    if longest != expected[0].cases[0].shape:
        expected.append(expectation(lm, noise, longest, use.mediators))

    def problem_with(*, packed: bool) -> str | None:
        for of_shape in expected:
            # A budget cuts walks, and packs, too: as large as they get, they are proven by a second
            # round.
            for budget in [_walking_budget(lm, of_shape), *([None] if packed else [])]:
                engine = SuffixEngine(lm, noise, budget, packed=packed, limits=limits)
                problem = _difference(engine, of_shape)
                if problem is not None:
                    return problem
        return None

    against_packs = None
    if lm.d_embedding >= limits.pack_width:
        against_packs = problem_with(packed=True)
        if against_packs is None:
            return Verdict(packed=True)
    return Verdict(problem_with(packed=False), against_packs=against_packs)


def _walking_budget(lm: LanguageModel, expected: Expected) -> int:
    """Rows of a block call, so few that the cells take several walks."""
    n_cases = len(expected.cases)
    cells = len(expected.mediators) * lm.n_layers
    recorded = max(recorded_rows(_SAMPLES, m.direction) for m in expected.mediators)
    return n_cases * max(recorded, _SAMPLES * (cells // _WALKS))


def _in_windows(mediators: Sequence[Mediator]) -> list[Mediator]:
    """Mediators, and those that have a window in other windows."""
    others = [replace(m, window=window) for m in mediators if m.window for window in _WINDOWS]
    return list(dict.fromkeys([*mediators, *others]))


def _longest(lm: LanguageModel, use: Use) -> Shape:
    """The longest prompt with the longest answer, as far as the model reads them."""
    n_answer = max((shape.n_answer for shape in use.shapes), default=1)
    n_positions = max((shape.n_positions for shape in use.shapes), default=_SHORT)
    if lm.max_positions is not None:
        n_positions = min(n_positions, lm.max_positions + 1 - n_answer)
    return Shape(max(n_positions, _SPAN.stop), _SPAN.start, n_answer)


def probe_noise(lm: LanguageModel) -> RandomNoise:
    """What corrupts the made-up facts."""
    # Of few tokens: in float32, the whole matrix of a large model is gigabytes.
    level = 3 * float(embed(lm, _made_up(lm, _SHORT, 0)).float().std())
    # Tokens that no text holds may share one embedding; without noise nothing would be compared.
    return RandomNoise(level or 1.0, samples=_SAMPLES)


def _made_up(lm: LanguageModel, n_positions: int, number: int) -> tuple[int, ...]:
    """Token ids of a prompt; those of two numbers differ at every position."""
    n_ids = min(lm.n_embeddings - 1, 4 * n_positions + 2) // 2 * 2  # even, so that none agree
    step = 1 + 2 * number
    return tuple(1 + (step * position + number) % n_ids for position in range(n_positions))


def expectation(
    lm: LanguageModel, noise: Noise, shape: Shape, mediators: Sequence[Mediator]
) -> Expected:
    """Run the reference engine on some cells of two facts: many share a pass."""
    cases = [_case(lm, shape, number) for number in (0, 1)]
    last = shape.n_positions - 1
    positions = sorted({shape.start, shape.n_positions // 2, last - 1, last} - {0})
    cells = [
        (mediator, layer, position)
        for mediator in mediators
        for layer in sorted({*_layers(lm)} & {*lm.paths.layers_with(mediator.site, lm.n_layers)})
        for position in positions
    ]
    engine = ReferenceEngine(lm, noise)
    together = max(1, _TOKENS_TOGETHER // (noise.samples * len(cases[0].forced_ids)))
    log_p = [
        {cell: found["log_probability"] for cell, found in engine.cells(case, cells, together)}
        for case in cases
    ]
    return Expected(cases, mediators, positions, log_p)


def _case(lm: LanguageModel, shape: Shape, number: int) -> Case:
    ids = _made_up(lm, shape.n_positions + shape.n_answer, number)
    prompt, after = ids[: shape.n_positions], ids[shape.n_positions + 1 :]
    answer = (*clean_run(lm, prompt).predicted_ids, *after)
    return Case(number, prompt, _SPAN, answer)


def _layers(lm: LanguageModel) -> list[int]:
    last = lm.n_layers - 1
    return sorted({0, min(1, last), lm.n_layers // 2, max(0, last - 1), last})


def _difference(engine: SuffixEngine, expected: Expected) -> str | None:
    """How an engine differs from what is expected; None where it agrees in every cell.

    Raises:
        NoMemoryLeftError: nothing is proven either way.
    """
    lm, noise = engine.lm, engine.noise
    try:
        found = list(engine.restored(expected.cases, expected.mediators, expected.positions))
    except NotReplayedError as error:
        return str(error)
    except Exception as error:  # whatever a family does with its arguments may raise anything
        if isinstance(error, NoMemoryLeftError) or is_out_of_memory(error):
            n_positions = len(expected.cases[0].forced_ids)
            raise NoMemoryLeftError(
                f"out of memory with a made-up prompt of {n_positions} tokens: {MORE_ROOM}"
            ) from error
        log.debug("the suffix engine fails on %s", type(lm.model).__name__, exc_info=True)
        return f"{type(error).__name__}: {error}"
    allowed = _Allowed(lm, noise, expected)
    for (case, ours), theirs in zip(found, expected.log_p, strict=True):
        for (mediator, layer, position), log_p in theirs.items():
            restored = ours[mediator.key]["log_probability"][:, layer, position]
            difference = float(np.abs(restored - log_p).max())
            if not allowed.has(difference):
                return (
                    f"log p of {mediator.key} at layer {layer}, position {position} of "
                    f"{len(case.input_ids)} is off by {difference:.2g}"
                )
    return None


class _Allowed:
    """How much of log p may be rounding: measured only where it counts."""

    def __init__(self, lm: LanguageModel, noise: Noise, expected: Expected) -> None:
        self.lm = lm
        self.noise = noise
        self.expected = expected
        self._least, self._most, self._floors = _TOLERANCE.get(lm.model.dtype, _HALF_TOLERANCE)

    def has(self, difference: float) -> bool:
        """Whether a difference is no more than rounding; NaN is more."""
        if self._least < difference <= self._most:
            floor = rounding_floor(
                self.lm, self.expected.cases[0], self.noise, self.expected.mediators[0]
            )
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
    for layer in _layers(lm):

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
