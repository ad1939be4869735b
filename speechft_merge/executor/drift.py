"""Measures how far fine-tuning moved the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Drift:
    """How far fine-tuning moved a tensor or a chunk: sums of squares of the base and of the mean difference from it."""

    base: float
    delta: float
    changed: bool
    """Whether any element differs."""
    ratio: float = 1.0
    """What alpha was multiplied by: Model Stock's estimate, of a whole tensor."""

    @classmethod
    def total(cls, drifts: Sequence[Drift]) -> Drift:
        """Return the exact sums over the parts of a tensor, whatever their order."""
        base, delta = math.fsum(drift.base for drift in drifts), math.fsum(drift.delta for drift in drifts)
        return cls(base, delta, any(drift.changed for drift in drifts))

    @staticmethod
    def relative(drifts: Iterable[Drift]) -> float | None:
        """Return ||finetuned - base|| / ||base|| over some tensors; None where the base is zero or was not read."""
        drifts = list(drifts)
        base = math.fsum(drift.base for drift in drifts)
        return math.sqrt(math.fsum(drift.delta for drift in drifts) / base) if base else None


NO_DRIFT = Drift(0.0, 0.0, False)
