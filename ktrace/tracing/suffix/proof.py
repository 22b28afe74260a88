"""Whether the suffix engine gives the reference engine's numbers on the model at hand.

What a replay takes for granted of a model's blocks is compared where it could fail: on two facts
that differ in every token, in a short prompt and in one as long as the dataset's longest; from
early, middle and late positions on; in several walks, one after the other; in packs. See `Use` for
what hangs on the run. That costs about one fact's time, once for a model (docs/runs.md).
"""

import logging
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ktrace.errors import NoMemoryLeftError, NotReplayedError
from ktrace.lm.memory import MORE_ROOM, is_out_of_memory, within_memory
from ktrace.lm.model import LanguageModel
from ktrace.lm.told import Told
from ktrace.tracing.engine import Case, Scores, Use
from ktrace.tracing.mediators import Cell
from ktrace.tracing.suffix.engine import SuffixEngine
from ktrace.tracing.suffix.expected import (
    SAMPLES,
    SHORT,
    Expected,
    Seen,
    asked_of_longest,
    asked_of_short,
    expectation,
    in_windows,
    longest_shape,
)
from ktrace.tracing.suffix.limits import Limits
from ktrace.tracing.suffix.rounding import Rounding
from ktrace.tracing.suffix.runs import Base, recorded_rows
from ktrace.tracing.suffix.verdicts import Verdict

log = logging.getLogger(__name__)

_WALKS = 3  # cells are cut into as many, if there are enough


@within_memory("with a made-up prompt")
def proven(lm: LanguageModel, use: Use, limits: Limits) -> Verdict:
    """Compare the suffix engine with the reference engine.

    Raises:
        NoMemoryLeftError: nothing is proven either way.
    """
    longest = longest_shape(lm, use)
    asked = [asked_of_short(lm, in_windows(use.mediators))]
    if longest.n_positions + longest.n_answer > SHORT + 1:
        asked.append(asked_of_longest(lm, use.mediators, longest))
    # Every cell is computed once, and compared; of the short prompt, in two rounds.
    compared = sum(one.n_cells for one in (asked[0], *asked))
    counted = _Counted(use.told, sum(one.n_cells for one in asked) + compared)
    short, *others = [expectation(lm, one, counted.seen) for one in asked]
    # A budget cuts walks, and packs, too: as large as they get, they are proven by a second round.
    rounds = [(short, _walking_budget(short)), (short, None), *((one, None) for one in others)]

    def problem_with(*, packed: bool) -> str | None:
        for one, budget in rounds:
            engine = SuffixEngine(lm, one.noise, budget, packed=packed, limits=limits)
            problem = _difference(engine, one, counted.seen)
            if problem is not None:
                return problem
        return None

    against_packs = None
    if lm.d_embedding >= limits.pack_width:
        against_packs = problem_with(packed=True)
        if against_packs is None:
            return Verdict(packed=True)
        counted.total += compared
    return Verdict(problem_with(packed=False), against_packs=against_packs)


class _Counted:
    """Tells how many cells are done, of those that are known to be asked for."""

    def __init__(self, told: Told, total: int) -> None:
        self._told, self._done, self.total = told, 0, total

    def seen(self, n_cells: int) -> None:
        """So many more are done."""
        self._done += n_cells
        self._told(self._done, self.total)


def _walking_budget(expected: Expected) -> int:
    """Rows of a block call, so few that the cells take several walks."""
    n_cases = len(expected.cases)
    cells = len(expected.mediators) * len(expected.only.layers)
    recorded = max(recorded_rows(SAMPLES, Base.of(m)) for m in expected.mediators)
    return n_cases * max(recorded, SAMPLES * -(-cells // _WALKS))


def _difference(engine: SuffixEngine, expected: Expected, seen: Seen) -> str | None:
    """How an engine differs from what is expected; None where it agrees in every cell.

    Raises:
        NoMemoryLeftError: nothing is proven either way.
    """
    lm = engine.lm
    try:
        found = list(engine.restored_at(expected.cases, expected.mediators, expected.only))
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
        seen(len(theirs))
    return None


def _of_cell(case: Case, found: Mapping[str, Scores], cell: Cell) -> npt.NDArray[np.float64]:
    """log p of a cell among everything that an engine gave of a case, `(n_samples,)`."""
    mediator = cell.mediator
    of_layer = found[mediator.key]["log_probability"][:, cell.layer]
    of_head = of_layer[:, cell.head] if mediator.has_heads else of_layer
    column = mediator.places(case.span, len(case.input_ids)).index(cell.place)
    log_p: npt.NDArray[np.float64] = of_head[:, column]
    return log_p
