"""The suffix engine without its proof on the model at hand: other tests compare the engines."""

from collections.abc import Callable

from ktrace.tracing import engines
from ktrace.tracing.suffix import judge
from ktrace.tracing.suffix.verdicts import Verdict


def skip_proof(replace: Callable[[object, str, object], None] = setattr) -> None:
    """Take the engine for proven, by `setattr` or what undoes it after a test."""
    replace(
        engines,
        "judge",
        lambda lm, use, limits, *rest: Verdict(packed=lm.d_embedding >= limits.pack_width),
    )


def forget_verdicts() -> None:
    """Let models that have been judged be judged again."""
    judge._VERDICTS.clear()
