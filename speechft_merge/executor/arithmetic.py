"""Mixes arrays: pure functions of arrays, one for each method of merging, in place to save memory.

Every result is three separately rounded steps (subtract, multiply, add) in float32, or float64 where an input is, so
that numpy, torch on a CPU and torch on a GPU give the same bytes; a fused multiply-add (torch.lerp) would not. The
functions are the same for all of them: `xp` is numpy or torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from speechft_merge.executor.drift import Drift

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from speechft_merge.plan.operations import Interpolate

Array = Any
"""Of numpy or torch: shape `(n,)`, float32 or float64."""


def mix(xp: Any, operation: Interpolate, inputs: Sequence[Array]) -> tuple[Array, Drift]:
    """Return what an operation makes of its inputs, and their drift. This is where a method of merging is chosen.

    Args:
        xp: numpy or torch.
        operation: what to do.
        inputs: an array of shape `(n,)` for each of `operation.inputs`, all float32 or all float64; overwritten.
    """
    base, *finetuned = inputs
    return interpolate(xp, base, finetuned, [term.weight for term in operation.terms], operation.alpha)


def measure(operation: Interpolate, inputs: Sequence[NDArray[np.float64]]) -> Drift:
    """Return the drift that `mix` returns, for numbers whose squares overflow in float32. Nothing is overwritten."""
    base, *finetuned = inputs
    delta = sum(term.weight * (values - base) for term, values in zip(operation.terms, finetuned, strict=True))
    with np.errstate(over="ignore"):
        return Drift(float(np.dot(base, base)), float(np.dot(delta, delta)), bool(np.any(delta)))


def interpolate(
    xp: Any, base: Array, finetuned: Sequence[Array], weights: Sequence[float], alpha: float
) -> tuple[Array, Drift]:
    """Return base + alpha * sum of weights * (finetuned - base), made in `finetuned[0]`. All inputs are overwritten.

    Args:
        xp: numpy or torch.
        base: shape `(n,)`, float32 or float64.
        finetuned: one or more arrays like `base`.
        weights: one for each of `finetuned`.
        alpha: weight of the mean difference.

    Returns:
        The result, like `base`, and the drift, its sums in that precision: inf or nan where an input is, or on
        overflow.
    """
    base_squares = squares(base)
    result = finetuned[0]
    from_finetuned, factor = choose_side(weights, alpha)
    if from_finetuned:
        start, delta = result, base
        xp.subtract(result, base, out=delta)
    else:
        start, delta = base, result
        mean_difference(xp, base, finetuned, weights)
    delta_squares = squares(delta)
    changed = delta_squares > 0 or bool(delta.any())
    add_share(xp, start, delta, factor, result)
    return result, Drift(base_squares, delta_squares, changed)


def choose_side(weights: Sequence[float], alpha: float) -> tuple[bool, float]:
    """Return from which end to go, the fine-tune's if true, and the factor of that end less the other.

    Two-sided for a single fine-tune: from alpha = 0.5 on, finetuned - (1 - alpha) * (finetuned - base), which is exact
    at both ends and the most accurate in between.
    """
    from_finetuned = len(weights) == 1 and weights[0] == 1 and alpha >= 0.5
    return from_finetuned, alpha - 1 if from_finetuned else -alpha


def mean_difference(xp: Any, base: Array, finetuned: Sequence[Array], weights: Sequence[float]) -> None:
    """Write sum of weights * (base - finetuned) into `finetuned[0]`; the others are overwritten."""
    total = finetuned[0]
    for other, weight in zip(finetuned, weights, strict=True):
        ends = (base, other) if weight > 0 else (other, base)  # +0 where both are equal, whatever the sign
        xp.subtract(*ends, out=other)
        if abs(weight) != 1:
            xp.multiply(other, abs(weight), out=other)
        if other is not total:
            xp.add(total, other, out=total)


def add_share(xp: Any, start: Array, delta: Array, factor: float, out: Array) -> None:
    """Write start + factor * delta into `out`, which may be either; `delta` is overwritten.

    The difference is `start` less the other end and its factor negative: the same rounding as the other way round, and
    where both ends are equal the share is -0, which leaves every number as it is, -0 included.
    """
    if factor == 0:  # +0 would turn -0 into 0
        out[...] = start
    elif factor < 0:
        xp.multiply(delta, factor, out=delta)
        xp.add(start, delta, out=out)
    else:  # beyond the ends; the same with the difference turned round, and +0 where both sides are equal
        xp.negative(delta, out=delta)
        xp.add(delta, 0, out=delta)
        xp.multiply(delta, factor, out=delta)
        xp.subtract(start, delta, out=out)


def squares(values: Array) -> float:
    """Return the sum of squares in the array's own precision: inf or nan if an element is, or on overflow."""
    return float(values @ values)
