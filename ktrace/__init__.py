"""Causal tracing of factual knowledge in language models.

The public API is what `__all__` names; each name is imported when it is first used, so that
`import ktrace` stays light and reading stores never imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ktrace.analysis.activations import load_activations
    from ktrace.analysis.effects import load_effects
    from ktrace.errors import KtraceError

_HOMES = {
    "KtraceError": "ktrace.errors",
    "load_activations": "ktrace.analysis.activations",
    "load_effects": "ktrace.analysis.effects",
}

__all__ = ["KtraceError", "load_activations", "load_effects"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ktrace' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
