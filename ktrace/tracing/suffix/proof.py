"""Whether the suffix engine gives the reference engine's numbers on the model at hand.

What a replay takes for granted of a model's blocks is compared where it could fail: on two facts
that differ in every token, in a short prompt and in one as long as the dataset's longest; from
early, middle and late positions on; in several walks, one after the other; in packs. See `Use` for
what hangs on the run. That costs some 2 % of a run of a hundred facts (docs/runs.md).
"""

import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from torch import nn

from ktrace.errors import NoMemoryLeftError, NotReplayedError
from ktrace.facts import Span
from ktrace.lm.memory import MORE_ROOM, is_out_of_memory, release, within_memory
from ktrace.lm.model import Config, LanguageModel
from ktrace.tracing.clean import clean_run
from ktrace.tracing.engine import Case, Scores, Shape, Use
from ktrace.tracing.measure import embed
from ktrace.tracing.mediators import Cell, Mediator, Place
from ktrace.tracing.noise import Noise, RandomNoise
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.suffix.engine import SuffixEngine
from ktrace.tracing.suffix.limits import Limits
from ktrace.tracing.suffix.rounding import Rounding
from ktrace.tracing.suffix.runs import Base, recorded_rows

log = logging.getLogger(__name__)

_SHORT = 6  # positions of the shorter prompt
_SPAN = Span(1, 3)  # of both prompts' subjects
_SAMPLES = 2  # of the shorter; the longer has one
# Windows that meet every kind of step between layers, whatever window is in use.
_WINDOWS = (1, 2, 3)
_WALKS = 3  # cells are cut into as many, if there are enough
# Of a pass of the reference engine: it makes logits of every token.
_TOKENS_TOGETHER = 2048
_LOGITS_TOGETHER = 2**26


@dataclass(frozen=True)
class Expected:
    """What the reference engine says of two made-up facts of one shape.

    Attributes:
        cases: the facts.
        noise: what corrupts them.
        mediators: that they are restored by.
        positions: where.
        log_p: `(n_samples,)` of each fact, by cell.
    """

    cases: Sequence[Case]
    noise: Noise
    mediators: Sequence[Mediator]
    positions: Sequence[int]
    log_p: Sequence[dict[Cell, npt.NDArray[np.float64]]]


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


@dataclass(frozen=True)
class Judged:
    """What a verdict is about: all that it hangs on beside the model.

    Attributes:
        mediators: that were restored.
        longest: of the prompts.
        limits: of the engine.
    """

    mediators: frozenset[Mediator]
    longest: Shape
    limits: Limits

    def covers(self, other: "Judged") -> bool:
        """Whether what holds here holds there: for fewer mediators, and for shorter prompts."""
        return (
            self.limits == other.limits
            and self.mediators >= other.mediators
            and self.longest.n_positions >= other.longest.n_positions
            and self.longest.n_answer >= other.longest.n_answer
        )


_VERDICTS: WeakKeyDictionary[nn.Module, dict[Hashable, dict[Judged, Verdict]]] = WeakKeyDictionary()


def judge(lm: LanguageModel, use: Use, limits: Limits) -> Verdict:
    """Compare the suffix engine with the reference engine; once for a loaded model and a use.

    Raises:
        NoMemoryLeftError: nothing is proven either way.
    """
    known = _VERDICTS.setdefault(lm.model, {}).setdefault(_nature(lm), {})
    asked = Judged(frozenset(use.mediators), _longest(lm, use), limits)
    for judged, verdict in known.items():
        # What fails for more may hold for less.
        if judged == asked or (verdict.problem is None and judged.covers(asked)):
            return verdict
    known[asked] = _judged(lm, use, limits)
    return known[asked]


def _nature(lm: LanguageModel) -> Hashable:
    """What a model computes by, as far as it can be seen: somebody may change it in memory."""
    config: Config = lm.model.config
    modules = tuple(
        (type(module), module.__dict__.get("forward"), len(module._forward_hooks))
        for module in lm.model.modules()
    )
    attention = getattr(config, "_attn_implementation", None)
    return lm.paths, lm.model.dtype, str(lm.device), attention, modules


@within_memory("with a made-up prompt")
def _judged(lm: LanguageModel, use: Use, limits: Limits) -> Verdict:
    longest = _longest(lm, use)
    short = _expected_of_short(lm, _in_windows(use.mediators))
    # A budget cuts walks, and packs, too: as large as they get, they are proven by a second round.
    rounds = [(short, _walking_budget(lm, short)), (short, None)]
    if longest.n_positions + longest.n_answer > _SHORT + 1:
        rounds.append((_expected_of_longest(lm, use.mediators, longest), None))

    def problem_with(*, packed: bool) -> str | None:
        for expected, budget in rounds:
            engine = SuffixEngine(lm, expected.noise, budget, packed=packed, limits=limits)
            problem = _difference(engine, expected)
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
    recorded = max(recorded_rows(_SAMPLES, Base.of(m)) for m in expected.mediators)
    return n_cases * max(recorded, _SAMPLES * (cells // _WALKS))


def _expected_of_short(lm: LanguageModel, mediators: Sequence[Mediator]) -> Expected:
    """Everywhere that differs, in a prompt so short that this is cheap."""
    last = lm.n_layers - 1
    layers = {0, min(1, last), lm.n_layers // 2, max(0, last - 1), last}
    positions = sorted({_SPAN.start, *range(_SHORT // 2, _SHORT)})
    shape = Shape(_SHORT, _SPAN.start)
    return _expectation(lm, probe_noise(lm), shape, mediators, sorted(layers), positions)


def _expected_of_longest(
    lm: LanguageModel, mediators: Sequence[Mediator], shape: Shape
) -> Expected:
    """Suffixes of every length up to eight, then of lengths that grow by a quarter."""
    layers = sorted({0, lm.n_layers // 2, max(0, lm.n_layers - 2)})
    lengths = [*range(1, 9)]
    while lengths[-1] < shape.n_positions:
        lengths.append(lengths[-1] * 5 // 4)
    first = shape.n_positions - shape.start
    positions = sorted({shape.n_positions - n for n in lengths if n < first} | {shape.start})
    noise = replace(probe_noise(lm), samples=1)
    return _expectation(lm, noise, shape, mediators, layers, positions)


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
    """Token ids of a prompt: the first ones, or spread over the whole vocabulary.

    Those of the two numbers differ at every position.
    """
    n_ids = lm.n_embeddings - 1
    stride = n_ids // n_positions if number and n_ids // n_positions > 1 else 1
    first = max(1, stride // 2) if number else 0
    return tuple(1 + (first + stride * position) % n_ids for position in range(n_positions))


def _expectation(
    lm: LanguageModel,
    noise: Noise,
    shape: Shape,
    mediators: Sequence[Mediator],
    layers: Sequence[int],
    positions: Sequence[int],
) -> Expected:
    """Run the reference engine on some cells of two facts: many share a pass, if there is room."""
    cases = [_case(lm, shape, number) for number in (0, 1)]
    have = {mediator: lm.paths.layers_with(mediator.site, lm.n_layers) for mediator in mediators}
    cells = [
        Cell(mediator, layer, place, head)
        for mediator in mediators
        for layer in layers
        if layer in have[mediator]
        for place in _places(mediator, cases[0], positions)
        for head in ({0, lm.n_heads(layer) - 1} if mediator.has_heads else (0,))
    ]
    tokens = noise.samples * len(cases[0].forced_ids)
    most = min(_TOKENS_TOGETHER, _LOGITS_TOGETHER // lm.n_embeddings)
    log_p = [_log_p(ReferenceEngine(lm, noise), case, cells, most // tokens) for case in cases]
    return Expected(cases, noise, mediators, positions, log_p)


def _places(mediator: Mediator, case: Case, positions: Sequence[int]) -> list[Place]:
    """Positions where states are put; where edges are cut, some of their sources, and groups."""
    places = mediator.places(case.span, len(case.input_ids))
    if mediator.cuts:
        return sorted({*places[:2], *places[len(places) // 2 :]})
    return [place for place in positions if place in places]


def _log_p(
    engine: ReferenceEngine, case: Case, cells: Sequence[Cell], together: int
) -> dict[Cell, npt.NDArray[np.float64]]:
    together = max(1, together)
    try:
        found = dict(engine.cells(case, cells, together))
    except Exception as error:
        if together == 1 or not is_out_of_memory(error):
            raise
    else:
        return {cell: scores["log_probability"] for cell, scores in found.items()}
    release()  # here, where the error and the tensors that it holds are gone
    return _log_p(engine, case, cells, together // 2)


def _case(lm: LanguageModel, shape: Shape, number: int) -> Case:
    ids = _made_up(lm, shape.n_positions + shape.n_answer, number)
    prompt, after = ids[: shape.n_positions], ids[shape.n_positions + 1 :]
    answer = (*clean_run(lm, prompt).predicted_ids, *after)
    return Case(number, prompt, _SPAN, answer)


def _difference(engine: SuffixEngine, expected: Expected) -> str | None:
    """How an engine differs from what is expected; None where it agrees in every cell.

    Raises:
        NoMemoryLeftError: nothing is proven either way.
    """
    lm = engine.lm
    try:
        found = list(engine.restored_at(expected.cases, expected.mediators, expected.positions))
    except NotReplayedError as error:
        return str(error)
    except Exception as error:  # whatever a family does with its arguments may raise anything
        if isinstance(error, NoMemoryLeftError) or is_out_of_memory(error):
            n_positions = len(expected.cases[0].forced_ids)
            raise NoMemoryLeftError(
                f"out of memory with a made-up prompt of {n_positions} tokens: {MORE_ROOM}"
            ) from error
        log.debug("the suffix engine fails on %s", type(lm.model).__name__, exc_info=True)
        n_positions = len(expected.cases[0].forced_ids)
        return (
            f"its blocks fail on suffixes of a prompt of {n_positions} tokens: "
            f"{type(error).__name__}: {error}"
        )
    allowed = Rounding(lm, expected.noise, expected.cases[0], expected.mediators[0])
    for (case, ours), theirs in zip(found, expected.log_p, strict=True):
        for cell, log_p in theirs.items():
            difference = float(np.abs(_of_cell(case, ours, cell) - log_p).max())
            if not allowed.covers(difference):
                head = f", head {cell.head}" if cell.mediator.has_heads else ""
                return (
                    f"log p of {cell.mediator.key} at layer {cell.layer}{head}, position "
                    f"{cell.place} of {len(case.input_ids)} is off by {difference:.2g}"
                )
    return None


def _of_cell(case: Case, found: Mapping[str, Scores], cell: Cell) -> npt.NDArray[np.float64]:
    """log p of a cell among everything that an engine gave of a case, `(n_samples,)`."""
    mediator = cell.mediator
    of_layer = found[mediator.key]["log_probability"][:, cell.layer]
    of_head = of_layer[:, cell.head] if mediator.has_heads else of_layer
    column = mediator.places(case.span, len(case.input_ids)).index(cell.place)
    log_p: npt.NDArray[np.float64] = of_head[:, column]
    return log_p
