"""Which engine computes a run: the one asked for, where it is proven on the loaded model."""

import logging

from ktrace.config import EngineConfig, EngineName, Prove
from ktrace.lm.model import LanguageModel
from ktrace.tracing.engine import Engine, Use
from ktrace.tracing.noise import Noise
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.suffix.engine import SuffixEngine
from ktrace.tracing.suffix.judge import judge
from ktrace.tracing.suffix.limits import MEASURED, Limits
from ktrace.tracing.suffix.verdicts import VerdictFiles

log = logging.getLogger(__name__)


def make_engine(
    config: EngineConfig,
    lm: LanguageModel,
    noise: Noise,
    use: Use,
    limits: Limits = MEASURED,
    files: VerdictFiles | None = None,
) -> Engine:
    """The engine that a config asks for.

    A model whose blocks cannot be replayed gets the reference engine, and one logged line says so.

    Args:
        config: the keys `engine.*`.
        lm: the model.
        noise: what corrupts.
        use: what the engine is proven for.
        limits: sizes of batches and calls of the suffix engine.
        files: what other processes proved of this model; None where it is not known which it is.
    """
    if config.name is EngineName.reference:
        return ReferenceEngine(lm, noise)
    verdict, name = judge(lm, use, limits, config.prove, files), type(lm.model).__name__
    if config.prove is Prove.never:
        log.warning("engine.prove=never: %s", assumption(lm, packed=verdict.packed))
    if verdict.problem is not None:
        log.warning(
            "engine=suffix cannot be proven on %s (%s): going on with engine=reference",
            name,
            verdict.problem,
        )
        return ReferenceEngine(lm, noise)
    if verdict.against_packs is not None:
        log.info("%s takes no packed suffixes: %s", name, verdict.against_packs)
    return SuffixEngine(lm, noise, config.row_budget, packed=verdict.packed, limits=limits)


def assumption(lm: LanguageModel, *, packed: bool) -> str:
    """What is taken for granted of a model where nothing is proven."""
    packs = "in packs of several positions" if packed else "without packs"
    return (
        f"{type(lm.model).__name__} is taken to give the numbers of engine=reference by "
        f"engine=suffix, {packs}; nothing was compared"
    )
