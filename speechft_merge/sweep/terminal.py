"""Plots a sweep in plain characters, for terminals and logs of jobs. Pure."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

from speechft_merge.foreign import clean
from speechft_merge.sweep.decision import shown_line
from speechft_merge.sweep.words import figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechft_merge.sweep.decision import Decision
    from speechft_merge.sweep.grid import Cell
    from speechft_merge.sweep.intervals import Curve
    from speechft_merge.sweep.report import SweepReport

PANELS = 3
"""Scores that are plotted, the goal first."""
_MARGIN = 10
"""Columns of the figures and the axis."""


def text_plot(report: SweepReport, width: int = 80, height: int = 12) -> str:
    """Return lines of text: the goal against alpha, under it up to two other scores, and what the characters mean.

    Args:
        report: the sweep; without scores its CKA is plotted.
        width: of the lines, at most.
        height: rows of the first score; the others have half of them.
    """
    decision, lines = report.decision, list[str]()
    plotted = [*decision.axes.values()][:PANELS]
    for number, curve in enumerate(plotted):
        lines += _panel(decision, curve, width - _MARGIN, height // 2 if number else height)
    return "\n".join([*(line.rstrip() for line in lines), *_legend(decision, plotted, width)])


def _legend(decision: Decision, plotted: Sequence[Curve], width: int) -> list[str]:
    names = [curve.name for curve in plotted]
    marks = {
        "o a merge": bool(plotted),
        "* the pick": decision.pick is not None,
        "x misses a gate": len(decision.meeting) < len(decision.cells),
        ". other tilt or rules": len(shown_line(decision)) < len(decision.cells),
        "| 95 % interval": any(curve.groups for curve in plotted),
        "- gate": any(gate.name in names for gate in decision.rule.gates),
        "= not told apart from the pick": decision.plateau is not None,
    }
    return textwrap.wrap(", ".join(mark for mark, is_there in marks.items() if is_there), width)


def _panel(decision: Decision, curve: Curve, width: int, height: int) -> list[str]:
    shown, estimates = shown_line(decision), curve.estimates()
    bounds = [gate.bound(curve) for gate in decision.rule.gates if gate.name == curve.name]
    ends = [end for cell in shown for end in (estimates[cell].low, estimates[cell].high)]
    finite = [one for one in (*curve.values.tolist(), *ends, *bounds) if math.isfinite(one)] or [0.0]
    low, high = min(finite), max(finite)
    rows = [[" "] * width for _ in range(height)]

    def put(mark: str, alpha: float, *values: float) -> None:
        if all(map(math.isfinite, values)):
            places = [round((height - 1) * (high - value) / (high - low or 1.0)) for value in values]
            for row in range(min(places), max(places) + 1):
                rows[row][round(alpha * (width - 1))] = mark

    for bound in bounds:
        for column in range(width):
            put("-", column / (width - 1), bound)
    for cell in curve.cells:
        if cell not in shown:
            put(".", cell.alpha, curve.value(cell))
    for cell in shown:
        put("|", cell.alpha, estimates[cell].low, estimates[cell].high)
    for cell in shown:
        put(_mark(decision, cell), cell.alpha, curve.value(cell))
    labels = {0: figure(high), height - 1: figure(low)}
    title = clean(f"{curve.name}, {curve.better} is better" if curve.name in decision.scores else curve.name)
    drawn = [f"{labels.get(number, ''):>{_MARGIN - 3}} | {''.join(row)}" for number, row in enumerate(rows)]
    return [title, *drawn, *_axis(decision, curve, width)]


def _mark(decision: Decision, cell: Cell) -> str:
    return "*" if cell == decision.pick else "o" if decision.meets(cell) else "x"


def _axis(decision: Decision, curve: Curve, width: int) -> list[str]:
    line, numbers = ["-"] * width, [" "] * (width + 2)
    for quarter in range(5):
        column = round(quarter / 4 * (width - 1))
        line[column] = "+"
        numbers[column : column + len(f"{quarter / 4:g}")] = f"{quarter / 4:g}"
    if curve is decision.goal and decision.plateau is not None:
        first, last = (round(alpha * (width - 1)) for alpha in decision.plateau)
        line[first : last + 1] = "=" * (last + 1 - first)
    left = " " * (_MARGIN - 2)
    return [f"{left}+-{''.join(line)}", f"{left}  {''.join(numbers).rstrip()}", ""]
