"""The pick, the front, the plateau and how sure: held against their definitions, by enumeration."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import TILTED, World, a_decision, a_rule, a_score, a_sweep, features, known_only

from speechft_merge.errors import UsageError
from speechft_merge.scoring.scores import Better
from speechft_merge.sweep.decision import Rule, cka_floor, decide, find_dominated, find_plateau
from speechft_merge.sweep.grid import BASE, FINETUNED, Cell, lay_out
from speechft_merge.sweep.intervals import Estimate, curves
from speechft_merge.sweep.results import CellResult

ALPHAS = [number / 10 for number in range(11)]
CELLS = lay_out(ALPHAS)


grids = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=8)


@given(grids, st.tuples(*[st.sampled_from(Better)] * 3))
def test_a_cell_is_dominated_if_another_is_nowhere_worse_and_somewhere_better(
    rows: list[tuple[int, ...]], directions: tuple[Better, ...]
) -> None:
    cells = [Cell(place / 10) for place in range(len(rows))]
    results = [
        CellResult(cell, tuple(known_only(name, v, way) for name, v, way in zip("abc", row, directions, strict=True)))
        for cell, row in zip(cells, rows, strict=True)
    ]
    signed = [[way.sign * v for way, v in zip(directions, row, strict=True)] for row in rows]
    wanted = {
        cell
        for cell, own in zip(cells, signed, strict=True)
        if any(all(a >= b for a, b in zip(other, own, strict=True)) and other != own for other in signed)
    }
    assert find_dominated([*curves(results).values()]) == wanted


def test_a_cell_that_lacks_a_score_neither_dominates_nor_is_dominated() -> None:
    scores = [(known_only("a", 1.0), known_only("b", 1.0)), (known_only("a", 2.0),), (known_only("a", 3.0),)]
    results = [CellResult(cell, each) for cell, each in zip(CELLS, scores, strict=False)]
    assert find_dominated([*curves(results).values()]) == set()


@given(grids, st.sampled_from(Better))
def test_the_pick_is_the_best_that_meets_the_gates_and_of_equal_ones_what_is_not_dominated_then_the_least_change(
    rows: list[tuple[int, ...]], way: Better
) -> None:
    cells = [Cell((place // 3) / 10, (place % 3 - 1) / 2) for place in range(len(rows))]
    results = [
        CellResult(cell, (known_only("goal", goal, way), known_only("guard", guard)))
        for cell, (goal, guard, _) in zip(cells, rows, strict=True)
    ]
    meeting = [result for result in results if result.scores[1].value >= 2]
    found = decide(results, a_rule("goal", "guard>=2"))
    assert set(found.meeting) == {result.cell for result in meeting}
    if not meeting:
        assert found.pick is None
        assert found.nearest is not None
        return
    most = max(way.sign * result.scores[0].value for result in meeting)
    equal = [result.cell for result in meeting if way.sign * result.scores[0].value == most]
    equal = [cell for cell in equal if cell not in found.dominated] or equal
    assert found.nearest is None
    assert found.pick in equal
    assert abs(found.pick.tilt) == min(abs(cell.tilt) for cell in equal)
    assert found.pick.alpha == min(cell.alpha for cell in equal if abs(cell.tilt) == abs(found.pick.tilt))


def test_how_sure_is_what_the_rule_picks_in_each_resample() -> None:
    results = a_sweep(TILTED, speakers=9)
    found = decide(results, a_rule("phones", "wer<=base+0.02", "cka_base>=0.8"), resamples=300, seed=5)
    phones, wer = (curve.resampled(300, 5) for curve in found.scores.values())
    base, picks, none = found.cells.index(BASE), Counter[Cell](), 0
    for drawn_phones, drawn_wer in zip(phones, wer, strict=True):
        met = [
            place
            for place in range(len(results))
            if drawn_wer[place] <= drawn_wer[base] + 0.02 + 1e-9 and results[place].cka_base >= 0.8
        ]
        order = sorted(met, key=lambda n: (-drawn_phones[n], abs(found.cells[n].tilt), found.cells[n].alpha, n))
        picks.update([found.cells[order[0]]] if order else [])
        none += not order
    assert found.certainty is not None
    assert found.certainty.shares == {cell: count / 300 for cell, count in picks.items()}
    assert [*found.certainty.shares.values()] == sorted(found.certainty.shares.values(), reverse=True)
    assert found.certainty.none == pytest.approx(none / 300)
    alphas = sorted(cell.alpha for cell in picks.elements())
    assert found.certainty.alphas[0] == alphas[math.ceil(len(alphas) * 0.025) - 1]
    assert found.certainty.alphas[1] == alphas[math.ceil(len(alphas) * 0.975) - 1]


def test_a_decision_is_the_same_each_time_and_in_any_order_of_utterances() -> None:
    one, two = a_decision("phones", "wer<=base+0.05"), a_decision("phones", "wer<=base+0.05")
    assert (one.pick, one.certainty, one.to_pick, one.verdicts) == (two.pick, two.certainty, two.to_pick, two.verdicts)


def test_strict_gates_let_fewer_cells_pass_also_in_resamples() -> None:
    loose, strict = (a_decision("phones", "wer<=base+0.05", strict=one) for one in (False, True))
    assert set(strict.meeting) < set(loose.meeting)
    assert loose.certainty is not None
    assert strict.certainty is not None
    assert strict.certainty.alphas[1] <= loose.certainty.alphas[1]


def test_a_gate_that_no_cell_meets_names_the_nearest_miss() -> None:
    found = a_decision("phones", "wer<=0.01", "phones>=base+0.5")
    assert (found.pick, found.plateau, found.certainty, found.to_pick) == (None, None, None, {})
    assert found.nearest is not None
    worst = {cell: min(verdict.margin.value for verdict in verdicts) for cell, verdicts in found.verdicts.items()}
    assert worst[found.nearest] == max(worst.values())


def test_of_misses_the_one_with_the_fewest_is_nearest() -> None:
    values = {BASE: (0.0, 0.0), Cell(0.5): (0.9, 0.9), FINETUNED: (5.0, 0.0)}
    results = [CellResult(cell, tuple(map(known_only, "ab", pair))) for cell, pair in values.items()]
    assert decide(results, a_rule("a", "a>=1", "b>=1")).nearest == FINETUNED


def test_without_a_goal_nothing_is_picked_and_the_front_is_there() -> None:
    found = a_decision(None, "wer<=base+0.05")
    assert (found.pick, found.goal, found.certainty) == (None, None, None)
    assert 0 < len(found.dominated) < len(TILTED)
    assert 0 < len(found.meeting) < len(TILTED)


def test_without_scores_the_front_is_that_of_the_features() -> None:
    results = [CellResult(cell, (), features(1 - cell.alpha - cell.tilt / 50, cell.alpha)) for cell in TILTED]
    found = decide(results, Rule())
    assert list(found.axes) == ["cka_base", "cka_finetuned"]
    assert found.dominated == {cell for cell in TILTED if cell.alpha and cell.tilt >= 0}
    assert decide([CellResult(cell) for cell in TILTED], Rule()).dominated == set()


def test_a_score_without_units_is_decided_by_without_saying_how_sure() -> None:
    results = [CellResult(cell, (known_only("wer", (cell.alpha - 0.3) ** 2, Better.LOWER),)) for cell in CELLS]
    found = decide(results, a_rule("wer", "wer<=base"))
    assert (found.pick, found.plateau, found.certainty) == (Cell(0.3), None, None)


def test_an_unknown_goal_or_gate_is_refused() -> None:
    with pytest.raises(UsageError, match="no score is called 'wre'; known are phones, wer"):
        a_decision("wre")
    with pytest.raises(UsageError, match="known are phones, wer, cka_base, cka_finetuned"):
        a_decision("wer", "cka>=0.9")
    with pytest.raises(UsageError, match="no score is called 'cka_base'; known are wer"):
        decide([CellResult(BASE, (known_only("wer", 0.1),))], a_rule(None, "cka_base>=0.9"))


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_the_plateau_is_the_unbroken_run_around_the_pick(alike: list[bool], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(alike) - 1))
    line = [Cell(number / 10, 0.5 if number and place else 0.0) for number in range(len(alike))]
    found = {cell: Estimate(-0.1, -0.2, 0.1 if same else -0.05) for cell, same in zip(line, alike, strict=True)}
    found |= {
        line[place]: Estimate(0.0, 0.0, 0.0),
        Cell(0.05, -0.5): Estimate(0, -1, 1),
        FINETUNED: Estimate(-1, -2, -0.5),
    }
    flags = [same or number == place for number, same in enumerate(alike)]
    run = [line[number].alpha for number in range(len(line)) if all(flags[min(number, place) : max(number, place) + 1])]
    assert find_plateau(found, line[place]) == (min(run), max(run))


def test_the_plateau_holds_the_best_alpha_in_most_sweeps() -> None:
    world = World()
    best = world.cells[int(world.truth().argmax())].alpha
    held = []
    for sweep in world.sweeps(500, 20, seed=11):
        pick = world.cells[int(sweep.values.argmax())]
        plateau = find_plateau(sweep.against(pick), pick)
        assert plateau is not None
        held.append(plateau[0] <= best <= plateau[1])
    assert np.mean(held) >= 0.95


def test_the_floor_of_cka_picks_the_last_alpha_before_it_is_crossed() -> None:
    values = {0.0: 1.0, 0.1: 0.98, 0.2: 0.95, 0.3: 0.89, 0.4: 0.91, 1.0: 0.5}
    results = [CellResult(Cell(alpha), (), features(cka, 0.5)) for alpha, cka in values.items()]
    results.append(CellResult(Cell(0.6, 0.5), (), features(0.99, 0.5)))
    assert cka_floor(results[::-1], 0.9) == Cell(0.2)
    assert cka_floor(results, 1.1) is None
    assert cka_floor([CellResult(BASE, (a_score("wer", [1.0]),))], 0.9) is None
