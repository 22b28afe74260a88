"""Make an engine, and prove the suffix engine on the model before trusting it."""

import logging

import numpy as np
import torch

from ktrace.errors import KtraceError
from ktrace.facts import Span
from ktrace.lm.load import LanguageModel
from ktrace.tracing.clean import clean_run
from ktrace.tracing.engine import Case, Engine
from ktrace.tracing.mediators import MEDIATOR_NAMES, make_mediator
from ktrace.tracing.noise import Noise, RandomNoise
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.suffix import SuffixEngine

log = logging.getLogger(__name__)

# Of log p. Rounding stays well below; a wrong mask or prefix is far above.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
_HALF_TOLERANCE = 0.25


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
    noise = RandomNoise(3 * float(lm.embedding_weight.float().std()), samples=2)
    case = Case(0, ids, Span(1, 3), clean_run(lm, ids).predicted_ids)
    suffix, reference = SuffixEngine(lm, noise), ReferenceEngine(lm, noise)
    have = lm.paths.sites(0)
    mediators = [
        mediator
        for mediator in (make_mediator(name, 2) for name in MEDIATOR_NAMES)
        if mediator.site in have and (mediator.severs is None or mediator.severs in have)
    ]
    [(_, ours)] = suffix.restored([case], mediators)
    tolerance = _TOLERANCE.get(lm.model.dtype, _HALF_TOLERANCE)
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
