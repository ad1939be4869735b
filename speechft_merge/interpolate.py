"""The arithmetic: pure functions of arrays, in place where memory is the cost.

Every result is three separately rounded steps (subtract, multiply, add) in float32, or float64 where an input is, so
that numpy, torch on a CPU and torch on a GPU give the same bytes; a fused multiply-add (torch.lerp) would not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from speechft_merge.checkpoints.dtypes import DType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]
    Bytes = NDArray[np.uint8]

_NUMPY: dict[DType, type[np.floating[Any]]] = {DType.F64: np.float64, DType.F32: np.float32, DType.F16: np.float16}
_EXPONENT = {DType.F16: 0x7C00, DType.BF16: 0x7F80}
OVERFLOW = {DType.F32: (2 - 2**-24) * 2.0**127, DType.F16: 65520.0, DType.BF16: (2 - 2**-8) * 2.0**127}
"""The least magnitude that rounds to infinity."""

_ONE, _SIXTEEN, _HALF = np.uint32(1), np.uint32(16), np.uint32(0x7FFF)


class Sums(NamedTuple):
    """Sums of squares over some elements, and whether any of these differ between base and fine-tune."""

    base: float
    delta: float
    changed: bool


def interpolate(base: Floats, finetuned: Sequence[Floats], weights: Sequence[float], alpha: float) -> Sums:
    """base + alpha * sum of weights * (finetuned - base), into `finetuned[0]`. All inputs are overwritten.

    Two-sided for a single fine-tune: from alpha = 0.5 on, finetuned - (1 - alpha) * (finetuned - base), which is exact
    at both ends and the most accurate in between. The difference is taken the other way round and its weight negated:
    the same rounding, and where both sides are equal the term is -0, which leaves every number as it is, -0 included.

    Args:
        base: shape `(n,)`, float32 or float64.
        finetuned: one or more arrays like `base`.
        weights: one for each of `finetuned`.
        alpha: weight of the mean difference.
    """
    real = base.dtype.type
    base_squares = squares(base)
    result = finetuned[0]
    if len(finetuned) == 1 and weights[0] == 1 and alpha >= 0.5:
        start, delta, factor = result, base, alpha - 1
        np.subtract(result, base, out=delta)
    else:
        start, delta, factor = base, result, -alpha
        _mean_difference(base, finetuned, weights)
    delta_squares = squares(delta)
    changed = delta_squares > 0 or bool(delta.any())
    if factor <= 0:
        np.multiply(delta, real(factor), out=delta)
        np.add(start, delta, out=result)
    else:  # beyond the ends; the same with the difference turned round
        np.subtract(real(0), delta, out=delta)
        np.multiply(delta, real(factor), out=delta)
        np.subtract(start, delta, out=result)
    return Sums(base_squares, delta_squares, changed)


def _mean_difference(base: Floats, finetuned: Sequence[Floats], weights: Sequence[float]) -> None:
    """sum of weights * (base - finetuned), into `finetuned[0]`."""
    real = base.dtype.type
    total = finetuned[0]
    for other, weight in zip(finetuned, weights, strict=True):
        np.subtract(base, other, out=other)
        if weight != 1:
            np.multiply(other, real(weight), out=other)
        if other is not total:
            np.add(total, other, out=total)


def squares(values: Floats) -> float:
    """Sum of squares in the array's own precision: inf or nan tell of such elements, or of an overflow."""
    return float(np.dot(values, values))


def widen(raw: Bytes, dtype: DType, out: Floats) -> None:
    """Elements of `dtype` as numbers of `out`'s type; exact."""
    if dtype is not DType.BF16:
        np.copyto(out, raw.view(_NUMPY[dtype]))
        return
    words = raw.view(np.uint16)
    if out.dtype == np.float32:
        bits = out.view(np.uint32)
        np.copyto(bits, words)
        np.left_shift(bits, _SIXTEEN, out=bits)
    else:
        np.copyto(out, (words.astype(np.uint32) << _SIXTEEN).view(np.float32))


def narrow(values: Floats, dtype: DType, out: Bytes, scratch: Floats) -> None:
    """Numbers as elements of `dtype`, rounded once to nearest even. `values` and `scratch` may be overwritten."""
    if dtype is not DType.BF16:
        np.copyto(out.view(_NUMPY[dtype]), values, casting="same_kind")
    elif values.dtype == np.float32:
        _round_to_bfloat16(values.view(np.uint32), scratch.view(np.uint32), out.view(np.uint16))
    else:
        _round_to_bfloat16(_round_to_odd(values), scratch.view(np.uint32)[: len(values)], out.view(np.uint16))


def _round_to_bfloat16(bits: NDArray[np.uint32], scratch: NDArray[np.uint32], out: NDArray[np.uint16]) -> None:
    """The upper half of each float32, rounded to nearest even on the bits. NaN must not occur."""
    np.right_shift(bits, _SIXTEEN, out=scratch)
    np.bitwise_and(scratch, _ONE, out=scratch)
    np.add(bits, scratch, out=bits)
    np.add(bits, _HALF, out=bits)
    np.right_shift(bits, _SIXTEEN, out=bits)
    np.copyto(out, bits, casting="unsafe")


def _round_to_odd(values: Floats) -> NDArray[np.uint32]:
    """float64 to the bits of float32 such that a second rounding errs nowhere: truncated, inexact ones made odd.

    Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd".
    """
    single = values.astype(np.float32)
    toward_zero = np.where(
        np.abs(single.astype(np.float64)) > np.abs(values), np.nextafter(single, np.float32(0)), single
    )
    inexact = toward_zero.astype(np.float64) != values
    bits: NDArray[np.uint32] = toward_zero.view(np.uint32) | inexact.astype(np.uint32)
    return bits


def all_finite(raw: Bytes, dtype: DType) -> bool:
    """Whether elements of `dtype` are all finite, told without converting half types."""
    exponent = _EXPONENT.get(dtype)
    if exponent is None:
        return bool(np.isfinite(raw.view(_NUMPY[dtype])).all())
    return not len(raw) or int((raw.view(np.uint16) & np.uint16(0x7FFF)).max()) < exponent
