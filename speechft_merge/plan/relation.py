"""Measures whether two models of equal shapes are related, on a sample of their weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechft_merge.checkpoints.index import TensorSpan
    from speechft_merge.plan.plan import Plan

LEAST_COSINE = 0.1
"""Median over the sampled matrices. Independent weights give 0 +- 0.02 at this sample size; a fine-tune that moved each
weight by as much as its own size still gives 0.7."""
SAMPLED_TENSORS = 24
SAMPLED_REMOTE = 1
"""Likewise over a network, where each costs two requests."""
SAMPLED_ELEMENTS = 4096
LEAST_ELEMENTS = 512
"""Matrices smaller than this say too little."""


@dataclass(frozen=True, slots=True)
class Relation:
    """Cosine between base and fine-tune, per sampled tensor."""

    cosines: dict[str, float]

    @property
    def median(self) -> float | None:
        """Median over the tensors; None if there was nothing to sample."""
        return median(self.cosines.values()) if self.cosines else None

    @property
    def unrelated(self) -> bool:
        """Whether the weights clearly have nothing in common."""
        return self.median is not None and self.median < LEAST_COSINE


def measure_relation(plan: Plan, model: int) -> Relation:
    """Measure the cosines of the centred weights of one fine-tune with the base, on matrices spread over the model.

    Matrices and kernels only: norms are near 1 and biases near 0 in any model.
    """
    candidates = [pair for pair in plan.pairs[model] if _is_matrix(pair.base)]
    remote = any(not span.source.seeks_cheaply for pair in candidates for span in (pair.base, pair.finetuned))
    most = SAMPLED_REMOTE if remote else SAMPLED_TENSORS
    step = max(1, len(candidates) // most)
    cosines = {pair.name: _cosine(*map(_sample, pair[1:])) for pair in candidates[step // 2 :: step][:most]}
    return Relation({name: cosine for name, cosine in cosines.items() if cosine is not None})


def _is_matrix(span: TensorSpan) -> bool:
    return sum(size > 1 for size in span.shape) >= 2 and span.elements >= LEAST_ELEMENTS


def _sample(span: TensorSpan) -> Any:
    """Read elements from the middle of a tensor."""
    from speechft_merge.checkpoints.elements import read_numbers

    count = min(SAMPLED_ELEMENTS, span.elements)
    return read_numbers(span, (span.elements - count) // 2, count)


def _cosine(a: Any, b: Any) -> float | None:
    """Return the cosine of the centred samples; None where either is constant or not finite."""
    import numpy as np

    with np.errstate(all="ignore"):
        a, b = a - a.mean(), b - b.mean()
        cosine = float(a @ b / math.sqrt(float(a @ a) * float(b @ b) or math.nan))
    return cosine if math.isfinite(cosine) else None
