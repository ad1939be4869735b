"""Estimates the ratio of Model Stock (Jang et al. 2024, arXiv 2403.19522), how much of the fine-tunes' mean goes in.

With K fine-tunes and c the mean cosine of their differences from the base, in pairs, it is K c / (1 + (K - 1) c), of
each tensor as a whole. Where they point away from each other c is negative, and the tensor stays the base's: the
formula would lead away from all of them, without bound.

The bytes of a merge follow from it, so every sum has one order, whatever the threads, the device and the chunks: in
float64, element by element within a block, and exactly over the blocks. A dot product of BLAS would differ from one
processor to the next.
"""

from __future__ import annotations

import math
from itertools import combinations, combinations_with_replacement
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from speechft_merge.plan.operations import Interpolate

    Numbers = NDArray[Any]

BLOCK = 1 << 16
"""Elements that are summed in a fixed order; a chunk holds a whole number of them, but for the end of a tensor."""

Dots = tuple[float, ...]
"""Of each pair of differences, a difference with itself among them, the dot product over a block."""


def dots(base: Numbers, finetuned: Sequence[Numbers]) -> Dots:
    """Return the dot products of the differences over one block.

    Args:
        base: float64, at most `BLOCK` elements.
        finetuned: arrays like it.
    """
    deltas = [values - base for values in finetuned]
    return tuple(_sum(one * other) for one, other in combinations_with_replacement(deltas, 2))


def _sum(values: Numbers) -> float:
    """Sum a block in place: the second half onto the first, until one number is left."""
    count = len(values)
    while count > 1:
        half = (count + 1) // 2
        values[: count - half] += values[half:count]
        count = half
    return float(values[0])


def estimate(terms: int, finetuned: int, blocks: Sequence[Dots]) -> float:
    """Return the ratio of a tensor, from 0 to 1; nan where an input is.

    Args:
        terms: fine-tunes that have the tensor; in the others its difference counts as 0.
        finetuned: fine-tunes in all.
        blocks: the dot products of every block, in any order.
    """
    sums = [_total(column) for column in zip(*blocks, strict=True)]
    found = dict(zip(combinations_with_replacement(range(terms), 2), sums, strict=False))
    cosines = [_cosine(found[i, j], found[i, i], found[j, j]) for i, j in combinations(range(terms), 2) if found]
    mean = math.fsum(cosines) / math.comb(finetuned, 2)
    return 0.0 if mean <= 0 else finetuned * mean / (1 + (finetuned - 1) * mean)


def _total(values: Sequence[float]) -> float:
    return math.fsum(values) if all(map(math.isfinite, values)) else math.nan


def _cosine(product: float, one: float, other: float) -> float:
    """Return the cosine of two differences; 0 where one has no direction."""
    norms = math.sqrt(one) * math.sqrt(other)
    return max(-1.0, min(1.0, product / norms)) if norms else 0.0


def with_ratio(operation: Interpolate, blocks: Sequence[Dots]) -> tuple[Interpolate, float]:
    """Return the operation with alpha multiplied by its ratio, and the ratio."""
    ratio = estimate(len(operation.terms), operation.stock, blocks)
    return operation._replace(alpha=operation.alpha * ratio, stock=0), ratio


def resolve(operation: Interpolate) -> Interpolate:
    """Return the operation with its ratio, if it has one, after reading all of its inputs."""
    return with_ratio(operation, [*_read(operation)])[0] if operation.stock else operation


def _read(operation: Interpolate) -> Iterator[Dots]:
    from speechft_merge.checkpoints.rounding import read_numbers  # imports numpy, which an inspection need not

    for start in range(0, operation.base.elements, BLOCK):
        count = min(BLOCK, operation.base.elements - start)
        base, *finetuned = (read_numbers(span, start, count) for span in operation.inputs)
        yield dots(base, finetuned)
