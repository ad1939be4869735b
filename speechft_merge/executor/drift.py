"""Measures how far fine-tuning moved the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Drift:
    """How far fine-tuning moved a tensor: sums of squares of the base, and of the mean difference from it."""

    base: float
    delta: float
    changed: bool
    """Whether any element differs."""

    @staticmethod
    def relative(drifts: Iterable[Drift]) -> float | None:
        """Return ||finetuned - base|| / ||base|| over some tensors; None where the base is zero or was not read."""
        drifts = list(drifts)
        base = math.fsum(drift.base for drift in drifts)
        return math.sqrt(math.fsum(drift.delta for drift in drifts) / base) if base else None
