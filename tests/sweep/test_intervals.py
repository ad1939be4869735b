"""Scores over the cells of a sweep: sums over groups, intervals, and resamples that are the same for all cells."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from simulated import World, a_score, a_sweep, features, known_only

from speechft_merge.errors import MismatchError
from speechft_merge.scoring.scores import Better, Score, Unit
from speechft_merge.student import t_quantile
from speechft_merge.sweep.grid import BASE, FINETUNED, Cell
from speechft_merge.sweep.intervals import Estimate, curves, feature_curves, weigh
from speechft_merge.sweep.results import CellResult

CELLS = [BASE, Cell(0.25), Cell(0.5), FINETUNED]


def test_a_curve_has_the_scores_that_the_cells_have_whatever_the_order_of_their_units() -> None:
    results = a_sweep(CELLS)
    shuffled = replace(results[1].scores[0], units=results[1].scores[0].units[::-1])
    results[1] = replace(results[1], scores=(results[1].scores[1], shuffled))
    found = curves(results)
    assert list(found) == ["phones", "wer"]
    assert found["wer"].better is Better.LOWER
    for name, curve in found.items():
        values = [next(score.value for score in result.scores if score.name == name) for result in results]
        assert [curve.value(cell) for cell in CELLS] == values
        assert curve.amounts.sum(1) / curve.totals.sum(1) == pytest.approx(values)


def test_a_difference_has_the_jackknife_error_that_leaving_out_speaker_by_speaker_gives() -> None:
    results = a_sweep(CELLS, speakers=9)
    uneven = [replace(r, scores=(Score.of("phones", Better.HIGHER, r.scores[0].units[:70]),)) for r in results]
    found = curves(uneven)["phones"].against(BASE)[Cell(0.5)]
    base, half_way = uneven[0].scores[0].units, uneven[2].scores[0].units
    groups = sorted({unit.group for unit in base})

    def difference(left_out: str | None) -> float:
        kept = [[unit.amount for unit in units if unit.group != left_out] for units in (half_way, base)]
        return float(np.mean(kept[0]) - np.mean(kept[1]))

    replicates = np.array([difference(group) for group in groups])
    error = math.sqrt((len(groups) - 1) * replicates.var())
    sizes = np.array([sum(unit.group == group for unit in base) for group in groups])
    freedom = sizes.sum() ** 2 / (sizes**2).sum() - 1
    assert found.value == pytest.approx(difference(None))
    assert found.half == pytest.approx(stats.t.ppf(0.975, freedom) * error, rel=0.005)
    assert found.low == pytest.approx(2 * found.value - found.high)


def test_t_is_right_to_half_a_percent_and_too_wide_where_it_is_not() -> None:
    freedom = np.geomspace(1, 1000, 500)
    ratio = t_quantile(freedom) / stats.t.ppf(0.975, freedom)
    assert (ratio > 0.999).all()
    assert (ratio[freedom >= 3] < 1.005).all()


def test_a_share_has_an_interval_within_0_and_1_and_none_if_it_is_either() -> None:
    amounts = [1.0] * 29 + [0.0]
    found = curves([CellResult(BASE, (a_score("phones", amounts, groups=10), a_score("all", [1.0] * 30, groups=10)))])
    near = found["phones"].estimates()[BASE]
    assert 0 < near.low < near.value < near.high < 1
    assert near.value - near.low > 2 * (near.high - near.value)
    assert math.isnan(found["all"].estimates()[BASE].low)


def test_a_cell_differs_from_itself_by_nothing_and_pairing_narrows_an_interval() -> None:
    for sweep in World().sweeps(20, 20, seed=1):
        to_base, alone = sweep.against(BASE), sweep.estimates()
        assert to_base[BASE] == Estimate(0.0, 0.0, 0.0)
        assert to_base[Cell(0.25)].half < math.hypot(alone[BASE].half, alone[Cell(0.25)].half)


def test_resamples_are_those_of_a_naive_loop_and_the_same_for_all_cells_and_scores_of_the_same_speakers() -> None:
    results = a_sweep(CELLS, speakers=5)
    found = curves(results)
    weights = weigh(found["phones"].groups, 30, seed=3)
    for name, curve in found.items():
        drawn = curve.resampled(30, seed=3)
        for number, row in enumerate(weights):
            by_group = dict(zip(curve.groups, row, strict=True))
            for place, result in enumerate(results):
                units = next(score.units for score in result.scores if score.name == name)
                naive = sum(by_group[u.group] * u.amount for u in units) / sum(
                    by_group[u.group] * u.total for u in units
                )
                assert drawn[number, place] == pytest.approx(naive)


def test_the_weight_of_a_speaker_does_not_depend_on_the_others() -> None:
    alone, together = weigh(["b"], 100, 1), weigh(["a", "b", "c\udcff"], 100, 1)
    assert (alone[:, 0] == together[:, 1]).all()
    assert not (together[:, 0] == together[:, 1]).any()
    assert (weigh(["b"], 100, 2) != alone).all()


def test_many_groups_are_summed_in_blocks() -> None:
    amounts = np.random.default_rng(0).random(2500).tolist()
    curve = curves([CellResult(BASE, (a_score("loss", amounts),))])["loss"]
    weights = weigh(curve.groups, 5, 1)
    assert curve.resampled(5, 1)[:, 0] == pytest.approx(weights @ curve.amounts[0] / weights.sum(1))


def test_the_bootstrap_spreads_as_the_jackknife_says() -> None:
    for sweep in World(unequal=0.3).sweeps(5, 60, seed=2):
        drawn = sweep.resampled()
        spread = (drawn - drawn[:, :1]).std(0)[1:]
        halves = np.array([one.half for one in sweep.against(BASE).values()])[1:]
        assert 2.0 * spread == pytest.approx(halves, rel=0.12)


@given(st.lists(st.sampled_from(range(6)), min_size=1, max_size=12))
def test_a_cell_of_other_utterances_is_named(kept: list[int]) -> None:
    results = a_sweep(CELLS, speakers=6)
    units = results[0].scores[0].units[:6]
    results = [replace(result, scores=(Score.of("phones", Better.HIGHER, units),)) for result in results]
    other = tuple(units[place] for place in kept)
    results[2] = replace(results[2], scores=(Score.of("phones", Better.HIGHER, other),))
    if sorted(kept) == [*range(6)]:
        assert curves(results)["phones"].groups
    else:
        with pytest.raises(MismatchError, match=r"'phones' of cell 0\.5 is of other utterances than that of cell 0"):
            curves(results)


def test_an_utterance_that_changes_its_group_is_named() -> None:
    moved = [Score.of("wer", Better.LOWER, (Unit("u1", group, 1.0), Unit("u2", "a", 0.0))) for group in "ab"]
    with pytest.raises(MismatchError, match="2 for 2, which differ in 'u1'"):
        curves([CellResult(cell, (score,)) for cell, score in zip(CELLS, moved, strict=False)])


def test_a_score_without_units_has_no_interval_and_every_resample_is_the_sweep() -> None:
    curve = curves([CellResult(cell, (known_only("wer", 0.1 + cell.alpha),)) for cell in CELLS])["wer"]
    assert not curve.rough
    assert curve.resampled(7).tolist() == [curve.values.tolist()] * 7
    for found in (curve.estimates(), curve.against(FINETUNED)):
        assert [math.isnan(one.low) and math.isnan(one.high) for one in found.values()] == [True] * 4
    assert curve.against(FINETUNED)[BASE].value == pytest.approx(-1.0)


def test_a_cell_that_lacks_a_score_has_nan() -> None:
    results = a_sweep(CELLS)
    results[1] = CellResult(CELLS[1])
    curve = curves(results)["phones"]
    assert math.isnan(curve.value(CELLS[1]))
    assert math.isnan(curve.against(BASE)[CELLS[1]].value)
    assert curve.against(BASE)[CELLS[2]].half > 0
    assert np.isnan(curve.resampled(5)[:, 1]).all()
    assert math.isnan(curve.against(Cell(0.3))[BASE].value)


def test_one_group_has_no_interval() -> None:
    curve = curves([CellResult(cell, (a_score("wer", [0.0, 1.0], groups=1),)) for cell in CELLS])["wer"]
    assert math.isnan(curve.against(BASE)[FINETUNED].low)
    assert math.isnan(curve.estimates()[BASE].low)
    assert curve.rough


def test_features_are_curves_if_they_were_compared() -> None:
    results = [CellResult(cell, (), features(1 - cell.alpha, cell.alpha)) for cell in CELLS]
    assert {name: curve.values.tolist() for name, curve in feature_curves(results).items()} == {
        "cka_base": pytest.approx([1, 0.75, 0.5, 0]), "cka_finetuned": pytest.approx([0, 0.25, 0.5, 1]),
    }  # fmt: skip
    assert feature_curves([CellResult(cell) for cell in CELLS]) == {}
