"""Compares a little of the weights of two tensors: where names and shapes do not decide, the numbers do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from speechft_merge.checkpoints.index import TensorSpan

    Pair = tuple[TensorSpan, TensorSpan]

LEAST_COSINE = 0.1
"""Median over the sampled matrices. Independent weights give 0 +- 0.02 at this sample size; a fine-tune that moved each
weight by as much as its own size still gives 0.7."""
SAMPLED_TENSORS = 24
SAMPLED_REMOTE = 1
"""Likewise over a network, where each costs two requests."""
SAMPLED_ELEMENTS = 4096
LEAST_ELEMENTS = 512
"""Matrices smaller than this say too little."""
CHUNK = 1 << 20


def is_matrix(span: TensorSpan) -> bool:
    """Return whether a tensor is a matrix or kernel: norms are near 1 and biases near 0 in any model."""
    return span.dtype.interpolated and sum(size > 1 for size in span.shape) >= 2 and span.elements >= LEAST_ELEMENTS


def spread(pairs: Sequence[Pair]) -> list[int]:
    """Return the indexes of the pairs to sample, spread over the model."""
    remote = any(not span.source.seeks_cheaply for pair in pairs for span in pair)
    most = SAMPLED_REMOTE if remote else SAMPLED_TENSORS
    step = max(1, len(pairs) // most)
    return list(range(step // 2, len(pairs), step))[:most]


def cosine(a: TensorSpan, b: TensorSpan) -> float | None:
    """Return the cosine of centred samples of two tensors; None where either is constant or not finite."""
    import numpy as np

    elements = min(a.elements, b.elements)  # of tensors that differ in their rows, the rows that both have
    x, y = _sample(a, elements), _sample(b, elements)
    with np.errstate(all="ignore"):
        x, y = x - x.mean(), y - y.mean()
        found = float(x @ y / math.sqrt(float(x @ x) * float(y @ y) or math.nan))
    return found if math.isfinite(found) else None


def is_equal(a: TensorSpan, b: TensorSpan) -> bool:
    """Return whether two tensors are equal bit for bit; reads both as far as they are."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if a.storage_key == b.storage_key:
        return True
    places = ((start, min(CHUNK, a.nbytes - start)) for start in range(0, a.nbytes, CHUNK))
    return all(a.source.read(a.offset + at, size) == b.source.read(b.offset + at, size) for at, size in places)


def relate(pairs: Sequence[Pair]) -> str:
    """Return how the second tensors of the pairs relate to the first: `equal to`, `near` or `unrelated to`."""
    import numpy as np

    sampled = [pairs[index] for index in spread(pairs)]
    found = [value for a, b in sampled if (value := cosine(a, b)) is not None]
    if all(_same_sample(a, b) for a, b in sampled):
        return "equal to"
    return "near" if not found or np.median(found) >= LEAST_COSINE else "unrelated to"


def matrices(pairs: Iterable[Pair]) -> list[Pair]:
    """Return the pairs that say something about how models are related."""
    return [pair for pair in pairs if all(map(is_matrix, pair))]


def _same_sample(a: TensorSpan, b: TensorSpan) -> bool:
    elements = min(a.elements, b.elements)
    return bool((_sample(a, elements) == _sample(b, elements)).all())


def _sample(span: TensorSpan, elements: int) -> Any:
    """Read elements from the middle of the first `elements` of a tensor."""
    from speechft_merge.checkpoints.rounding import read_numbers

    count = min(SAMPLED_ELEMENTS, elements)
    return read_numbers(span, (elements - count) // 2, count)
