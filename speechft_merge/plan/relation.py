"""Whether two models of equal shapes have anything to do with each other: measured on a sample of their weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from speechft_merge.plan.plan import Action

if TYPE_CHECKING:
    from speechft_merge.checkpoints.index import TensorSpan
    from speechft_merge.plan.plan import Plan, PlannedTensor

LEAST_COSINE = 0.1
"""Median over the sampled matrices. Independent weights give 0 +- 0.02 at this sample size; a fine-tune that moved each
weight by as much as its own size still gives 0.7."""
SAMPLED_TENSORS = 24
SAMPLED_REMOTE = 1
"""Over a network, where each costs a request a side."""
SAMPLED_ELEMENTS = 4096
LEAST_ELEMENTS = 512
"""Matrices smaller than this say too little."""


@dataclass(frozen=True, slots=True)
class Relation:
    """Cosine between base and fine-tune, per sampled tensor."""

    cosines: dict[str, float]

    @property
    def median(self) -> float | None:
        """Over the tensors; None if there was nothing to sample."""
        return median(self.cosines.values()) if self.cosines else None

    @property
    def unrelated(self) -> bool:
        """Whether the weights have plainly nothing in common."""
        return self.median is not None and self.median < LEAST_COSINE


def measure_relation(plan: Plan, which: int) -> Relation:
    """Cosines of the centred weights of one fine-tune with the base, on matrices spread over the model.

    Matrices and kernels only: norms are near 1 and biases near 0 in any model.
    """
    candidates = [
        tensor
        for tensor in plan.tensors
        if tensor.action is Action.INTERPOLATED and which in tensor.which and _is_matrix(tensor)
    ]
    remote = any(not span.source.seeks_cheaply for tensor in candidates for span in tensor.inputs)
    most = SAMPLED_REMOTE if remote else SAMPLED_TENSORS
    step = max(1, len(candidates) // most)
    cosines = {}
    for tensor in candidates[step // 2 :: step][:most]:
        assert tensor.base is not None
        count = min(SAMPLED_ELEMENTS, tensor.base.elements)
        start = (tensor.base.elements - count) // 2
        cosine = _cosine(
            _sample(tensor.base, start, count), _sample(tensor.finetuned[tensor.which.index(which)], start, count)
        )
        if cosine is not None:
            cosines[tensor.name] = cosine
    return Relation(cosines)


def _is_matrix(tensor: PlannedTensor) -> bool:
    return sum(size > 1 for size in tensor.shape) >= 2 and math.prod(tensor.shape) >= LEAST_ELEMENTS


def _sample(span: TensorSpan, start: int, count: int) -> Any:
    import numpy as np

    from speechft_merge.checkpoints.elements import widen

    raw = np.frombuffer(
        span.source.read(span.offset + start * span.dtype.itemsize, count * span.dtype.itemsize), np.uint8
    )
    values = np.empty(count, np.float64)
    widen(raw, span.dtype, values)
    return values


def _cosine(a: Any, b: Any) -> float | None:
    """Of the centred samples; None where either is constant or not finite."""
    import numpy as np

    with np.errstate(all="ignore"):
        a, b = a - a.mean(), b - b.mean()
        cosine = float(a @ b / math.sqrt(float(a @ a) * float(b @ b) or math.nan))
    return cosine if math.isfinite(cosine) else None
