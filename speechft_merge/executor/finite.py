"""Finds numbers that are not finite (NaN, infinity, too large for their type), and says in which tensor they are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from speechft_merge.checkpoints.dtypes import DType
from speechft_merge.checkpoints.rounding import NUMPY, read_numbers
from speechft_merge.errors import MismatchError
from speechft_merge.executor.arithmetic import Array, squares

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from speechft_merge.checkpoints.rounding import Bytes
    from speechft_merge.executor.drift import Drift
    from speechft_merge.plan.operations import Interpolate, Segment

OVERFLOW = {DType.F32: (2 - 2**-24) * 2.0**127, DType.F16: 65520.0, DType.BF16: (2 - 2**-8) * 2.0**127}
"""The least magnitude that rounds to infinity."""

_ONE = 1 + 1e-9
"""More than weights of a mean sum to."""
_EXPONENT = {DType.F16: 0x7C00, DType.BF16: 0x7F80}


def all_finite(raw: Bytes, dtype: DType) -> bool:
    """Return whether elements of `dtype` are all finite; half types are not converted for it."""
    if dtype not in _EXPONENT:
        return bool(np.isfinite(raw.view(NUMPY[dtype])).all())
    return not len(raw) or int((raw.view(np.uint16) & np.uint16(0x7FFF)).max()) < _EXPONENT[dtype]


def fits(values: Array, dtype: DType) -> bool:
    """Return whether all numbers, of which there is at least one, are finite as elements of `dtype`."""
    if squares(values) < OVERFLOW[DType.F16] ** 2:  # one cheap pass is enough in most cases
        return True
    return float(abs(values).max()) < OVERFLOW.get(dtype, math.inf)


def is_finite(operation: Interpolate, dtype: DType, values: Array, drift: Drift) -> bool:
    """Return whether inputs, result as `dtype` and drift of a mix all are; the drift of large inputs may not be."""
    finite = math.isfinite(drift.base + drift.delta)
    weights = [term.weight for term in operation.terms]
    between = 0 <= operation.alpha <= 1 and min(weights) > 0 and math.fsum(weights) < _ONE
    if between and {span.dtype for span in operation.inputs} == {dtype}:
        return finite  # the result lies between the inputs
    return finite and fits(values, dtype)


def require_finite(segment: Segment, start: int, count: int, out: Bytes) -> list[NDArray[np.float64]]:
    """Read again the inputs of a chunk that seemed not to be finite; return them if they and the output are.

    Raises:
        MismatchError: an input holds a number that is not finite, or a result does not fit its type.
    """
    inputs = [read_numbers(span, start, count) for span in segment.operation.inputs]
    for span, values in zip(segment.operation.inputs, inputs, strict=True):
        for where in np.flatnonzero(~np.isfinite(values))[:1]:
            raise MismatchError(
                f"{span.source.name}: tensor {segment.name!r} holds {values[where]} (element {start + where}); a model "
                "with such weights is broken (a training run that diverged, a damaged file) and would break the merge"
            )
    if not all_finite(out, segment.dtype):
        raise MismatchError(
            f"tensor {segment.name!r}: the result does not fit {segment.dtype.torch_name} (largest input: "
            f"{max(float(np.abs(values).max()) for values in inputs):.3g})",
            hint="choose a wider --dtype",
        )
    return inputs
