"""Makes the figures of a report: layer against CKA, and the grids of every layer against every other."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from speechft_merge.errors import UsageError
from speechft_merge.similarity.caption import caption, describe_grids, describe_lines
from speechft_merge.similarity.drawing import COLUMN, Drawing
from speechft_merge.similarity.lines import WIDE, label_layers, plot_lines
from speechft_merge.similarity.report import LABELS

if TYPE_CHECKING:
    from speechft_merge.similarity.report import Report


def draw_lines(report: Report, kind: str) -> bytes:
    """Draw layer against CKA, as a file of one of `request.FIGURES`; a page has the table too.

    Raises:
        UsageError: matplotlib is not installed.
    """
    longest = max(len(layer.key.part) for layer in report.layers)
    size = COLUMN * (1 if len(report.layers) <= WIDE else 2), 2.3 + 0.06 * longest  # words stand upright below the axis
    told = caption(report) + (" Bands: 95 % intervals." if report.has_errors else "")
    return _drawing(report, "CKA by layer", describe_lines(report), told, size, _fill_lines).render(kind)


def draw_grids(report: Report, kind: str) -> bytes:
    """Draw every layer of a model against every layer of another, on the fixed scale 0 to 1.

    Raises:
        UsageError: matplotlib is not installed, or the report has no grids.
    """
    if not report.grids:
        raise UsageError("the report has no grid of layers to draw")
    size, told = (0.7 + 2.9 * len(report.grids), 3.0), caption(report)
    drawing = _drawing(report, "CKA of layers with layers", describe_grids(report), told, size, _fill_grids)
    return drawing.render(kind)


def _drawing(report: Report, title: str, description: str, told: str, size: tuple[float, float], fill: Any) -> Drawing:
    notes = [f"Estimator: {report.estimator}; {report.of_what()}; probe {report.probe.sha256[:12]}."]
    return Drawing(
        title, description, told, size, partial(fill, report=report),
        report.models, report.to_table(), report.in_words(), notes,
    )  # fmt: skip


def _fill_lines(figure: Any, report: Report) -> None:
    plot_lines(figure.subplots(), report.curves)
    figure.legend(frameon=False, loc="outside upper center", ncols=2)


def _fill_grids(figure: Any, report: Report) -> None:
    panels = figure.subplots(1, len(report.grids), squeeze=False)[0]
    keys = [layer.key for layer in report.layers]
    for axes, (pair, grid) in zip(panels, report.grids.items(), strict=True):
        ours, theirs = LABELS[pair].split(" vs ")
        image = axes.imshow(grid, vmin=0, vmax=1, origin="lower", cmap="viridis")
        axes.spines[:].set_visible(True)
        axes.set_xlabel(f"layer, {theirs}")
        axes.set_ylabel(f"layer, {ours}")
        for axis, line in ((axes.xaxis, axes.axvline), (axes.yaxis, axes.axhline)):
            label_layers(axis, keys, [key.label for key in keys], range(len(keys)), 1 + len(keys) // 10)
            for place in range(1, len(keys)):
                if keys[place].stack != keys[place - 1].stack:
                    line(place - 0.5, color="white", linewidth=1.2)
    figure.colorbar(image, ax=panels, label="CKA", shrink=0.8)
