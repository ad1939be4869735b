"""Numbers that are not finite are found in every element type, and nothing else is taken for such."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from speechft_merge.checkpoints import DType
from speechft_merge.executor.finite import OVERFLOW, all_finite, fits

HALVES = {DType.F16: torch.float16, DType.BF16: torch.bfloat16}


def of_type(values: list[float], dtype: DType) -> Any:
    return torch.tensor(values).to(getattr(torch, dtype.torch_name)).view(torch.uint8).numpy()


@pytest.mark.parametrize("dtype", [DType.F64, DType.F32, DType.F16, DType.BF16])
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [0, 3, 6])
def test_one_odd_element_anywhere_is_seen_in_every_type(dtype: DType, odd: float, where: int) -> None:
    values = [0.0, -0.0, 1.0, -1.0, 1e-7, 60000.0, -60000.0]
    assert all_finite(of_type(values, dtype), dtype)
    values[where] = odd
    assert not all_finite(of_type(values, dtype), dtype)


@pytest.mark.parametrize("dtype", [DType.F64, DType.F32, DType.F16, DType.BF16])
def test_nothing_is_finite(dtype: DType) -> None:
    assert all_finite(np.empty(0, np.uint8), dtype)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_types_are_finite_exactly_where_torch_says(dtype: DType) -> None:
    words = np.arange(1 << 16, dtype=np.uint16)
    expected = torch.isfinite(torch.from_numpy(words.copy().view(np.int16)).view(HALVES[dtype])).numpy()
    found = np.array([all_finite(words[i : i + 1].view(np.uint8), dtype) for i in range(len(words))])
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16])
@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_fit_a_type_exactly_where_torch_rounds_them_to_finite_ones(dtype: DType, sign: int) -> None:
    with np.errstate(over="ignore"):
        limit = np.float32(OVERFLOW[dtype])  # infinity, for float32 itself
        for value in (np.float32(1), np.nextafter(limit, np.float32(0)), limit):
            values = np.array([0, sign * value, 1], np.float32)
            rounded = torch.from_numpy(values.copy()).to(getattr(torch, dtype.torch_name))
            assert fits(values, dtype) is bool(torch.isfinite(rounded).all())


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_what_is_not_finite_fits_no_type(odd: float) -> None:
    for dtype in (DType.F64, *OVERFLOW):
        assert not fits(np.array([1, odd, 1], np.float32), dtype)
