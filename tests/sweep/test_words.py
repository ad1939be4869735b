"""What a decision says in words: no more than was found."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from simulated import a_decision, a_rule, a_sweep, features, known_only

from speechft_merge.scoring.scores import Better
from speechft_merge.sweep.decision import Rule, decide
from speechft_merge.sweep.grid import BASE, FINETUNED, Cell, lay_out
from speechft_merge.sweep.intervals import Estimate
from speechft_merge.sweep.results import CellResult
from speechft_merge.sweep.words import FLATTERED, figure, in_words, named, with_half

CELLS = lay_out([number / 10 for number in range(11)])


def test_a_pick_says_what_it_is_among_what_and_against_both_ends() -> None:
    decision = a_decision("phones", "wer<=base+0.05")
    assert decision.pick is not None
    first = in_words(decision)[0]
    goal = decision.scores["phones"]
    assert first.startswith(
        f"Take {named(decision, decision.pick)}: phones {with_half(goal.estimates()[decision.pick])} is the highest"
    )
    assert f"of the {len(decision.meeting)} of {len(decision.cells)} cells that meet the gates" in first
    for end, name in ((BASE, "the base"), (FINETUNED, "the fine-tune")):
        assert f"{with_half(goal.against(end)[decision.pick], sign=True)} against {name}" in first


def test_without_gates_the_pick_is_among_all_and_a_lower_score_may_be_the_best() -> None:
    results = [CellResult(cell, (known_only("wer", 1 + (cell.alpha - 0.3) ** 2, Better.LOWER),)) for cell in CELLS]
    words = in_words(decide(results, a_rule("wer")))
    assert words[0].startswith("Take alpha 0.3: wer 1.000 is the lowest of all 11 cells, -0.090 against the base and")
    assert words[1:] == ["wer has no figures for each utterance, so nothing says how sure that is.", FLATTERED]


def test_an_end_point_is_kept_and_one_that_alone_meets_the_gates_is_not_called_the_best_of_many() -> None:
    alone = in_words(a_decision("phones", "cka_base>=1"))
    assert alone[0].startswith("Keep the base, the only one of 31 cells that meets the gates: phones 0.")
    assert FLATTERED not in alone


def test_how_sure_names_the_plateau_the_resamples_and_a_rival() -> None:
    decision = a_decision("phones", "wer<=base+0.05")
    assert decision.plateau is not None
    assert decision.certainty is not None
    assert decision.pick is not None
    second = in_words(decision)[1]
    assert second.startswith(f"Alphas {decision.plateau[0]:g} to {decision.plateau[1]:g} cannot be told apart from it")
    assert (
        f"in 4000 resamples of the 24 groups the same rule picks it in {decision.certainty.shares[decision.pick]:.0%}"
        in second
    )
    often = next(iter(decision.certainty.shares))
    assert ("most often it picks" in second) == (often != decision.pick)
    sure = replace(decision, plateau=(decision.pick.alpha,) * 2, certainty=None)
    assert in_words(sure)[1] == "The alphas beside it are told apart from it."


def test_what_is_not_certain_is_said() -> None:
    decision = a_decision("phones", "wer<=base+0.05")
    assert decision.pick is not None
    (verdict,) = decision.verdicts[decision.pick]
    said = [sentence for sentence in in_words(decision) if "only" in sentence]
    assert len(said) == (not verdict.certain)
    sure = {cell: (replace(verdict, certain=True),) for cell in decision.verdicts}
    assert not [sentence for sentence in in_words(replace(decision, verdicts=sure)) if "only" in sentence]
    few = in_words(decide(a_sweep(CELLS, speakers=5), a_rule("phones")))
    assert "5 groups are few: the intervals are rough, and mostly too narrow." in few


def test_no_pick_says_why_and_names_the_nearest_miss() -> None:
    values = {0.0: 0.5, 0.3: 0.52, 1.0: 0.4}
    results = [CellResult(Cell(alpha), (known_only("phones", value),)) for alpha, value in values.items()]
    assert in_words(decide(results, a_rule("phones", "phones>=0.6"))) == [
        "None of the 3 cells meets the gates; nearest is alpha 0.3, which misses phones>=0.6 by 0.080."
    ]
    assert in_words(decide([CellResult(BASE, (known_only("phones", math.nan),))], a_rule("phones"))) == [
        "No cell that meets the gates has a figure for phones."
    ]


def test_a_bound_that_is_not_known_is_not_called_missed_by_a_figure() -> None:
    results = [CellResult(Cell(alpha), (known_only("phones", alpha),)) for alpha in (0.3, 0.5)]
    (said,) = in_words(decide(results, a_rule("phones", "phones>=base")))
    assert said.endswith("which misses phones>=base, which is not known.")


def test_without_a_goal_or_scores_nothing_is_advised() -> None:
    assert "so nothing is picked; 31 of 31" not in in_words(a_decision(None))[0]
    assert "on the Pareto front of phones and wer; 31 meet the gates" in in_words(a_decision(None, "wer<=1"))[0]
    results = [CellResult(cell, (), features(1 - cell.alpha, cell.alpha)) for cell in CELLS]
    (said,) = in_words(decide(results, Rule()))
    assert said.startswith("Only features were compared")


def test_heuristics_are_called_that() -> None:
    words = in_words(decide(a_sweep(CELLS), a_rule("phones"), {"model-stock": Cell(0.31), "CKA floor 0.9": Cell(0.5)}))
    assert "Heuristics, which look at no score: model-stock takes alpha 0.31, CKA floor 0.9 takes alpha 0.5." in words


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.123"), (-0.0126, "-0.013"), (12.345, "12.35"), (1234.5, "1234.5"), (math.nan, "-"), (math.inf, "-")],
)
def test_a_figure_has_digits_for_its_size(value: float, text: str) -> None:
    assert figure(value) == text


def test_an_uneven_interval_shows_its_greater_half() -> None:
    assert with_half(Estimate(0.98, 0.92, 0.99)) == "0.980 ±0.060"
    assert with_half(Estimate(0.98), sign=True) == "+0.980"
    assert named(a_decision("phones"), Cell(0.25, -0.5, ("cnn=0",))) == "alpha 0.25 with tilt -0.5 and cnn=0"


def test_what_alpha_1_is_called_is_said_as_given() -> None:
    results = a_sweep(CELLS, speakers=12)
    words = " ".join(in_words(decide(results, Rule("phones"), end="alpha 1")))
    assert "the fine-tune" not in words
