"""Decides which cell: gates, then the best value of one score; says how sure that is, and what is as good. Pure."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from speechft_merge.arguments import require_fields
from speechft_merge.sweep.gate import Gate, check_gates, check_goal
from speechft_merge.sweep.grid import BASE, FINETUNED, STOCK, Cell
from speechft_merge.sweep.intervals import RESAMPLES, SEED, curves, feature_curves

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from speechft_merge.sweep.gate import Verdict
    from speechft_merge.sweep.intervals import Curve, Estimate
    from speechft_merge.sweep.results import CellResult

    Floats = npt.NDArray[np.float64]
    Modesty = tuple[float, float, float, tuple[str, ...], str]


@dataclass(frozen=True, slots=True)
class Rule:
    """What is decided by, set before the sweep.

    Args:
        goal: the score to be best, in its own direction; without one nothing is picked.
        gates: what the pick must meet, see `gate.parse_gate`.
        strict: whether the whole interval must meet a gate, of scores that have units.

    Raises:
        UsageError: a value is invalid.

    Example:
        >>> from speechft_merge import Rule, parse_gate
        >>> print(*Rule("asr", (parse_gate("emotion>=base-0.01"),)).gates)
        emotion>=base-0.01
    """

    goal: str | None = None
    gates: tuple[Gate, ...] = ()
    strict: bool = False

    def __post_init__(self) -> None:
        require_fields(self)


@dataclass(frozen=True, slots=True)
class Certainty:
    """What the same rule picks in resamples of the groups."""

    resamples: int
    seed: int
    shares: dict[Cell, float]
    """Share of the resamples that pick a cell, for those that any picks; most often first."""
    none: float
    """Share in which no cell meets the gates."""
    alphas: tuple[float, float]
    """Between these lie 95 % of the alphas that are picked."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Which cell, why, and how sure."""

    rule: Rule
    scores: dict[str, Curve]
    features: dict[str, Curve]
    """Mean CKA to the base and to the fine-tune; empty where features were not compared."""
    verdicts: dict[Cell, tuple[Verdict, ...]]
    """Of every cell, in the order of the gates."""
    pick: Cell | None
    nearest: Cell | None
    """Where no cell meets the gates: the one that fails the fewest, by the least."""
    to_pick: dict[Cell, Estimate]
    """Goal of each cell minus that of the pick, paired; empty without a pick."""
    plateau: tuple[float, float] | None
    """Alphas around the pick's, at its tilt and rules, whose goals cannot be told apart from its; None if not known."""
    certainty: Certainty | None
    """None without a pick, or where no score that decides has units."""
    dominated: frozenset[Cell]
    """Another cell is nowhere worse in any of `axes`, and better in one."""
    heuristics: dict[str, Cell]
    """Picks that looked at no score."""
    end: str = "the fine-tune"
    """What alpha 1 is called."""

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All that are done."""
        return tuple(self.verdicts)

    @property
    def meeting(self) -> tuple[Cell, ...]:
        """The cells that meet all gates."""
        return tuple(filter(self.meets, self.cells))

    def meets(self, cell: Cell) -> bool:
        """Return whether a cell meets all gates."""
        return all(verdict.met for verdict in self.verdicts[cell])

    @property
    def front(self) -> tuple[Cell, ...]:
        """The cells that have all of `axes` and are not dominated."""
        return tuple(
            cell
            for cell in self.cells
            if cell not in self.dominated and all(math.isfinite(curve.value(cell)) for curve in self.axes.values())
        )

    @property
    def axes(self) -> dict[str, Curve]:
        """What the Pareto front is of: the scores, the goal first; without any, the features."""
        goal = {name: curve for name, curve in self.scores.items() if name == self.rule.goal}
        return goal | self.scores or self.features

    @property
    def goal(self) -> Curve | None:
        """The score to be best."""
        return None if self.rule.goal is None else self.scores[self.rule.goal]


def decide(
    results: Sequence[CellResult],
    rule: Rule,
    heuristics: Mapping[str, Cell] | None = None,
    end: str = "the fine-tune",
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Decision:
    """Apply a rule to the cells of a sweep.

    Args:
        results: of all cells that are done.
        rule: set before.
        heuristics: name -> the cell that it picks.
        end: what alpha 1 is called.
        resamples: of the groups, for how sure the pick is.
        seed: of the resamples.

    Raises:
        UsageError: the rule names a score that is not there, or asks for the worse.
        MismatchError: a cell was scored on other units than the base.
    """
    scores, features = curves(results), feature_curves(results)
    known = features | scores
    check_gates(rule.gates, {name: curve.better for name, curve in scores.items()} | dict.fromkeys(features))
    if rule.goal is not None:
        check_goal(rule.goal, scores)
    judged = [gate.judge(known[gate.name], rule.strict) for gate in rule.gates]
    verdicts = {result.cell: tuple(cells[result.cell] for cells in judged) for result in results}
    met = [cell for cell, found in verdicts.items() if all(verdict.met for verdict in found)]
    dominated = find_dominated([*(scores or features).values()])
    pick = None if rule.goal is None else best(scores[rule.goal], met, dominated)
    to_pick = {} if rule.goal is None or pick is None else scores[rule.goal].against(pick)
    return Decision(
        rule,
        scores,
        features,
        verdicts,
        pick,
        nearest=None if met or not verdicts else max(verdicts, key=lambda cell: _reach(verdicts[cell])),
        to_pick=to_pick,
        plateau=None if pick is None else find_plateau(to_pick, pick),
        certainty=None if pick is None else how_sure(known, rule, verdicts, dominated, resamples, seed),
        dominated=dominated,
        heuristics=dict(heuristics or {}),
        end=end,
    )


def best(goal: Curve, cells: Sequence[Cell], dominated: frozenset[Cell] = frozenset()) -> Cell | None:
    """Return the cell with the best value; None without any.

    Of equal ones one that is not dominated, then that with the smaller tilt, then alpha.
    """

    def place(cell: Cell) -> tuple[float, bool, Modesty]:
        return -goal.better.sign * round(goal.value(cell), 12), cell in dominated, _modesty(cell)

    return min((cell for cell in cells if math.isfinite(goal.value(cell))), key=place, default=None)


def find_plateau(to_pick: Mapping[Cell, Estimate], pick: Cell) -> tuple[float, float] | None:
    """Return the alphas around the pick, at its tilt and rules, whose difference to it may be 0; None without units."""
    line = along(pick, to_pick)
    alike = {cell for cell in line if to_pick[cell].low <= 0 <= to_pick[cell].high}
    if pick not in alike:
        return None
    place = line.index(pick)
    below = [*itertools.takewhile(alike.__contains__, line[place::-1])]
    above = [*itertools.takewhile(alike.__contains__, line[place:])]
    return below[-1].alpha, above[-1].alpha


def along(cell: Cell, cells: Mapping[Cell, object] | Sequence[Cell]) -> list[Cell]:
    """Return the cells that differ from one in alpha only, by alpha; a tilt of alpha 0 is none."""
    same = (one for one in cells if (one.rules, one.method) == (cell.rules, cell.method))
    return sorted((one for one in same if one.tilt == cell.tilt or not one.alpha), key=lambda one: one.alpha)


def shown_line(decision: Decision) -> list[Cell]:
    """Return the line that a plot shows in full: that of the pick; without one, of the plain merges."""
    return along(decision.pick or BASE, decision.cells)


def lines_of(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Return the lines of a plot against alpha: cells that differ in alpha only; no line for the end points alone."""
    kinds = {(abs(cell.tilt), cell.tilt, cell.rules) for cell in cells if cell not in (BASE, FINETUNED, STOCK)}
    return [along(Cell(1.0, tilt, rules), cells) for _, tilt, rules in sorted(kinds) or [(0.0, 0.0, ())]]


def how_sure(
    known: Mapping[str, Curve], rule: Rule, verdicts: Mapping[Cell, Sequence[Verdict]], dominated: frozenset[Cell],
    resamples: int, seed: int,
) -> Certainty | None:  # fmt: skip
    """Apply the same rule to resamples of the groups; None where none of its scores has units.

    A strict rule asks in each for as much more than the gate as the worse half of the interval that is known.
    """
    names = dict.fromkeys(name for name in (rule.goal, *(gate.name for gate in rule.gates)) if name is not None)
    if rule.goal is None or not any(len(known[name].groups) > 1 for name in names):
        return None
    values = {name: known[name].resampled(resamples, seed) for name in names}
    goal, cells = known[rule.goal], [*verdicts]
    allowed = np.isfinite(values[rule.goal])
    for place, gate in enumerate(rule.gates):
        spare = np.array([verdicts[cell][place].margin.value - verdicts[cell][place].reach for cell in cells])
        allowed &= gate.meets(gate.margins(known[gate.name], values[gate.name]) - spare)
    order = np.array(sorted(range(len(cells)), key=lambda place: (cells[place] in dominated, _modesty(cells[place]))))
    reached = np.where(allowed, goal.better.sign * values[rule.goal], -np.inf)[:, order]
    picked = order[reached.argmax(1)][allowed.any(1)]  # the first of equal ones
    counts = np.bincount(picked, minlength=len(cells))
    often = [place for place in np.argsort(-counts, kind="stable") if counts[place]]
    if not often:
        return Certainty(resamples, seed, {}, none=1.0, alphas=(math.nan, math.nan))
    low, high = np.quantile([cells[place].alpha for place in picked], [0.025, 0.975], method="inverted_cdf")
    return Certainty(
        resamples,
        seed,
        {cells[place]: float(counts[place] / resamples) for place in often},
        none=1 - len(picked) / resamples,
        alphas=(float(low), float(high)),
    )


def find_dominated(axes: Sequence[Curve]) -> frozenset[Cell]:
    """Return the cells to which another one is nowhere inferior, and somewhere superior; never by a score it lacks."""
    if not axes:
        return frozenset()
    values = np.stack([curve.better.sign * np.round(curve.values, 12) for curve in axes], 1)
    return frozenset(
        cell
        for cell, own in zip(axes[0].cells, values, strict=True)
        if ((values >= own).all(1) & (values > own).any(1)).any()
    )


def cka_floor(results: Sequence[CellResult], floor: float) -> Cell | None:
    """Return the cell of the largest alpha, all of it the same in each layer, up to which CKA to the base stays above.

    Args:
        results: of all cells that are done.
        floor: least mean CKA to the base.
    """
    plain = sorted(
        (result for result in results if result.cell == Cell(result.cell.alpha)), key=lambda one: one.cell.alpha
    )
    above = [*itertools.takewhile(lambda result: result.cka_base >= floor, plain)]
    return above[-1].cell if above else None


def _modesty(cell: Cell) -> Modesty:
    return abs(cell.tilt), cell.alpha, cell.tilt, cell.rules, cell.method


def _reach(verdicts: Sequence[Verdict]) -> tuple[int, float]:
    """Return less the gates that are missed, and by how much the worst."""
    short = [verdict.reach for verdict in verdicts if not verdict.met]
    return -len(short), min((reach if math.isfinite(reach) else -math.inf for reach in short), default=0.0)
