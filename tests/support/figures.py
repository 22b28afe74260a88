"""Figures that are not drawn, or not saved: they take most of an analysis."""

from ktrace.analysis.figures.draw import Drawn
from ktrace.analysis.figures.style import Saved

NO_FIGURES = Drawn([], [], [])
NOT_SAVED = Saved([], frozenset())
KINDS = ("png", "pdf", "svg")
