"""The dual ridge against the primal one refitted without each row, and the folds against what they promise."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechft_merge.scoring.folds import assign_folds
from speechft_merge.scoring.ridge import STRENGTHS, fit_and_predict, held_out, left_out_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


def primal(x: Array, y: Array, penalty: float) -> tuple[Array, Array]:
    """Weights and intercept by the normal equations; the intercept is not penalised."""
    ones = np.c_[x, np.ones(len(x))]
    penalties = penalty * np.eye(ones.shape[1])
    penalties[-1, -1] = 0
    found = np.linalg.solve(ones.T @ ones + penalties, ones.T @ y)
    return found[:-1], found[-1]


def refitted_error(x: Array, y: Array, penalty: float) -> float:
    """Sum of squares of what a fit to all other rows gets wrong, row by row."""
    error = 0.0
    for row in range(len(x)):
        weights, intercept = primal(np.delete(x, row, 0), np.delete(y, row, 0), penalty)
        error += float(np.square(y[row] - x[row] @ weights - intercept).sum())
    return error


def centred_eigen(x: Array, y: Array) -> tuple[Array, Array, Array]:
    moved = x - x.mean(0)
    values, vectors = np.linalg.eigh(moved @ moved.T)
    return values.clip(0), vectors, vectors.T @ (y - y.mean(0))


@pytest.mark.parametrize("shape", [(20, 5), (12, 40)], ids=str)
@pytest.mark.parametrize("penalty", [1e-3, 0.5, 30.0])
def test_leaving_one_out_in_closed_form_is_refitting_without_each(shape: tuple[int, int], penalty: float) -> None:
    random = np.random.default_rng(0)
    x, y = 3 + random.standard_normal(shape), random.standard_normal((shape[0], 3))
    assert left_out_error(*centred_eigen(x, y), penalty) == pytest.approx(refitted_error(x, y, penalty), rel=1e-6)


@pytest.mark.parametrize("noise", [0.01, 1.0, 30.0])
def test_predictions_are_those_of_the_primal_fit_with_the_best_strength(noise: float) -> None:
    random = np.random.default_rng(1)
    x = 2 + random.standard_normal((60, 8))
    y = x @ random.standard_normal((8, 2)) + noise * random.standard_normal((60, 2))
    fitted = np.arange(60) % 5 != 2
    moved = x[fitted] - x[fitted].mean(0)
    scale = np.square(moved).sum() / fitted.sum()
    best = min(STRENGTHS, key=lambda strength: refitted_error(x[fitted], y[fitted], strength * scale))
    weights, intercept = primal(x[fitted], y[fitted], best * scale)
    found = fit_and_predict(x @ x.T, y, fitted)
    assert found == pytest.approx(x[~fitted] @ weights + intercept, rel=1e-7)


def test_layers_count_alike_whatever_their_scale_and_a_constant_one_not_at_all() -> None:
    """Each is divided by its total deviation over the rows that are fitted, concatenated, and fitted."""
    random = np.random.default_rng(2)
    layers = [scale * random.standard_normal((40, width)) + 7 for scale, width in ((1.0, 4), (1000.0, 30), (1e-3, 2))]
    y = np.eye(3)[random.integers(0, 3, 40)]
    folds = [number % 4 for number in range(40)]
    found = held_out([*layers, np.full((40, 6), 1 / 3)], y, folds)
    wanted = np.empty_like(y)
    for fold in range(4):
        fitted = np.array(folds) != fold
        scaled = np.hstack([layer / np.sqrt(layer[fitted].var(0).sum()) for layer in layers])
        wanted[~fitted] = fit_and_predict(scaled @ scaled.T, y, fitted)
    assert found == pytest.approx(wanted, abs=1e-7)
    assert held_out([1e4 * layer for layer in layers], y, folds) == pytest.approx(found, abs=1e-7)


def test_features_that_say_nothing_give_the_mean() -> None:
    y = np.eye(2)[[0, 0, 1, 0, 1, 0]]
    found = held_out([np.ones((6, 3))], y, [0, 0, 1, 1, 2, 2])
    assert found[0] == pytest.approx(y[2:].mean(0))


ITEMS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12)), min_size=2, max_size=60)


@given(ITEMS, st.randoms())
def test_a_group_lies_in_one_fold_in_whatever_order_the_clips_come(items: list[tuple[str, int]], random: Any) -> None:
    folds = assign_folds([label for label, _ in items], [str(group) for _, group in items])
    of_group = {group: fold for (_, group), fold in zip(items, folds, strict=True)}
    assert folds == [of_group[group] for _, group in items]
    random.shuffle(items)
    again = assign_folds([label for label, _ in items], [str(group) for _, group in items])
    assert again == [of_group[group] for _, group in items]


@given(ITEMS)
def test_no_fold_has_all_of_a_class_that_has_two_groups(items: list[tuple[str, int]]) -> None:
    groups: dict[str, set[int]] = {}
    folds: dict[str, set[int]] = {}
    for (label, group), fold in zip(
        items, assign_folds(*zip(*((a, str(b)) for a, b in items), strict=True)), strict=True
    ):
        groups.setdefault(label, set()).add(group)
        folds.setdefault(label, set()).add(fold)
    assert [label for label in groups if len(groups[label]) > 1 and len(folds[label]) < 2] == []


def test_classes_are_spread_evenly_over_five_folds() -> None:
    labels = ["a"] * 50 + ["b"] * 10 + ["c"] * 25
    dealt = Counter(zip(labels, assign_folds(labels, [str(number) for number in range(85)]), strict=True))
    assert dealt == {(label, fold): size for label, size in (("a", 10), ("b", 2), ("c", 5)) for fold in range(5)}
