"""Gates: their text, their checks, and what they say of a cell."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import a_sweep, known_only

from speechft_merge.errors import UsageError
from speechft_merge.scoring.scores import Better
from speechft_merge.sweep.gate import Gate, check_gates, check_goal, parse_gate
from speechft_merge.sweep.grid import BASE, FINETUNED, Cell
from speechft_merge.sweep.intervals import curves
from speechft_merge.sweep.results import CellResult

CELLS = [BASE, Cell(0.25), Cell(0.5), FINETUNED]


@given(
    st.sampled_from(["phones", "wer.clean", "a b", "x-y"]),
    st.sampled_from([">=", "<=", ">", "<"]),
    st.sampled_from([None, "base", "finetuned"]),
    st.integers(-(10**6), 10**6).map(lambda number: number / 1000),
)
def test_a_gate_reads_back_as_it_is_written(name: str, operator: str, role: str | None, offset: float) -> None:
    gate = Gate(name, operator, role, offset)
    assert parse_gate(str(gate)) == gate


def test_blanks_do_not_matter() -> None:
    assert (
        parse_gate(" phones >= base - 0.01 ") == parse_gate("phones>=base-0.01") == Gate("phones", ">=", "base", -0.01)
    )


@pytest.mark.parametrize(
    "text", "phones phones>= >=0.5 phones=0.5 phones==0.5 a>=b a>=base*2 a>=base-nan a>=inf a>=base0.1 1>a>0".split()
)
def test_what_is_not_a_gate_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_gate(text)


def test_an_unknown_score_lists_those_that_there_are() -> None:
    known = {"phones": Better.HIGHER, "wer": Better.LOWER, "cka_base": None}
    with pytest.raises(UsageError, match="no score is called 'phonse'; known are phones, wer, cka_base"):
        check_gates([parse_gate("phonse>=0.5")], known)
    with pytest.raises(UsageError, match="no score is called 'x'; give scores to choose by"):
        check_goal("x", [])


def test_a_gate_that_asks_for_the_worse_is_refused() -> None:
    known = {"phones": Better.HIGHER, "wer": Better.LOWER, "cka_base": None}
    check_gates(map(parse_gate, ["phones>=base", "wer<0.2", "cka_base<=0.9", "cka_base>=0.9"]), known)
    with pytest.raises(UsageError, match=r"asks for a worse wer: lower is better; write wer<=base\+0\.01"):
        check_gates([parse_gate("wer>=base+0.01")], known)
    with pytest.raises(UsageError, match=r"higher is better; write phones>0\.6"):
        check_gates([parse_gate("phones<0.6")], known)


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("wer<=base", [1, 0, 1, 1]), ("wer<base", [0, 0, 1, 1]), ("wer<=base+0.01", [1, 1, 1, 1]),
        ("wer<=base-0.01", [0, 0, 1, 1]), ("wer<=finetuned", [0, 0, 1, 1]), ("wer<0.68", [0, 0, 0, 0]),
        ("wer<=0.68", [0, 0, 1, 1]),
    ],
)  # fmt: skip
def test_a_bound_holds_exactly_where_it_should_despite_floating_point(text: str, met: list[int]) -> None:
    values = [0.69, 0.70, 0.68, 0.68]  # 0.70 - 0.69 > 0.01 in floating point
    results = [
        CellResult(cell, (known_only("wer", value, Better.LOWER),)) for cell, value in zip(CELLS, values, strict=True)
    ]
    verdicts = parse_gate(text).judge(curves(results)["wer"], strict=True)
    assert [verdicts[cell].met for cell in CELLS] == [bool(one) for one in met]
    assert not any(verdict.certain for verdict in verdicts.values())


def test_a_verdict_is_certain_if_the_whole_interval_agrees_and_strict_wants_it_to() -> None:
    curve = curves(a_sweep(CELLS))["phones"]
    to_base = curve.against(BASE)
    for offset in (-0.2, -0.05, 0.0, 0.02, 0.05, 0.1, 0.3):
        gate = Gate("phones", ">=", "base", offset)
        loose, strict = gate.judge(curve), gate.judge(curve, strict=True)
        for cell in CELLS[1:]:
            low, value, high = (end - offset for end in (to_base[cell].low, to_base[cell].value, to_base[cell].high))
            assert loose[cell].met == (value >= 0)
            assert strict[cell].met == (low >= 0)
            assert loose[cell].certain == strict[cell].certain == (low >= 0 or high < 0)
            assert loose[cell].margin.value == pytest.approx(value)


def test_less_is_more_where_lower_is_better() -> None:
    curve = curves(a_sweep(CELLS))["wer"]
    verdict = parse_gate("wer<=base+0.05").judge(curve)[FINETUNED]
    difference = curve.against(BASE)[FINETUNED]
    assert not verdict.met
    assert verdict.margin.value == pytest.approx(0.05 - difference.value)
    assert (verdict.margin.low, verdict.margin.high) == pytest.approx((0.05 - difference.high, 0.05 - difference.low))


def test_a_cell_without_the_score_or_a_sweep_without_the_base_meets_no_gate() -> None:
    results = a_sweep(CELLS)
    without = [results[0], replace(results[1], scores=()), *results[2:]]
    assert not parse_gate("phones>=0").judge(curves(without)["phones"])[CELLS[1]].met
    verdicts = parse_gate("phones>=base-1").judge(curves(results[1:])["phones"])
    assert not any(verdict.met or not math.isnan(verdict.margin.value) for verdict in verdicts.values())
