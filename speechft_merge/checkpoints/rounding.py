"""Converts bytes to numbers and back, for the element types that take part in arithmetic; rounds at most once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numkong
import numpy as np

from speechft_merge.checkpoints.dtypes import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from speechft_merge.checkpoints.index import TensorSpan

    Floats = NDArray[np.floating[Any]]
    Bytes = NDArray[np.uint8]

NUMPY: dict[DType, type[np.floating[Any]]] = {DType.F64: np.float64, DType.F32: np.float32, DType.F16: np.float16}
"""numpy's own types; it has none for bfloat16, and converts float16 number by number."""

_HALF: dict[DType, Literal["f16", "bf16"]] = {DType.F16: "f16", DType.BF16: "bf16"}
"""numkong's names of the types that it converts, many numbers at once."""

_PIECE = 1 << 20
"""Numbers that are read at once."""


def widen(raw: Bytes, dtype: DType, out: Floats) -> None:
    """Write elements of `dtype` into `out` as numbers of its type; exact."""
    if dtype in _HALF:
        numkong.astype(_half(raw, dtype, len(out)), "f32" if out.dtype == np.float32 else "f64", out=out)
    else:
        np.copyto(out, raw.view(NUMPY[dtype]))


def narrow(values: Floats, dtype: DType, out: Bytes) -> None:
    """Write numbers into `out` as elements of `dtype`, rounded once to nearest even."""
    if dtype in _HALF:
        single = values if values.dtype == np.float32 else _round_to_odd(values)
        numkong.astype(single, _HALF[dtype], out=_half(out, dtype, len(values)))
    else:
        np.copyto(out.view(NUMPY[dtype]), values, casting="same_kind")


def _half(raw: Bytes, dtype: DType, count: int) -> numkong.Tensor:
    return numkong.from_pointer(raw.ctypes.data, count, _HALF[dtype], owner=raw)


def _round_to_odd(values: Floats) -> NDArray[np.float32]:
    """Convert float64 to float32 so that a second rounding errs nowhere: truncate, make inexact ones odd.

    Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd".
    """
    single = values.astype(np.float32)
    toward_zero = np.where(
        np.abs(single.astype(np.float64)) > np.abs(values), np.nextafter(single, np.float32(0)), single
    )
    inexact = toward_zero.astype(np.float64) != values
    odd: NDArray[np.float32] = (toward_zero.view(np.uint32) | inexact.astype(np.uint32)).view(np.float32)
    return odd


def read_numbers(span: TensorSpan, start: int, count: int) -> NDArray[np.float64]:
    """Read `count` elements of a tensor of floats from its element `start` on."""
    itemsize = span.dtype.itemsize
    values = np.empty(count, np.float64)
    for done in range(0, count, _PIECE):
        piece = values[done : done + _PIECE]
        raw = span.source.read(span.offset + (start + done) * itemsize, len(piece) * itemsize)
        widen(np.frombuffer(raw, np.uint8), span.dtype, piece)
    return values
