"""The grid has each cell once, the end points always, and a tilt keeps the mean of the alphas until it clips."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechft_merge.errors import UsageError
from speechft_merge.sweep.grid import BASE, FINETUNED, MOST, Cell, lay_out, parse_numbers, parse_rule_grid, tilted

ALPHAS, TILTS = st.floats(0, 1), st.floats(-1, 1)


def alphas_of(cell: Cell, blocks: int) -> list[float]:
    """The alphas of the blocks of an encoder, as its rules give them."""
    rules = tilted(cell, {"encoder": [*range(blocks)]})
    if not rules:
        return [cell.alpha] * blocks
    found = dict(rule.split("=") for rule in rules)
    return [float(found[f"encoder.{block}"]) for block in range(blocks)]


def test_a_range_includes_its_stop() -> None:
    assert parse_numbers("0:1:0.05", "an alpha", 0, 1) == tuple(round(0.05 * k, 10) for k in range(21))
    assert parse_numbers("0:0.9:0.4", "an alpha", 0, 1) == (0.0, 0.4, 0.8)


def test_a_list_keeps_its_numbers_once() -> None:
    assert parse_numbers("0.1, 0.25,0.1", "an alpha", 0, 1) == (0.1, 0.25)
    assert parse_numbers("-0.5,0,0.5", "a tilt", -1, 1) == (-0.5, 0.0, 0.5)


@pytest.mark.parametrize("text", ["", "a", "0:1", "0:1:0", "1:0:0.1", "0:1:-0.1", "0:1:1e-9", "0,1.5", "nan", "-0.1"])
def test_what_is_no_list_of_alphas_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_numbers(text, "an alpha", 0, 1)


@given(st.lists(ALPHAS, min_size=1, max_size=4), st.lists(TILTS, min_size=1, max_size=3))
def test_the_end_points_are_always_among_the_cells_and_none_is_twice(alphas: list[float], tilts: list[float]) -> None:
    cells = lay_out(alphas, tilts, [("cnn=0", "cnn=0.5")])
    assert cells[0] == BASE
    assert FINETUNED in cells
    assert len({cell.key for cell in cells}) == len(cells) == len({*cells})
    for alpha, tilt, rule in itertools.product(alphas, tilts, ("cnn=0", "cnn=0.5")):
        assert Cell(alpha, tilt if alpha else 0.0, (rule,)) in cells


def test_a_grid_of_too_many_cells_is_refused() -> None:
    numbers = [k / MOST for k in range(MOST)]
    with pytest.raises(UsageError, match="more than"):
        lay_out(numbers, [0.0, 0.5])


def test_a_rule_has_alternatives() -> None:
    assert parse_rule_grid("cnn=0, 0.25") == ("cnn=0", "cnn=0.25")
    assert parse_rule_grid("layers=0.1:0.4,0.4:0.1") == ("layers=0.1:0.4", "layers=0.4:0.1")


@given(ALPHAS, TILTS, st.integers(1, 48))
def test_a_tilt_is_linear_in_depth_and_keeps_the_mean_until_it_clips(alpha: float, tilt: float, blocks: int) -> None:
    cell = Cell(alpha, tilt)
    asked = [alpha * (1 + tilt * (2 * k / (blocks - 1) - 1)) if blocks > 1 else alpha for k in range(blocks)]
    assert alphas_of(cell, blocks) == pytest.approx([min(max(one, 0.0), 1.0) for one in asked])
    if blocks > 1:
        assert cell.clips == any(one > 1 for one in asked)
    if all(one <= 1 for one in asked):
        assert sum(alphas_of(cell, blocks)) / blocks == pytest.approx(alpha)


@given(ALPHAS, TILTS, st.sampled_from([(), ("cnn=0",)]), st.sampled_from(["", "model-stock"]))
def test_a_cell_comes_back_from_its_document(alpha: float, tilt: float, rules: tuple[str, ...], method: str) -> None:
    cell = Cell(alpha, tilt, rules, method)
    assert Cell.from_json(cell.to_json()) == cell


def test_cells_that_differ_in_the_last_bit_have_different_files() -> None:
    assert Cell(0.25).key != Cell(0.25000000000000006).key
