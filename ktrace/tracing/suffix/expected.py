"""What the reference engine says of made-up facts, for the suffix engine to be compared with.

A short prompt and one as long as the dataset's longest; cells at early, middle and late layers, and
suffixes of many lengths. Every cell has rows of its own in a whole forward pass: nothing is shared
but the pass.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt

from ktrace.facts import Span
from ktrace.lm.memory import is_out_of_memory, release
from ktrace.lm.model import LanguageModel
from ktrace.terms import EVERYWHERE
from ktrace.tracing.clean import clean_run
from ktrace.tracing.engine import Case, Shape, Use
from ktrace.tracing.measure import embed
from ktrace.tracing.mediators import Cell, Mediator, Place
from ktrace.tracing.noise import Noise, RandomNoise
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.suffix.engine import most_packed
from ktrace.tracing.suffix.grid import Only, walking_together

SHORT = 6  # positions of the shorter prompt
_SPAN = Span(1, 3)  # of both prompts' subjects
SAMPLES = 2  # of the shorter; the longer has one
# Windows that meet every kind of step between layers, whatever window is in use.
_WINDOWS = (1, 2, 3)
# Of a pass of the reference engine.
_TOKENS_TOGETHER = 2048
_LOGITS_TOGETHER = 2**26

# Learns how many more cells are done.
Seen = Callable[[int], None]


@dataclass(frozen=True)
class Expected:
    """What the reference engine says of two made-up facts of one shape.

    Attributes:
        cases: the facts.
        noise: what corrupts them.
        mediators: that they are restored by.
        only: which cells of those are walked to be compared.
        log_p: `(n_samples,)` of each fact, by cell.
    """

    cases: Sequence[Case]
    noise: Noise
    mediators: Sequence[Mediator]
    only: Only
    log_p: Sequence[dict[Cell, npt.NDArray[np.float64]]]


@dataclass(frozen=True)
class Asked:
    """What the reference engine is to say.

    Attributes:
        noise: what corrupts the facts.
        shape: of both facts.
        mediators: that they are restored by.
        walked: which cells the suffix engine walks to be compared, those of `cells` among them.
        cells: of each fact.
    """

    noise: Noise
    shape: Shape
    mediators: Sequence[Mediator]
    walked: Only
    cells: Sequence[Sequence[Cell]]

    @property
    def n_cells(self) -> int:
        """Of both facts."""
        return sum(map(len, self.cells))


def asked_of_short(lm: LanguageModel, mediators: Sequence[Mediator]) -> Asked:
    """Everywhere that differs, in a prompt so short that this is cheap."""
    last = lm.n_layers - 1
    layers = {0, min(1, last), lm.n_layers // 2, max(0, last - 1), last}
    shape = Shape(SHORT, _SPAN.start)
    own = _own_places(mediators, shape)
    positions = sorted({_SPAN.start, *range(SHORT // 2, SHORT), *own})
    only = Only(positions, sorted(layers))
    return Asked(probe_noise(lm), shape, mediators, only, _cells(lm, shape, mediators, only))


def asked_of_longest(lm: LanguageModel, mediators: Sequence[Mediator], shape: Shape) -> Asked:
    """Suffixes of every length up to eight, then of lengths that grow by a quarter."""
    layers = sorted({0, lm.n_layers // 2, max(0, lm.n_layers - 2)})
    lengths = [*range(1, 9)]
    while lengths[-1] < shape.n_positions:
        lengths.append(lengths[-1] * 5 // 4)
    first = shape.n_positions - shape.start
    own = _own_places(mediators, shape)
    positions = sorted({shape.n_positions - n for n in lengths if n < first} | {shape.start, *own})
    noise = replace(probe_noise(lm), samples=1)
    cells = _cells(lm, shape, mediators, Only(positions, layers), in_turn=True)
    n_tokens = sum(shape.n_positions - position for position in positions)
    walked = Only(positions, _filling(lm, mediators, layers, n_tokens))
    return Asked(noise, shape, mediators, walked, cells)


def _own_places(mediators: Sequence[Mediator], shape: Shape) -> set[int]:
    """The first and the last position that mediators of some roles act at: no other may be left."""
    found: set[int] = set()
    for mediator in mediators:
        if mediator.positions != EVERYWHERE:
            places = mediator.places(_SPAN, shape.n_positions)
            reached = [place for place in places if place >= shape.start]
            found.update(reached[:1], reached[-1:])
    return found


def _filling(
    lm: LanguageModel, mediators: Sequence[Mediator], layers: Sequence[int], n_tokens: int
) -> list[int]:
    """Layers that are compared, and as many others as make packs as long as they get.

    Args:
        lm: the model.
        mediators: each of them has a row for each layer, or for each of its heads.
        layers: that are compared.
        n_tokens: of a row's suffixes.
    """
    rows = [
        sum(lm.most_heads if mediator.has_heads else 1 for mediator in some)
        for _, some in walking_together(mediators)
    ]
    enough = -(-most_packed(lm) // (n_tokens * min(rows)))
    # Late ones are cheap. The last has no row of its own where it restores hidden states.
    others = (layer for layer in reversed(range(lm.n_layers - 1)) if layer not in layers)
    return sorted([*layers, *islice(others, max(0, enough - len(layers)))])


def in_windows(mediators: Sequence[Mediator]) -> list[Mediator]:
    """Mediators, and those that have a window in other windows."""
    others = [replace(m, window=window) for m in mediators if m.window for window in _WINDOWS]
    return list(dict.fromkeys([*mediators, *others]))


def longest_shape(lm: LanguageModel, use: Use) -> Shape:
    """The longest prompt with the longest answer, as far as the model reads them."""
    n_answer = max((shape.n_answer for shape in use.shapes), default=1)
    n_positions = max((shape.n_positions for shape in use.shapes), default=SHORT)
    if lm.max_positions is not None:
        n_positions = min(n_positions, lm.max_positions + 1 - n_answer)
    return Shape(max(n_positions, _SPAN.stop), _SPAN.start, n_answer)


def probe_noise(lm: LanguageModel) -> RandomNoise:
    """What corrupts the made-up facts."""
    # Of few tokens: in float32, the whole matrix of a large model is gigabytes.
    level = 3 * float(embed(lm, _made_up(lm, SHORT, 0)).float().std())
    # Tokens that no text holds may share one embedding; without noise nothing would be compared.
    return RandomNoise(level or 1.0, samples=SAMPLES)


def _made_up(lm: LanguageModel, n_positions: int, number: int) -> tuple[int, ...]:
    """Token ids of a prompt: the first ones, or spread over the whole vocabulary.

    Those of the two numbers differ at every position.
    """
    n_ids = lm.n_embeddings - 1
    stride = n_ids // n_positions if number and n_ids // n_positions > 1 else 1
    first = max(1, stride // 2) if number else 0
    return tuple(1 + (first + stride * position) % n_ids for position in range(n_positions))


def _cells(
    lm: LanguageModel,
    shape: Shape,
    mediators: Sequence[Mediator],
    only: Only,
    *,
    in_turn: bool = False,
) -> list[list[Cell]]:
    """Cells of two facts that are compared.

    Args:
        lm: the model.
        shape: of both facts.
        mediators: that restore or cut.
        only: which cells.
        in_turn: whether each cell is run on one of the facts alone, as on a chessboard, so that
            each of them still meets every layer and every place.
    """
    have = {mediator: lm.paths.layers_with(mediator.site, lm.n_layers) for mediator in mediators}
    squares = [
        (n_layer + n_place + n_head, Cell(mediator, layer, place, head))
        for mediator in mediators
        for n_layer, layer in enumerate(only.layers)
        if layer in have[mediator]
        for n_place, place in enumerate(_places(mediator, shape, only.positions))
        for n_head, head in enumerate(_heads(lm, mediator, layer))
    ]
    return [
        [cell for square, cell in squares if not in_turn or square % 2 == number]
        for number in (0, 1)
    ]


def expectation(lm: LanguageModel, asked: Asked, seen: Seen) -> Expected:
    """Run the reference engine on some cells of two facts: many share a pass, if there is room.

    Args:
        lm: the model.
        asked: which cells.
        seen: learns how many more are done.
    """
    cases = [_case(lm, asked.shape, number) for number in (0, 1)]
    engine = ReferenceEngine(lm, asked.noise, few_logits=True)
    tokens = len(cases[0].forced_ids)
    logits = asked.shape.n_answer if engine.few_logits else tokens
    most = min(_TOKENS_TOGETHER // tokens, _LOGITS_TOGETHER // (lm.n_embeddings * logits))
    log_p = [
        _log_p(engine, case, of_case, most // asked.noise.samples, seen)
        for case, of_case in zip(cases, asked.cells, strict=True)
    ]
    return Expected(cases, asked.noise, asked.mediators, asked.walked, log_p)


def _heads(lm: LanguageModel, mediator: Mediator, layer: int) -> list[int]:
    """The first and the last of a layer; of a mediator without heads, what stands for one."""
    return sorted({0, lm.n_heads(layer) - 1}) if mediator.has_heads else [0]


def _places(mediator: Mediator, shape: Shape, positions: Collection[int]) -> list[Place]:
    """Positions where states are put; where edges are cut, some of their sources, and groups."""
    places = mediator.places(_SPAN, shape.n_positions)
    if mediator.cuts:
        return sorted({*places[:2], *places[len(places) // 2 :]})
    return [place for place in positions if place in places]


def _log_p(
    engine: ReferenceEngine, case: Case, cells: Sequence[Cell], together: int, seen: Seen
) -> dict[Cell, npt.NDArray[np.float64]]:
    together = max(1, together)
    found = {}
    try:
        for cell, scores in engine.cells(case, cells, together):
            found[cell] = scores["log_probability"]
            seen(1)
    except Exception as error:
        if together == 1 or not is_out_of_memory(error):
            raise
    else:
        return found
    seen(-len(found))
    release()  # here, where the error and the tensors that it holds are gone
    return _log_p(engine, case, cells, together // 2, seen)


def _case(lm: LanguageModel, shape: Shape, number: int) -> Case:
    ids = _made_up(lm, shape.n_positions + shape.n_answer, number)
    prompt, after = ids[: shape.n_positions], ids[shape.n_positions + 1 :]
    answer = (*clean_run(lm, prompt).predicted_ids, *after)
    return Case(number, prompt, _SPAN, answer)
