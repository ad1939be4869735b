"""Draws figures: layer against CKA, a line for each pair of models with the band of its 95 % interval; and grids."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from speechft_merge.errors import UsageError
from speechft_merge.similarity.drawing import COLUMN, draw, make_page
from speechft_merge.similarity.report import LABELS

if TYPE_CHECKING:
    from speechft_merge.similarity.report import Report

STYLES = {  # Okabe and Ito's colours, which the colour-blind can tell apart; and markers, for print in grey
    "base_finetuned": {"color": "#D55E00", "marker": "s"},
    "base_merged": {"color": "#0072B2", "marker": "o"},
    "finetuned_merged": {"color": "#009E73", "marker": "^"},
}


def draw_lines(report: Report, kind: str) -> bytes:
    """Draw layer against CKA, as a file of one of `request.FIGURES`; a page has the table too.

    Raises:
        UsageError: matplotlib is not installed.
    """
    longest = max(len(layer.key.label) for layer in report.layers)
    height = max(2.4, 1.7 + 0.07 * longest)  # inches; words stand upright below the axis
    return draw(kind, (COLUMN, height), partial(_fill_lines, report=report), partial(_page, report))


def draw_grids(report: Report, kind: str) -> bytes:
    """Draw every layer of the base against every layer of the other models, on the fixed scale 0 to 1.

    Raises:
        UsageError: matplotlib is not installed, or the report has no grids.
    """
    if not report.grids:
        raise UsageError("the report has no grid of layers to draw")
    size = COLUMN * len(report.grids), 3.0
    return draw(kind, size, partial(_fill_grids, report=report), partial(_page, report))


def _fill_lines(figure: Any, report: Report) -> None:
    axes = figure.subplots()
    numbers = [*range(len(report.layers))]
    for pair, style in STYLES.items():
        if pair in report.mean:
            _line(axes, numbers, [layer.pairs[pair] for layer in report.layers], LABELS[pair], style)
    floor = [math.nan if layer.null is None else layer.null.mean for layer in report.layers]
    if any(map(math.isfinite, floor)):
        axes.plot(numbers, floor, color="0.5", linestyle=":", label="floor (mismatched)")
    axes.set_xlabel("layer")
    axes.set_ylabel("CKA" if report.estimator == "group" else f"CKA ({report.estimator})")
    _label_layers(axes.xaxis, report)
    axes.set_ylim(top=1.02, bottom=min(0.0, axes.get_ylim()[0]))
    figure.legend(frameon=False, loc="outside upper center", ncols=2)


def _fill_grids(figure: Any, report: Report) -> None:
    panels = figure.subplots(1, len(report.grids), squeeze=False)[0]
    for axes, (pair, grid) in zip(panels, report.grids.items(), strict=True):
        ours, theirs = LABELS[pair].split(", ")
        image = axes.imshow(grid, vmin=0, vmax=1, origin="lower", cmap="viridis")
        axes.spines[:].set_visible(True)
        axes.set_xlabel(f"layer, {theirs}")
        axes.set_ylabel(f"layer, {ours}")
        _label_layers(axes.xaxis, report)
        _label_layers(axes.yaxis, report)
    figure.colorbar(image, ax=panels, label="CKA", shrink=0.8)


def _label_layers(axis: Any, report: Report) -> None:
    """Label the rows of a report along an axis: as many blocks as there is room for beside the words at its ends."""
    keys = [layer.key for layer in report.layers]
    step = 1 + len(keys) // 14
    words = [place for place, key in enumerate(keys) if key.block is None]
    free = [place for place in range(len(keys)) if all(abs(place - word) >= step for word in words)]
    ticks = sorted([*words, *(place for place in free if (keys[place].block or 0) % step == 0)])
    axis.set_ticks(ticks, [keys[place].label for place in ticks])
    for tick, place in zip(axis.get_major_ticks(), ticks, strict=True):
        if axis.axis_name == "x" and len(keys[place].label) > 2:  # wider than the room of one block
            tick.label1.set_rotation(90)


def _line(axes: Any, numbers: list[int], found: list[Any], label: str, style: dict[str, Any]) -> None:
    values = [similarity.cka for similarity in found]
    ends = [(similarity.low, similarity.high) for similarity in found]
    axes.fill_between(numbers, *zip(*ends, strict=True), color=style["color"], alpha=0.2, linewidth=0)
    axes.plot(numbers, values, label=label, **style)


def _page(report: Report, svg: str) -> bytes:
    notes = [f"Estimator: {report.estimator}; {report.of_what()}; probe {report.probe.sha256[:12]}."]
    return make_page("CKA by layer", report.models, svg, report.to_table(), report.in_words(), notes)
