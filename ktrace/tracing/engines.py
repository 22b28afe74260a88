"""Which engine computes a run: the one asked for, where it is proven on the loaded model."""

import logging

from ktrace.lm.model import LanguageModel
from ktrace.tracing.engine import Engine
from ktrace.tracing.noise import Noise
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.suffix.engine import SuffixEngine
from ktrace.tracing.suffix.proof import Cells, disproof, probe_noise

log = logging.getLogger(__name__)

# Narrower models gain less from larger products than the masks of packs cost.
PACK_WIDTH = 512


def make_engine(
    name: str, lm: LanguageModel, noise: Noise, *, row_budget: int | None = None
) -> Engine:
    """An engine by its config name.

    A family whose blocks cannot be replayed gets the reference engine, and one logged line says so.
    """
    if name == "reference":
        return ReferenceEngine(lm, noise)
    expected: Cells = {}
    problem = disproof(lm, SuffixEngine(lm, probe_noise(lm)), expected)
    if problem is None:
        return SuffixEngine(lm, noise, row_budget, packed=_may_pack(lm, expected))
    log.warning(
        "engine=suffix cannot be proven on %s (%s): going on with engine=reference",
        type(lm.model).__name__,
        problem,
    )
    return ReferenceEngine(lm, noise)


def _may_pack(lm: LanguageModel, expected: Cells) -> bool:
    """Whether suffixes of several positions may share block calls: some families forbid it."""
    if lm.d_embedding < PACK_WIDTH:
        return False
    problem = disproof(lm, SuffixEngine(lm, probe_noise(lm), packed=True), expected)
    if problem is not None:
        log.info("%s takes no packed suffixes: %s", type(lm.model).__name__, problem)
    return problem is None
