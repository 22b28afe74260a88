"""Which engine computes a run: the one asked for, where it is proven on the loaded model."""

import logging

from ktrace.config import EngineConfig, EngineName
from ktrace.lm.model import LanguageModel
from ktrace.tracing.engine import Engine
from ktrace.tracing.noise import Noise
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.suffix.engine import SuffixEngine
from ktrace.tracing.suffix.limits import MEASURED, Limits
from ktrace.tracing.suffix.proof import ReferenceCells, disproof, reference_cells

log = logging.getLogger(__name__)


def make_engine(
    config: EngineConfig, lm: LanguageModel, noise: Noise, limits: Limits = MEASURED
) -> Engine:
    """The engine that a config asks for.

    A family whose blocks cannot be replayed gets the reference engine, and one logged line says so.

    Args:
        config: the keys `engine.*`.
        lm: the model.
        noise: what corrupts.
        limits: sizes of batches and calls of the suffix engine.
    """
    if config.name is EngineName.reference:
        return ReferenceEngine(lm, noise)
    expected = reference_cells(lm)
    problem = disproof(SuffixEngine(lm, expected.noise, limits=limits), expected)
    if problem is None:
        packed = _may_pack(lm, expected, limits)
        return SuffixEngine(lm, noise, config.row_budget, packed=packed, limits=limits)
    log.warning(
        "engine=suffix cannot be proven on %s (%s): going on with engine=reference",
        type(lm.model).__name__,
        problem,
    )
    return ReferenceEngine(lm, noise)


def _may_pack(lm: LanguageModel, expected: ReferenceCells, limits: Limits) -> bool:
    """Whether suffixes of several positions may share block calls: some families forbid it."""
    if lm.d_embedding < limits.pack_width:
        return False
    engine = SuffixEngine(lm, expected.noise, packed=True, limits=limits)
    problem = disproof(engine, expected)
    if problem is not None:
        log.info("%s takes no packed suffixes: %s", type(lm.model).__name__, problem)
    return problem is None
