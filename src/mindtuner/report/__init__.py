"""The page and the sheet that show a run to people."""

from mindtuner.report.page import write_report

__all__ = ["write_report"]
