"""The arithmetic on arrays: how accurate it is, that it equals three separate steps in torch, and how it rounds."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from speechft_merge.checkpoints import DType
from speechft_merge.checkpoints.rounding import narrow, widen
from speechft_merge.executor.arithmetic import interpolate, squares
from speechft_merge.executor.drift import Drift
from speechft_merge.executor.finite import OVERFLOW, all_finite

ALPHAS = (0.0, 0.1, 0.25, 0.3, 0.4999, 0.5, 0.75, 0.9, 1.0)
BEYOND = (-0.5, 1.5, 3.0)
REALS = (np.float32, np.float64)
HALVES = {DType.F16: torch.float16, DType.BF16: torch.bfloat16}

alphas = st.one_of(st.sampled_from(ALPHAS), st.floats(0, 1))
singles = st.floats(-1e6, 1e6, width=32)


def merged(base: Any, *finetuned: Any, alpha: float, weights: tuple[float, ...] = (1.0,)) -> Any:
    """The result, with the inputs left as they are."""
    with np.errstate(all="ignore"):
        return interpolate(np, base.copy(), [other.copy() for other in finetuned], weights, alpha)[0]


def related(n: int, real: Any, seed: int = 0, spread: float = 0.1, exponents: float = 3) -> tuple[Any, Any]:
    """Numbers of many magnitudes, and the same ones each moved by some share of itself."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(n) * np.exp(rng.normal(0, exponents, n))
    return base.astype(real), (base * (1 + spread * rng.standard_normal(n))).astype(real)


def narrowed(values: Any, dtype: DType) -> Any:
    """The raw elements; `values` is left as it is."""
    out = np.empty(len(values) * dtype.itemsize, np.uint8)
    with np.errstate(over="ignore"):
        narrow(values, dtype, out)
    return out


# accuracy


@pytest.mark.parametrize("alpha", [*ALPHAS, *BEYOND])
@pytest.mark.parametrize("spread", [1e-4, 0.01, 0.1])
def test_float32_is_within_two_ulp_of_the_exact_value(alpha: float, spread: float) -> None:
    base, finetuned = related(50_000, np.float32, spread=spread)
    exact = base.astype(np.float64) + alpha * (finetuned.astype(np.float64) - base.astype(np.float64))
    error = np.abs(merged(base, finetuned, alpha=alpha).astype(np.float64) - exact)
    assert (error <= 2 * np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)).all()


@given(st.floats(2**-10, 2**10, width=32), st.floats(-0.5, 0.5), alphas)
def test_float32_is_within_two_ulp_of_the_exact_rational(base: float, move: float, alpha: float) -> None:
    a, b = np.float32(base), np.float32(base * (1 + move))
    exact = Fraction(float(a)) + Fraction(alpha) * (Fraction(float(b)) - Fraction(float(a)))
    result = merged(np.array([a]), np.array([b]), alpha=alpha)[0]
    assert abs(Fraction(float(result)) - exact) <= 2 * Fraction(float(np.spacing(np.abs(result))))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.3, 0.5, 0.75])
def test_half_types_are_correctly_rounded_nearly_always(dtype: DType, alpha: float) -> None:
    half = HALVES[dtype]
    base, finetuned = (torch.from_numpy(x).to(half) for x in related(100_000, np.float32, exponents=1))
    exact = base.double() + alpha * (finetuned.double() - base.double())
    result = merged(base.float().numpy(), finetuned.float().numpy(), alpha=alpha)
    expected = narrowed(exact.numpy(), dtype).view(np.uint16)
    assert (narrowed(result, dtype).view(np.uint16) == expected).mean() > 0.99


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_both_ends_are_exact_even_for_far_apart_numbers(real: Any, alpha: float) -> None:
    base = np.array([1.0, 1e-30, 1e30, 3.0, -1e-20], real)
    finetuned = np.array([1e-30, 1.0, 7.0, -1e30, 1e20], real)
    assert np.array_equal(merged(base, finetuned, alpha=alpha), finetuned if alpha else base)


@given(hnp.arrays(np.float32, 8, elements=singles), hnp.arrays(np.float32, 8, elements=singles), alphas)
def test_the_result_lies_between_base_and_finetune(base: Any, finetuned: Any, alpha: float) -> None:
    result = merged(base, finetuned, alpha=alpha)
    low, high = np.minimum(base, finetuned), np.maximum(base, finetuned)
    slack = np.spacing(np.maximum(np.abs(low), np.abs(high)))
    assert ((low - slack <= result) & (result <= high + slack)).all()


# the same bytes as torch


def torch_three_steps(base: Any, finetuned: Any, alpha: float) -> Any:
    a, b = torch.from_numpy(base.copy()), torch.from_numpy(finetuned.copy())
    delta = torch.sub(b, a)
    if alpha < 0.5:
        return torch.add(a, torch.mul(delta, alpha)).numpy()
    return torch.sub(b, torch.mul(delta, 1 - alpha)).numpy()


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("alpha", [*ALPHAS[1:-1], *BEYOND, 1 / 3])
@pytest.mark.parametrize("n", [1, 3, 17, 4097])
def test_equals_three_steps_in_torch_bit_for_bit(real: Any, alpha: float, n: int) -> None:
    base, finetuned = related(n, real, seed=n)
    result = merged(base, finetuned, alpha=alpha)
    assert result.tobytes() == torch_three_steps(base, finetuned, alpha).tobytes()


@given(
    hnp.arrays(np.float32, 5, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    hnp.arrays(np.float32, 5, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.floats(0.01, 0.99),
)
def test_equals_torch_for_any_finite_numbers_subnormals_included(base: Any, finetuned: Any, alpha: float) -> None:
    result = merged(base, finetuned, alpha=alpha)
    assert np.array_equal(result, torch_three_steps(base, finetuned, alpha), equal_nan=True)


def test_subnormals_are_not_flushed_to_zero() -> None:
    tiny = np.float32(2.0**-149)
    base, finetuned = np.array([0, 4, 8], np.float32) * tiny, np.array([8, 8, -8], np.float32) * tiny
    assert np.array_equal(merged(base, finetuned, alpha=0.25), np.array([2, 5, 4], np.float32) * tiny)


# elements that did not move


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("real", REALS)
@given(alpha=st.floats(0, 1, exclude_max=True), values=st.data())
def test_elements_equal_on_both_sides_come_out_bit_identical(
    count: int, real: Any, alpha: float, values: st.DataObject
) -> None:
    largest = 2.0**100
    narrow = real is np.float32
    numbers = st.floats(-largest, largest, width=32) if narrow else st.floats(-largest, largest)
    base = values.draw(hnp.arrays(real, 4, elements=numbers | st.just(-0.0)))
    result = merged(base, *[base] * count, alpha=alpha, weights=(1 / count,) * count)
    assert result.tobytes() == base.tobytes()


@pytest.mark.parametrize("alpha", BEYOND)
def test_elements_equal_on_both_sides_stay_bit_identical_beyond_the_ends(alpha: float) -> None:
    base = np.array([1.5, -2.5, 0.0, -0.0], np.float32)
    assert merged(base, base, alpha=alpha).tobytes() == base.tobytes()


# several fine-tunes


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.2, 0.8), (0.25, 0.25, 0.5), (1 / 3, 1 / 3, 1 / 3)])
@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.5, 0.9, 1.0, 1.5])
def test_several_finetunes_are_a_weighted_mean_of_differences(weights: tuple[float, ...], alpha: float) -> None:
    base = related(5001, np.float32)[0]
    finetuned = [related(5001, np.float32, seed)[0] * np.float32(0.01) + base for seed in range(len(weights))]
    delta = sum(w * (other.astype(np.float64) - base) for w, other in zip(weights, finetuned, strict=True))
    exact = base + alpha * delta
    result = merged(base, *finetuned, alpha=alpha, weights=weights)
    largest = np.max([np.abs(other) for other in (base, *finetuned)], axis=0)
    assert (np.abs(result - exact) <= 4 * len(weights) * np.spacing(largest)).all()


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
def test_several_finetunes_equal_separate_steps_in_torch(alpha: float) -> None:
    base, first = related(4097, np.float32, 1)
    second = related(4097, np.float32, 1, spread=0.2)[1]
    a, b, c = (torch.from_numpy(x.copy()) for x in (base, first, second))
    total = torch.add(torch.mul(torch.sub(b, a), 0.3), torch.mul(torch.sub(c, a), 0.7))
    expected = torch.add(a, torch.mul(total, alpha)).numpy()
    assert merged(base, first, second, alpha=alpha, weights=(0.3, 0.7)).tobytes() == expected.tobytes()


def test_one_of_several_finetunes_that_has_a_tensor_keeps_its_own_weight() -> None:
    base, finetuned = np.array([1.0, 2.0]), np.array([3.0, 2.0])
    assert np.array_equal(merged(base, finetuned, alpha=0.5, weights=(0.25,)), [1.25, 2.0])


# sums


@pytest.mark.parametrize("alpha", [0.25, 0.75])
@pytest.mark.parametrize("real", REALS)
def test_sums_are_those_of_the_base_and_of_the_difference(real: Any, alpha: float) -> None:
    base, finetuned = related(10_000, real)
    sums = interpolate(np, base.copy(), [finetuned.copy()], (1.0,), alpha)[1]
    wide = base.astype(np.float64)
    assert sums.base == pytest.approx((wide**2).sum(), rel=1e-6)
    assert sums.delta == pytest.approx(((finetuned.astype(np.float64) - wide) ** 2).sum(), rel=1e-6)
    assert sums.changed


@pytest.mark.parametrize("alpha", [0.25, 0.75])
@given(where=st.integers(0, 99), bits=st.integers(1, 3))
def test_a_change_of_the_last_bit_of_one_element_is_noticed(alpha: float, where: int, bits: int) -> None:
    base = np.full(100, 1e-20, np.float32)  # the square of the difference is 0 in float32
    finetuned = base.copy()
    finetuned.view(np.uint32)[where] += bits
    assert interpolate(np, base.copy(), [finetuned], (1.0,), alpha)[1].changed
    assert interpolate(np, base.copy(), [base.copy()], (1.0,), alpha)[1] == Drift(squares(base), 0.0, False)


# rounding

LOWER = np.unique(
    np.concatenate([
        np.array([0, 1, 2, 0x7FFE, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF]),
        np.random.default_rng(0).integers(0, 1 << 16, 16),
    ])
).astype(np.uint32)  # fmt: skip


def test_float32_to_bfloat16_equals_torch_for_every_upper_half() -> None:
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    for lower in LOWER:
        values = (upper | lower).view(np.float32)
        values = values[~np.isnan(values)]
        expected = torch.from_numpy(values.copy()).bfloat16().view(torch.int16).numpy()
        assert np.array_equal(narrowed(values, DType.BF16).view(np.int16), expected), hex(lower)


def test_float32_to_float16_equals_torch() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 300_000, dtype=np.uint32)
    values = np.concatenate([bits.view(np.float32), np.arange(-70000, 70000, 0.5, dtype=np.float32)])
    values = values[~np.isnan(values)]
    expected = torch.from_numpy(values.copy()).half().view(torch.int16).numpy()
    assert np.array_equal(narrowed(values, DType.F16).view(np.int16), expected)


def half_values(dtype: DType) -> list[Fraction]:
    """Every finite value of a half type that is not negative, in order of their bits."""
    raw = np.arange(0x7C00 if dtype is DType.F16 else 0x7F80, dtype=np.uint16).view(np.uint8)
    values = np.empty(len(raw) // 2, np.float64)
    widen(raw, dtype, values)
    return [Fraction(value) for value in values.tolist()]


@pytest.mark.parametrize("dtype", HALVES)
def test_float64_to_half_types_is_rounded_once(dtype: DType) -> None:
    """Against exact arithmetic: halfway points between neighbours, and numbers so near to them that float32 is not."""
    values = half_values(dtype)
    for low in [0, 1, 2, 3, *np.random.default_rng(0).integers(4, len(values) - 1, 400).tolist()]:
        middle = float((values[low] + values[low + 1]) / 2)
        assert Fraction(middle) == (values[low] + values[low + 1]) / 2
        near = np.array([np.nextafter(middle, 0), middle, np.nextafter(middle, np.inf), middle * (1 + 1e-12)])
        expected = np.array([low, low + low % 2, low + 1, low + 1])
        assert np.array_equal(narrowed(near, dtype).view(np.uint16), expected)
        assert np.array_equal(narrowed(-near, dtype).view(np.uint16), expected | 0x8000)


@given(st.floats(allow_nan=False))
def test_float64_to_bfloat16_is_one_of_the_two_neighbours_and_the_nearer(value: float) -> None:
    word = int(narrowed(np.array([value]), DType.BF16).view(np.uint16)[0])
    result = float(np.array([word << 16], np.uint32).view(np.float32)[0])
    assert np.signbit(result) == np.signbit(value)
    if abs(value) >= OVERFLOW[DType.BF16]:
        assert np.isinf(result)
        return
    neighbours = [np.array([(word + step) << 16], np.uint32).view(np.float32)[0] for step in (-1, 1) if word % 0x8000]
    error = abs(Fraction(result) - Fraction(value))
    for other in neighbours:
        if np.isfinite(other):
            distance = abs(Fraction(float(other)) - Fraction(value))
            assert error < distance or (error == distance and word % 2 == 0)


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16])
@pytest.mark.parametrize("sign", [1, -1])
def test_overflow_begins_where_the_constant_says(dtype: DType, sign: int) -> None:
    limit = OVERFLOW[dtype]
    raw = narrowed(sign * np.array([np.nextafter(limit, 0), limit]), dtype)
    assert all_finite(raw[: dtype.itemsize], dtype)
    assert not all_finite(raw[dtype.itemsize :], dtype)


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_number_survives_widening_and_narrowing(dtype: DType, real: Any) -> None:
    raw = np.arange(1 << 16, dtype=np.uint16)
    exponent = 0x7C00 if dtype is DType.F16 else 0x7F80
    raw = raw[(raw & exponent) != exponent]
    values = np.empty(len(raw), real)
    widen(raw.view(np.uint8), dtype, values)
    expected = torch.from_numpy(raw.copy().view(np.int16)).view(HALVES[dtype]).double().numpy()
    assert np.array_equal(values, expected)
    assert np.array_equal(narrowed(values, dtype).view(np.uint16), raw)
