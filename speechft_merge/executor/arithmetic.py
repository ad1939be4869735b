"""The arithmetic: pure functions of arrays, in place where memory is the cost.

Every result is three separately rounded steps (subtract, multiply, add) in float32, or float64 where an input is, so
that numpy, torch on a CPU and torch on a GPU give the same bytes; a fused multiply-add (torch.lerp) would not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]
    Bytes = NDArray[np.uint8]


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
