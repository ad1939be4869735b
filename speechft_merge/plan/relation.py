"""Measures whether two models of equal shapes are related, on a sample of their weights; judges unrelated ones."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from speechft_merge.plan.findings import ALLOW_UNRELATED, Finding, Level
from speechft_merge.plan.operations import Interpolate
from speechft_merge.plan.plan import LEAST_COVERAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechft_merge.checkpoints.index import Checkpoint, TensorSpan
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


class Relation(NamedTuple):
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
    candidates = [
        (tensor.name, tensor.operation.base, term.span)
        for tensor in plan.tensors
        if isinstance(tensor.operation, Interpolate) and _is_matrix(tensor.operation.base)
        for term in tensor.operation.terms
        if term.model == model
    ]
    remote = any(not span.source.seeks_cheaply for _, *spans in candidates for span in spans)
    most = SAMPLED_REMOTE if remote else SAMPLED_TENSORS
    step = max(1, len(candidates) // most)
    cosines = {name: _cosine(*map(_sample, spans)) for name, *spans in candidates[step // 2 :: step][:most]}
    return Relation({name: cosine for name, cosine in cosines.items() if cosine is not None})


def judge_relations(models: Sequence[Checkpoint], plan: Plan, relations: Sequence[Relation]) -> list[Finding]:
    """Return a reason to refuse for each fine-tune that is unrelated to the base, or covers too little of it.

    Args:
        models: base and fine-tunes.
        plan: of their merge.
        relations: of each fine-tune to the base.
    """
    base, *others = (model.reference for model in models)
    found = []
    for finetuned, coverage, relation in zip(others, plan.coverages, relations, strict=True):
        if coverage < LEAST_COVERAGE:
            found.append(f"{finetuned} has only {coverage:.0%} of the parameters of {base}")
        if relation.unrelated:
            found.append(
                f"{finetuned} is not a fine-tune of {base}: the cosine between their weights is {relation.median:.3f} "
                f"(median of {len(relation.cosines)} sampled tensors; a fine-tune has 0.7 or more)"
            )
    hint = "check that the base is the one that was fine-tuned"
    return [Finding(Level.REFUSAL, problem, hint, ALLOW_UNRELATED) for problem in found]


def _is_matrix(span: TensorSpan) -> bool:
    return sum(size > 1 for size in span.shape) >= 2 and span.elements >= LEAST_ELEMENTS


def _sample(span: TensorSpan) -> Any:
    """Read elements from the middle of a tensor."""
    from speechft_merge.checkpoints.rounding import read_numbers

    count = min(SAMPLED_ELEMENTS, span.elements)
    return read_numbers(span, (span.elements - count) // 2, count)


def _cosine(a: Any, b: Any) -> float | None:
    """Return the cosine of the centred samples; None where either is constant or not finite."""
    import numpy as np

    with np.errstate(all="ignore"):
        a, b = a - a.mean(), b - b.mean()
        cosine = float(a @ b / math.sqrt(float(a @ a) * float(b @ b) or math.nan))
    return cosine if math.isfinite(cosine) else None
