"""Causal tracing of factual knowledge in language models.

    model = ktrace.load_model("tiny")               a preset, a folder or a hub id
    model = ktrace.load_model(model, tokenizer)     or of transformers, in memory
    trace = ktrace.trace(model, prompt, subject)    every layer and position of one prompt
    ktrace.trace_many(model, facts)                 the frame of many facts, without a store
    trace.plot(); trace.to_frame()                  a figure; a pandas frame
    ktrace.Run(run_folder)                          a stored run: its effects, averages, figures
    ktrace.load_effects(run_folder)                 the frame of a stored run, without torch
    ktrace.average(frame_or_folder, by=...)         averages with their intervals
    ktrace.plot_lines(averages)                     those of ktrace.average as lines over layers
    ktrace.to_xarray(run_folder)                    labelled arrays of a stored run (an extra)
    ktrace.load_activations(run_folder, ...)        states of a stored run, all facts at once

Runs over many facts are commands: `python -m ktrace --help`. Errors that a person can mend are
`ktrace.KtraceError`.

The public API is what `__all__` names; each name is imported when it is first used, so that
`import ktrace` stays light and reading stores never imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ktrace.analysis.activations import load_activations
    from ktrace.analysis.average import average
    from ktrace.analysis.effects import load_effects
    from ktrace.analysis.figures.curves import plot_lines
    from ktrace.analysis.run import Run
    from ktrace.analysis.xarray_view import to_xarray
    from ktrace.api.load import load_model
    from ktrace.api.many import trace_many
    from ktrace.api.trace import trace
    from ktrace.api.traced import Trace
    from ktrace.errors import KtraceError

_HOMES = {
    "KtraceError": "ktrace.errors",
    "Run": "ktrace.analysis.run",
    "Trace": "ktrace.api.traced",
    "average": "ktrace.analysis.average",
    "load_activations": "ktrace.analysis.activations",
    "load_effects": "ktrace.analysis.effects",
    "load_model": "ktrace.api.load",
    "plot_lines": "ktrace.analysis.figures.curves",
    "to_xarray": "ktrace.analysis.xarray_view",
    "trace": "ktrace.api.trace",
    "trace_many": "ktrace.api.many",
}

__all__ = [
    "KtraceError",
    "Run",
    "Trace",
    "average",
    "load_activations",
    "load_effects",
    "load_model",
    "plot_lines",
    "to_xarray",
    "trace",
    "trace_many",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ktrace' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
