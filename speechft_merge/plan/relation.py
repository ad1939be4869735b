"""Measures whether two models of equal shapes are related, on a sample of their weights; judges unrelated ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from speechft_merge.layouts.structure import is_decoder
from speechft_merge.plan.evidence import LEAST_COSINE, cosine, is_matrix, spread
from speechft_merge.plan.findings import ALLOW_UNRELATED, Finding, Level
from speechft_merge.plan.operations import Interpolate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from speechft_merge.checkpoints.index import Checkpoint, TensorSpan
    from speechft_merge.plan.plan import Plan, PlannedTensor


class Relation(NamedTuple):
    """Cosine between base and fine-tune, per sampled tensor."""

    cosines: dict[str, float]

    @property
    def median(self) -> float | None:
        """Median over the tensors; None if there was nothing to sample."""
        import numpy as np

        return float(np.median([*self.cosines.values()])) if self.cosines else None

    @property
    def unrelated(self) -> bool:
        """Whether the weights clearly have nothing in common."""
        return self.median is not None and self.median < LEAST_COSINE


def measure_relation(plan: Plan, model: int) -> Relation:
    """Measure the cosines of the centred weights of one fine-tune with the base, on matrices spread over the model.

    Decoders count only where there is nothing else: they may begin anew with each vocabulary.
    """
    outside = [tensor for tensor in plan.tensors if not is_decoder(tensor.location.stack)]
    candidates = _matrices(outside, model) or _matrices(plan.tensors, model)
    names = list(candidates)
    sampled = [names[index] for index in spread([*candidates.values()])]
    cosines = {name: cosine(*candidates[name]) for name in sampled}
    return Relation({name: value for name, value in cosines.items() if value is not None})


def _matrices(tensors: Iterable[PlannedTensor], model: int) -> dict[str, tuple[TensorSpan, TensorSpan]]:
    """Return the matrices that are mixed with one fine-tune's, each with its partner."""
    return {
        tensor.name: (tensor.operation.base, term.span)
        for tensor in tensors
        if isinstance(tensor.operation, Interpolate)
        for term in tensor.operation.terms
        if term.model == model and is_matrix(tensor.operation.base)
    }


def judge_relations(models: Sequence[Checkpoint], relations: Sequence[Relation]) -> list[Finding]:
    """Return a reason to refuse for each fine-tune that is unrelated to the base.

    Args:
        models: base and fine-tunes.
        relations: of each fine-tune to the base.
    """
    base, *others = (model.reference for model in models)
    found = []
    for finetuned, relation in zip(others, relations, strict=True):
        if relation.unrelated:
            found.append(
                f"{finetuned} is not a fine-tune of {base}: the cosine between their weights is {relation.median:.3f} "
                f"(median of {len(relation.cosines)} sampled tensors; a fine-tune has 0.7 or more)"
            )
    hint = "check that the base is the one that was fine-tuned"
    return [Finding(Level.REFUSAL, problem, hint, ALLOW_UNRELATED) for problem in found]
