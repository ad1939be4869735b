"""Draws a sweep: each score against alpha with its intervals, and scores against each other with the Pareto front."""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from speechft_merge.errors import UsageError
from speechft_merge.similarity.caption import name_models
from speechft_merge.similarity.drawing import COLUMN, Drawing, plain
from speechft_merge.sweep.decision import find_dominated, lines_of, shown_line
from speechft_merge.sweep.grid import BASE, FINETUNED
from speechft_merge.sweep.words import named

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechft_merge.sweep.decision import Decision
    from speechft_merge.sweep.grid import Cell
    from speechft_merge.sweep.intervals import Curve
    from speechft_merge.sweep.report import SweepReport

    Place = tuple[float, float]

STYLES: list[
    dict[str, Any]
] = [  # Okabe and Ito's colours, which the colour-blind can tell apart; markers and dashes, for print in grey
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#009E73", "marker": "^", "linestyle": "-."},
    {"color": "#CC79A7", "marker": "v", "linestyle": (0, (3, 1, 1, 1, 1, 1))},
    {"color": "#E69F00", "marker": "D", "linestyle": (0, (5, 1))},
    {"color": "#56B4E9", "marker": "P", "linestyle": ":"},
]
GREY = "0.72"
FULL = 2 * COLUMN
"""Inches: both columns of a paper."""


def draw_sweep(report: SweepReport) -> Drawing:
    """Draw the scores of a sweep, or without any its CKA.

    Raises:
        UsageError: there is nothing to draw.
    """
    decision = report.decision
    if not decision.axes:
        raise UsageError("the sweep has neither scores nor CKA to draw")
    rows, columns = _layout(decision)
    size = (COLUMN if columns == 1 else FULL, 0.5 + 2.1 * rows)
    method = report.recipe.get("method", "mean")
    merges = f"{len(decision.cells)} merges" + ("" if method == "mean" else f" by {method}")
    caption = ". ".join([f"{name_models(report.models, {})}; {merges}", *report.in_words()[:1]])
    return Drawing(
        "Which alpha?", _describe(decision), caption, size, partial(_fill, report=report),
        report.models, report.to_table(), report.in_words(), [report.legend],
    )  # fmt: skip


def _layout(decision: Decision) -> tuple[int, int]:
    """Return the rows and columns of panels: one for each score, and one for the goal against each other."""
    panels = 2 * len(decision.axes) - 1
    columns = min(panels, 3)
    return -(-panels // columns), columns


def _fill(figure: Any, report: SweepReport) -> None:
    decision = report.decision
    goal, *others = decision.axes.values()
    rows, columns = _layout(decision)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, curve in zip(panels, (goal, *others), strict=False):
        _draw_curve(axes, decision, curve)
    for axes, other in zip(panels[len(others) + 1 :], others, strict=False):
        _draw_front(axes, decision, goal, other)
    for axes in panels[2 * len(others) + 1 :]:
        axes.set_axis_off()
    labelled = dict(reversed(both) for axes in panels for both in zip(*axes.get_legend_handles_labels(), strict=True))
    figure.legend(
        labelled.values(), labelled.keys(), frameon=False, loc="outside upper center", ncols=2 if columns == 1 else 4
    )


def _draw_curve(axes: Any, decision: Decision, curve: Curve) -> None:
    estimates, lines = curve.estimates(), lines_of(decision.cells)
    places = {cell: (cell.alpha, found.value) for cell, found in estimates.items()}
    shown = shown_line(decision)
    for line, style in zip(lines, itertools.cycle(STYLES)):
        if line == shown and curve.groups:  # the bands of all lines would hide them
            low, high = np.array([(estimates[cell].low, estimates[cell].high) for cell in line]).T
            band = {"color": style["color"], "alpha": 0.15, "linewidth": 0, "label": "95 % interval"}
            axes.fill_between([cell.alpha for cell in line], low, high, **band)
        kind = " ".join([f"tilt {line[-1].tilt:g}", *line[-1].rules]) if len(lines) > 1 else "merges"
        axes.plot(*_along(line, places), **style, zorder=2, label=plain(kind))
        _draw_misses(axes, decision, line, style, places)
    if decision.goal is curve and decision.plateau and decision.plateau[0] < decision.plateau[1]:
        axes.axvspan(*decision.plateau, color="0.9", linewidth=0, zorder=0, label="not told apart from the pick")
    for gate in decision.rule.gates:
        if gate.name == curve.name:
            look = {"color": "0.3", "linewidth": 0.8, "linestyle": (0, (6, 3)), "label": plain(f"gate {gate}")}
            axes.axhline(gate.bound(curve), **look)
    for (name, cell), linestyle in zip(decision.heuristics.items(), itertools.cycle([":", (0, (1, 4))])):
        axes.axvline(cell.alpha, color="0.4", linewidth=0.8, linestyle=linestyle, label=plain(f"{name} (heuristic)"))
    _draw_ends(axes, decision, places)
    axes.set_xlabel("alpha")
    axes.set_ylabel(_title(decision, curve))


def _draw_front(axes: Any, decision: Decision, goal: Curve, other: Curve) -> None:
    dominated = find_dominated([goal, other])
    places = {cell: (other.value(cell), goal.value(cell)) for cell in goal.cells}
    for line, style in zip(lines_of(decision.cells), itertools.cycle(STYLES)):
        for cells, color in (
            ([cell for cell in line if cell in dominated], GREY),
            ([cell for cell in line if cell not in dominated], style["color"]),
        ):
            look = style | {"color": color, "linestyle": ""}
            axes.plot(*_along(cells, places), **look, zorder=2)
            _draw_misses(axes, decision, cells, look, places)
    front = [cell for cell in goal.cells if cell not in dominated and np.isfinite(places[cell]).all()]
    corners = _along(sorted(front, key=lambda cell: places[cell]), places)
    axes.plot(*corners, color="0.3", linewidth=0.8, zorder=1, label="Pareto front")
    _draw_ends(axes, decision, places)
    axes.set_xlabel(_title(decision, other))
    axes.set_ylabel(_title(decision, goal))


def _draw_misses(
    axes: Any, decision: Decision, cells: Sequence[Cell], style: dict[str, Any], places: dict[Cell, Place]
) -> None:
    """Make the markers of the cells that miss a gate hollow."""
    missed = [cell for cell in cells if not decision.meets(cell)]
    hollow = {"linestyle": "", "markerfacecolor": "white", "markeredgewidth": 0.8}
    axes.plot(*_along(missed, places), **style | hollow, zorder=3)
    if missed:
        axes.plot([], [], marker="o", color="0.3", label="hollow: misses a gate", **hollow)


def _draw_ends(axes: Any, decision: Decision, places: dict[Cell, Place]) -> None:
    ends = [(BASE, "base", "o", "none", 6), (FINETUNED, decision.end.removeprefix("the "), "s", "none", 6)]
    for cell, label, marker, face, size in [*ends, (decision.pick, "pick", "*", "#F0E442", 9)]:
        if cell in places:
            axes.plot(
                *places[cell], linestyle="", marker=marker, markersize=size, color="black", markerfacecolor=face,
                markeredgewidth=0.8, zorder=4, label=label,
            )  # fmt: skip


def _along(cells: Sequence[Cell], places: dict[Cell, Place]) -> Any:
    """Return the places of cells, x and y."""
    return np.array([places[cell] for cell in cells]).reshape(-1, 2).T


def _title(decision: Decision, curve: Curve) -> str:
    if curve.name in decision.features:
        return "CKA to the base" if curve.name == "cka_base" else "CKA to the fine-tune"
    return plain(f"{curve.name} ({curve.better} is better)")


def _describe(decision: Decision) -> str:
    names = " and ".join(decision.axes)
    pick = f"; the pick is {named(decision, decision.pick)}" if decision.pick else ""
    return f"Against alpha: {names} of {len(decision.cells)} merges, with 95 % intervals{pick}."
