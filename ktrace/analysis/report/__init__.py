"""The HTML report of a run: one file that opens offline, with every fact's heatmaps in it."""

from ktrace.analysis.report.collected import CellCollector
from ktrace.analysis.report.page import write_report

__all__ = ["CellCollector", "write_report"]
