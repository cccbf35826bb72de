"""One self-contained HTML page from cells and runs; a pure function of files, never of a model."""

from robustmix.report.evidence import Evidence, ModelRecord, RunRecord, load, load_cells
from robustmix.report.gathering import check_suite, collect
from robustmix.report.page import render

__all__ = ["Evidence", "ModelRecord", "RunRecord", "check_suite", "collect", "load", "load_cells", "render"]
