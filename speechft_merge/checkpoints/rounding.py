"""Converts bytes to numbers and back, for the element types that take part in arithmetic; rounds at most once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from speechft_merge.checkpoints.dtypes import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from speechft_merge.checkpoints.index import TensorSpan

    Floats = NDArray[np.floating[Any]]
    Bytes = NDArray[np.uint8]

NUMPY: dict[DType, type[np.floating[Any]]] = {DType.F64: np.float64, DType.F32: np.float32, DType.F16: np.float16}
"""numpy's own types; it has none for bfloat16."""

_PIECE = 1 << 20
"""Numbers that are read at once."""
_ONE, _SIXTEEN, _HALF = np.uint32(1), np.uint32(16), np.uint32(0x7FFF)


def widen(raw: Bytes, dtype: DType, out: Floats) -> None:
    """Write elements of `dtype` into `out` as numbers of its type; exact."""
    if dtype is not DType.BF16:
        np.copyto(out, raw.view(NUMPY[dtype]))
        return
    words = raw.view(np.uint16)
    if out.dtype == np.float32:
        bits = out.view(np.uint32)
        np.copyto(bits, words)
        np.left_shift(bits, _SIXTEEN, out=bits)
    else:
        np.copyto(out, (words.astype(np.uint32) << _SIXTEEN).view(np.float32))


def narrow(values: Floats, dtype: DType, out: Bytes, scratch: Floats) -> None:
    """Write numbers into `out` as elements of `dtype`, rounded once to nearest even; the rest may be overwritten."""
    if dtype is not DType.BF16:
        np.copyto(out.view(NUMPY[dtype]), values, casting="same_kind")
    elif values.dtype == np.float32:
        _round_to_bfloat16(values.view(np.uint32), scratch.view(np.uint32), out.view(np.uint16))
    else:
        _round_to_bfloat16(_round_to_odd(values), scratch.view(np.uint32)[: len(values)], out.view(np.uint16))


def _round_to_bfloat16(bits: NDArray[np.uint32], scratch: NDArray[np.uint32], out: NDArray[np.uint16]) -> None:
    """Write the upper half of each float32, rounded to nearest even on the bits. NaN becomes an arbitrary number."""
    np.right_shift(bits, _SIXTEEN, out=scratch)
    np.bitwise_and(scratch, _ONE, out=scratch)
    np.add(bits, scratch, out=bits)
    np.add(bits, _HALF, out=bits)
    np.right_shift(bits, _SIXTEEN, out=bits)
    np.copyto(out, bits, casting="unsafe")


def _round_to_odd(values: Floats) -> NDArray[np.uint32]:
    """Convert float64 to the bits of float32 so that a second rounding errs nowhere: truncate, make inexact ones odd.

    Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd".
    """
    single = values.astype(np.float32)
    toward_zero = np.where(
        np.abs(single.astype(np.float64)) > np.abs(values), np.nextafter(single, np.float32(0)), single
    )
    inexact = toward_zero.astype(np.float64) != values
    bits: NDArray[np.uint32] = toward_zero.view(np.uint32) | inexact.astype(np.uint32)
    return bits


def read_numbers(span: TensorSpan, start: int, count: int) -> NDArray[np.float64]:
    """Read `count` elements of a tensor of floats from its element `start` on."""
    itemsize = span.dtype.itemsize
    values = np.empty(count, np.float64)
    for done in range(0, count, _PIECE):
        piece = values[done : done + _PIECE]
        raw = span.source.read(span.offset + (start + done) * itemsize, len(piece) * itemsize)
        widen(np.frombuffer(raw, np.uint8), span.dtype, piece)
    return values
