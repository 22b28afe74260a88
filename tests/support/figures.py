"""Figures that are not drawn, or not saved: they take most of an analysis."""

from pathlib import Path

from ktrace.analysis.figures.drawing import Drawing
from ktrace.analysis.figures.files import KINDS, Saved
from ktrace.analysis.figures.processes import Artists

NO_FIGURES = Drawing(Path(), Artists())
NOT_SAVED = Saved([], frozenset())
__all__ = ["KINDS", "NOT_SAVED", "NO_FIGURES"]
