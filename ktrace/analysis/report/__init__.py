"""The HTML report of a run: one file that opens offline, with every fact's heatmaps in it."""

from ktrace.analysis.report.collected import CellCollector
from ktrace.analysis.report.embedded import embedded_heatmap
from ktrace.analysis.report.page import write_report

__all__ = ["CellCollector", "embedded_heatmap", "write_report"]
