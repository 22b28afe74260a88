"""The suffix engine without its proof on the model at hand: other tests compare the engines."""

from collections.abc import Callable
from types import SimpleNamespace

from ktrace.tracing import engines
from ktrace.tracing.noise import RandomNoise


def skip_proof(replace: Callable[[object, str, object], None] = setattr) -> None:
    """Take the engine for proven, by `setattr` or what undoes it after a test."""
    cells = SimpleNamespace(noise=RandomNoise(1.0, samples=1))
    replace(engines, "reference_cells", lambda lm: cells)
    replace(engines, "disproof", lambda *_: None)
