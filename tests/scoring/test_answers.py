"""What a user's evaluation may answer, and what it is told if the answer is none."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechft_merge.errors import ScoreError, UsageError
from speechft_merge.scoring.answers import parse_name, score_of_number, scores_of_records
from speechft_merge.scoring.scores import Better, Score, Unit

HIGHER, LOWER = Better.HIGHER, Better.LOWER
COUNTS = st.integers(1, 50).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


@given(st.lists(COUNTS, min_size=1, max_size=20))
def test_the_figure_of_records_is_all_amounts_over_all_totals(counts: list[tuple[int, int]]) -> None:
    records = [{"id": number, "correct": right, "total": total} for number, (right, total) in enumerate(counts)]
    (score,) = scores_of_records("phones", HIGHER, records)
    assert score.value == pytest.approx(sum(right for right, _ in counts) / sum(total for _, total in counts))
    assert score.units == tuple(Unit(str(i), str(i), r, t) for i, (r, t) in enumerate(counts))
    assert Score.from_json(json.loads(json.dumps(score.to_json()))) == score


def test_errors_are_better_low_whatever_is_said_and_values_as_is_said() -> None:
    errors = {"id": "a", "group": "anna", "errors": 12, "total": 10}
    (score,) = scores_of_records("wer", HIGHER, [errors])
    assert (score.better, score.value, score.units[0].group) == (LOWER, 1.2, "anna")
    for better in Better:
        (score,) = scores_of_records("loss", better, [{"id": "a", "value": -0.5}, {"id": "b", "value": 1.5}])
        assert (score.better, score.value) == (better, 0.5)


def test_one_answer_may_hold_several_scores_in_the_order_of_their_first_records() -> None:
    records = [
        {"id": "a", "score": "wer", "errors": 1, "total": 4},
        {"id": "a", "score": "accuracy", "correct": 1, "total": 1},
        {"id": "b", "score": "wer", "errors": 2, "total": 4},
        {"id": "a", "value": 7},
    ]
    found = scores_of_records("asr", HIGHER, records)
    assert [(s.name, s.better.value, s.value) for s in found] == [
        ("asr.wer", "lower", 0.375),
        ("asr.accuracy", "higher", 1.0),
        ("asr", "higher", 7.0),
    ]


@pytest.mark.parametrize("number", [1, 0.5, np.float32(0.5), np.int64(3), np.array(0.5), torch.tensor(0.5)])
def test_numbers_of_any_library_are_numbers(number: Any) -> None:
    assert score_of_number("x", HIGHER, number) == Score("x", HIGHER, float(number))
    (score,) = scores_of_records("x", HIGHER, [{"id": 1, "value": number}])
    assert score.value == float(number)


@pytest.mark.parametrize("number", [True, None, "0.5", math.nan, math.inf, 10**400, [1.0], np.float64("nan")])
def test_what_is_no_finite_number_is_named(number: Any) -> None:
    with pytest.raises(ScoreError, match=r"^x is .*, not a (finite )?number"):
        score_of_number("x", HIGHER, number)
    with pytest.raises(ScoreError, match=r"^x: record 1: value is .*, not a (finite )?number"):
        scores_of_records("x", HIGHER, [{"id": 1, "value": number}])


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([], "there is no record"),
        ([3], "record 1 is 3, not a record"),
        ([{"id": "a"}], "does not say how much"),
        ([{"id": "a", "correct": 1}], "does not say how much"),
        ([{"id": "a", "correct": 1, "errors": 1, "total": 2}], "does not say how much"),
        ([{"id": "a", "value": 1, "total": 2}], "does not say how much"),
        ([{"value": 1}], "its id is None"),
        ([{"id": "a", "group": 1.5, "value": 1}], r"its group is 1\.5"),
        ([{"id": "a", "correct": 1, "total": 0}], "total of 0 is not above 0"),
        ([{"id": "a", "correct": 3, "total": 2}], "3 correct out of 2"),
        ([{"id": "a", "errors": -1, "total": 2}], "-1 errors out of 2"),
        ([{"id": "a", "value": 1}, {"id": "a", "value": 2}], "record 2: the id 'a' occurs twice"),
        ([{"id": 1, "value": 1}, {"id": "1", "value": 2}], "the id '1' occurs twice"),
        ([{"id": "a", "value": 1}, {"id": "b", "errors": 2, "total": 2}], "has 'errors', those before it 'value'"),
        ([{"id": "a", "score": "x y", "value": 1}], "cannot name a score"),
    ],
    ids=str,
)
def test_a_wrong_record_is_named_with_what_is_wrong(records: list[Any], told: str) -> None:
    with pytest.raises(ScoreError, match=told) as caught:
        scores_of_records("x", HIGHER, records)
    assert caught.value.exit_code == 69


def test_right_answers_cannot_be_better_low() -> None:
    with pytest.raises(ScoreError, match="write x without :lower"):
        scores_of_records("x", LOWER, [{"id": "a", "correct": 1, "total": 2}])


def test_a_name_says_its_direction() -> None:
    assert parse_name("wer") == ("wer", HIGHER)
    assert parse_name("wer:lower") == ("wer", LOWER)
    assert parse_name("wer_1:higher") == ("wer_1", HIGHER)
    for text in ("", "1", "a-b", "a b", ":lower", "wer:", "wer:down", "ß"):
        with pytest.raises(UsageError, match=r"cannot name a score|no direction"):
            parse_name(text)
