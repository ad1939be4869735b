"""W + scale * B A: the numbers, in any order of reading, and what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import Memory, to_bytes

from speechft_merge.adapters.low_rank import LowRank
from speechft_merge.checkpoints import DType, TensorSpan
from speechft_merge.errors import MismatchError

TYPES = {torch.float32: DType.F32, torch.float16: DType.F16, torch.bfloat16: DType.BF16, torch.float64: DType.F64}


def span(tensor: torch.Tensor) -> TensorSpan:
    return TensorSpan(Memory(to_bytes(tensor)), 0, TYPES[tensor.dtype], tuple(tensor.shape))


def changed(
    weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float = 2.0, transposed: bool = False
) -> LowRank:
    return LowRank("w", span(weight), span(left), span(right), scale, transposed)


def read(change: LowRank) -> torch.Tensor:
    whole = change.span
    kind = np.float64 if whole.dtype is DType.F64 else np.float32
    return torch.from_numpy(np.frombuffer(whole.source.read(0, whole.nbytes), kind).copy()).reshape(whole.shape)


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "a linear layer": ((6, 5), (6, 2), (2, 5)),
    "a square one": ((6, 6), (6, 3), (3, 6)),
    "a convolution of peft": ((6, 4, 3), (6, 2, 1), (2, 4, 3)),
    "two dimensions": ((6, 4, 3, 3), (6, 2, 1, 1), (2, 4, 3, 3)),
    "a convolution of loralib": ((6, 4, 3), (18, 6), (6, 4)),
    "rows longer than a block": ((2, 40_000), (2, 2), (2, 40_000)),
}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_the_product_is_added_and_rounded_once(kind: str, dtype: torch.dtype) -> None:
    shape, rows, columns = SHAPES[kind]
    weight, left, right = (drawn(*sizes, dtype=dtype) for sizes in (shape, rows, columns))
    product = left.double().reshape(rows[0], -1) @ right.double().reshape(columns[0], -1)
    exact = weight.double() + 2 * product.reshape(shape)
    found = read(changed(weight, left, right))
    assert found.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert torch.allclose(found.double(), exact.to(found.dtype).double(), rtol=2**-23, atol=1e-9)


@pytest.mark.parametrize(("transposed", "size"), [(False, 4), (True, 6)])
def test_a_weight_that_is_in_by_out_gets_the_transposed_product(transposed: bool, size: int) -> None:
    """An embedding, or `fan_in_fan_out`: told by the shape, where it is not square."""
    weight, left, right = drawn(size, 6), drawn(6, 2), drawn(2, size)
    exact = weight.double() + 2 * (left.double() @ right.double()).T
    assert torch.allclose(read(changed(weight, left, right, transposed=transposed)).double(), exact, atol=1e-6)


@given(st.data())
def test_any_piece_has_the_bytes_of_the_whole(data: st.DataObject) -> None:
    rows, columns, rank = (data.draw(st.integers(1, 9)) for _ in range(3))
    made = changed(drawn(rows, columns), drawn(rows, rank), drawn(rank, columns), 0.3)
    whole = made.read(0, made.size)
    offset = data.draw(st.integers(0, made.size))
    length = data.draw(st.integers(0, made.size - offset))
    assert made.read(offset, length) == whole[offset : offset + length]


WRONG: dict[str, tuple[Any, ...]] = {
    "another width": ((6, 5), (6, 2), (2, 4)),
    "another rank": ((6, 5), (6, 2), (3, 5)),
    "no rank": ((6, 5), (6, 0), (0, 5)),
    "a vector": ((6,), (6, 2), (2, 5)),
    "a factor of one axis": ((6, 5), (6,), (2, 5)),
    "numbers for matrices": ((6, 5), (), ()),
    "a grouped convolution": ((6, 2, 3), (6, 1, 1), (2, 2, 3)),
    "as many elements in another form": ((4, 9), (6, 2), (2, 6)),
}


def test_factors_that_would_fill_the_memory_are_refused() -> None:
    """They are kept while their weight is read."""

    def claimed(*shape: int) -> TensorSpan:
        return TensorSpan(Memory(b""), 0, DType.F32, shape)

    with pytest.raises(MismatchError, match="is too large: its matrices have the shapes"):
        LowRank("w", claimed(8, 8), claimed(8, 4_000_000), claimed(4_000_000, 8), 1.0, transposed=False)


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_fit_is_refused_with_all_shapes(kind: str) -> None:
    with pytest.raises(MismatchError, match=r"does not fit: its matrices have the shapes \[.*the weight \["):
        changed(*(drawn(*shape) for shape in WRONG[kind]))
