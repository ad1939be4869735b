"""Says a decision in words, and writes its figures as tables and figures have them. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from speechft_merge.scoring.scores import Better
from speechft_merge.sweep.decision import along
from speechft_merge.sweep.grid import BASE, FINETUNED, STOCK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from speechft_merge.sweep.decision import Certainty, Decision
    from speechft_merge.sweep.gate import Gate, Verdict
    from speechft_merge.sweep.grid import Cell
    from speechft_merge.sweep.intervals import Curve, Estimate

FLATTERED = "The pick was chosen on these data, so its own figures flatter it a little: report it on others."
ALIKE_ONLY = (
    "Only features were compared: CKA tells how alike they are, not how well they serve a task. Score the cells on "
    "data of yours to choose one."
)


def in_words(decision: Decision) -> list[str]:
    """Return a few sentences: what to take and why, how sure that is, and what to beware of."""
    if not decision.scores:
        return [ALIKE_ONLY]
    if decision.pick is None:
        return [_why_none(decision)]
    goal = decision.scores[str(decision.rule.goal)]
    return [
        _pick(decision, goal, decision.pick),
        *([_how_sure(decision, goal, decision.pick)] if goal.groups else []),
        *_doubts(decision, goal, decision.pick),
        *([_heuristics(decision)] if decision.heuristics else []),
        *([FLATTERED] if decision.pick not in (BASE, FINETUNED) else []),
    ]


def figure(value: float, sign: bool = False) -> str:
    """Return a figure as tables have it, about three digits behind a leading one; `-` for nan."""
    if not math.isfinite(value):
        return "-"
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def with_half(estimate: Estimate, sign: bool = False) -> str:
    """Return `0.812 ±0.034`: the greater half of the interval; only the figure where none is known."""
    half = f" ±{figure(estimate.half)}" if math.isfinite(estimate.half) else ""
    return figure(estimate.value, sign) + half


def named(decision: Decision, cell: Cell) -> str:
    """Return `alpha 0.25`, `alpha 0.25 with tilt -0.5 and cnn=0`, `the base`."""
    ends = {BASE: "the base", FINETUNED: decision.end, STOCK: "Model Stock's merge"}
    if cell in ends:
        return ends[cell]
    more = [*([f"tilt {cell.tilt:g}"] if cell.tilt else []), *cell.rules]
    return f"alpha {cell.alpha:g}" + (f" with {' and '.join(more)}" if more else "")


def _pick(decision: Decision, goal: Curve, pick: Cell) -> str:
    cells, met = len(decision.cells), len(decision.meeting)
    best = "highest" if goal.better is Better.HIGHER else "lowest"
    equal = sum(goal.value(cell) == goal.value(pick) for cell in decision.meeting)
    best += "" if equal == 1 else f" (as of {equal - 1} others)"
    verb = "Keep" if pick in (BASE, FINETUNED) else "Take"
    value = f"{goal.name} {with_half(goal.estimates()[pick])}"
    if met == cells:
        start = f"{verb} {named(decision, pick)}: {value} is the {best} of all {cells} cells"
        start += ", which all meet the gates" if decision.rule.gates else ""
    elif met == 1:
        start = f"{verb} {named(decision, pick)}, the only one of {cells} cells that meets the gates: {value}"
    else:
        start = (
            f"{verb} {named(decision, pick)}: {value} is the {best} of the {met} of {cells} cells that meet the gates"
        )
    ends = [end for end in (BASE, FINETUNED) if end != pick and end in goal.cells]
    against = [f"{with_half(goal.against(end)[pick], sign=True)} against {named(decision, end)}" for end in ends]
    return start + (f", {' and '.join(against)}." if ends else ".")


def _how_sure(decision: Decision, goal: Curve, pick: Cell) -> str:
    line, (low, high) = along(pick, decision.cells), decision.plateau or (pick.alpha, pick.alpha)
    alike = [cell for cell in line if low <= cell.alpha <= high]
    apart = "The alphas beside it are told apart from it"
    if len(line) == 1 or decision.plateau is None:
        apart = (
            "No other alpha of its kind was measured" if len(line) == 1 else "No interval tells it from other alphas"
        )
    elif len(alike) > 1:
        met = sum(map(decision.meets, alike))
        gates = f" ({met} of these {len(alike)} cells {'meets' if met == 1 else 'meet'} the gates)"
        apart = f"Alphas {low:g} to {high:g} cannot be told apart from it"
        apart += gates if met < len(alike) else ""
    certainty = decision.certainty
    return apart + (
        _in_resamples(decision, certainty, goal, pick) if certainty is not None and certainty.shares else "."
    )


def _in_resamples(decision: Decision, certainty: Certainty, goal: Curve, pick: Cell) -> str:
    low, high = certainty.alphas
    between = f"alphas of {low:g} to {high:g}" if low < high else f"alpha {low:g}"
    often, share = next(iter(certainty.shares.items()))
    rival = f"; most often it picks {named(decision, often)} ({share:.0%})" if often != pick else ""
    none = f"; in {certainty.none:.0%} no cell meets the gates" if certainty.none >= 0.005 else ""
    return (
        f"; in {certainty.resamples} resamples of the {len(goal.groups)} groups the same rule picks it in "
        f"{certainty.shares.get(pick, 0.0):.0%}, and {between} in 95%{rival}{none}."
    )


def _doubts(decision: Decision, goal: Curve, pick: Cell) -> Iterator[str]:
    for gate, verdict in zip(decision.rule.gates, decision.verdicts[pick], strict=True):
        if not verdict.certain and math.isfinite(verdict.margin.low):
            yield f"It meets {gate} by {with_half(verdict.margin)} only, so the data leave that open."
    names = dict.fromkeys([goal.name, *(gate.name for gate in decision.rule.gates)])
    bare = [name for name in names if name in decision.scores and not decision.scores[name].groups]
    if bare:
        have = "has" if len(bare) == 1 else "have"
        yield f"{' and '.join(bare)} {have} no figures for each utterance, so nothing says how sure that is."
    if goal.rough:
        yield f"{len(goal.groups)} groups are few: the intervals are rough, and mostly too narrow."


def _heuristics(decision: Decision) -> str:
    picks = ", ".join(f"{name} takes {named(decision, cell)}" for name, cell in decision.heuristics.items())
    return f"Heuristics, which look at no score: {picks}."


def _why_none(decision: Decision) -> str:
    cells, gates = len(decision.cells), decision.rule.gates
    if decision.nearest is not None:
        verdicts = zip(gates, decision.verdicts[decision.nearest], strict=True)
        short = ", ".join(_miss(gate, verdict) for gate, verdict in verdicts if not verdict.met)
        nearest = named(decision, decision.nearest)
        return f"None of the {cells} cells meets the gates; nearest is {nearest}, which misses {short}."
    if decision.rule.goal is not None:
        return f"No cell that meets the gates has a figure for {decision.rule.goal}."
    meeting = f"; {len(decision.meeting)} meet the gates" if gates else ""
    return (
        f"No score was named to be best, so nothing is picked; {len(decision.front)} of {cells} cells are on the "
        f"Pareto front of {' and '.join(decision.axes)}{meeting}."
    )


def _miss(gate: Gate, verdict: Verdict) -> str:
    return f"{gate} by {figure(-verdict.reach)}" if math.isfinite(verdict.reach) else f"{gate}, which is not known"
