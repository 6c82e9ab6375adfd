"""An evaluation as one HTML file: results with intervals, charts, and every sample, searchable, without a network."""

from reasonrl.eval.report.command import run
from reasonrl.eval.report.write import write_report

__all__ = ["run", "write_report"]
