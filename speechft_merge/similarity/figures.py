"""Writes the figures and the table of a report into files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speechft_merge.output.folder import write_whole
from speechft_merge.similarity.plot import draw_grids, draw_lines
from speechft_merge.similarity.request import figure_kind

if TYPE_CHECKING:
    from pathlib import Path

    from speechft_merge.similarity.report import Report


def write_figures(
    report: Report, plot: Path | None = None, heatmap: Path | None = None, csv: Path | None = None
) -> None:
    """Write what is given a path.

    Args:
        report: the comparison.
        plot: layer against CKA: `.png`, `.svg`, `.pdf` or `.html`.
        heatmap: every layer against every other, likewise; nothing is written if the report has no grids.
        csv: one line for each layer and pair of models.

    Raises:
        UsageError: a suffix is another one, or matplotlib is not installed.
        OutputError, WriteError: a file cannot be written.
    """
    if plot is not None:
        write_whole(plot, draw_lines(report, figure_kind(plot)))
    if heatmap is not None and report.grids:
        write_whole(heatmap, draw_grids(report, figure_kind(heatmap)))
    if csv is not None:
        write_whole(csv, report.to_csv().encode())
