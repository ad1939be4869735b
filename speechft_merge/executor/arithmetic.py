"""Mixes arrays: pure functions of arrays, one for each method of merging, in place to save memory.

Every result is three separately rounded steps (subtract, multiply, add) in float32, or float64 where an input is, so
that numpy, torch on a CPU and torch on a GPU give the same bytes; a fused multiply-add (torch.lerp) would not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from speechft_merge.executor.drift import Drift

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from speechft_merge.checkpoints.rounding import Floats
    from speechft_merge.plan.operations import Interpolate


def mix(operation: Interpolate, inputs: Sequence[Floats]) -> tuple[Floats, Drift]:
    """Return what an operation makes of its inputs, and their drift. This is where a method of merging is chosen.

    Args:
        operation: what to do.
        inputs: an array of shape `(n,)` for each of `operation.inputs`, all float32 or all float64; overwritten.
    """
    base, *finetuned = inputs
    return interpolate(base, finetuned, [term.weight for term in operation.terms], operation.alpha)


def measure(operation: Interpolate, inputs: Sequence[NDArray[np.float64]]) -> Drift:
    """Return the drift that `mix` returns, for numbers whose squares overflow in float32. Nothing is overwritten."""
    base, *finetuned = inputs
    delta = sum(term.weight * (values - base) for term, values in zip(operation.terms, finetuned, strict=True))
    with np.errstate(over="ignore"):
        return Drift(float(np.dot(base, base)), float(np.dot(delta, delta)), bool(np.any(delta)))


def interpolate(
    base: Floats, finetuned: Sequence[Floats], weights: Sequence[float], alpha: float
) -> tuple[Floats, Drift]:
    """Return base + alpha * sum of weights * (finetuned - base), made in `finetuned[0]`. All inputs are overwritten.

    Two-sided for a single fine-tune: from alpha = 0.5 on, finetuned - (1 - alpha) * (finetuned - base), which is exact
    at both ends and the most accurate in between. The difference is taken the other way round and its weight negated:
    the same rounding, and where both sides are equal the term is -0, which leaves every number as it is, -0 included.

    Args:
        base: shape `(n,)`, float32 or float64.
        finetuned: one or more arrays like `base`.
        weights: one for each of `finetuned`.
        alpha: weight of the mean difference.

    Returns:
        The result, like `base`, and the drift, its sums in that precision: inf or nan where an input is, or on
        overflow.
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
    return result, Drift(base_squares, delta_squares, changed)


def _mean_difference(base: Floats, finetuned: Sequence[Floats], weights: Sequence[float]) -> None:
    """Write sum of weights * (base - finetuned) into `finetuned[0]`."""
    real = base.dtype.type
    total = finetuned[0]
    for other, weight in zip(finetuned, weights, strict=True):
        np.subtract(base, other, out=other)
        if weight != 1:
            np.multiply(other, real(weight), out=other)
        if other is not total:
            np.add(total, other, out=total)


def squares(values: Floats) -> float:
    """Return the sum of squares in the array's own precision: inf or nan if an element is, or on overflow."""
    return float(np.dot(values, values))
