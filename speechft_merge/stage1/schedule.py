"""Defines when each part of a model trains, and at which learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from speechft_merge.errors import UsageError

Part = Literal["cnn", "encoder", "head"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """When each part trains, in shares of all steps; the defaults are the paper's."""

    total_steps: int
    head_only: float = 0.1
    """Share of the steps, at the start, in which only the head trains."""
    warmup: float = 0.1
    hold: float = 0.4
    """Share after the warmup in which the learning rate stays at its peak; then it decays linearly to 0."""
    first_step: int = 0
    """What the first step is called where the head-only phase ends. 1 as S3PRL's runner counts (`global_step`), with
    which the official experts' `set_require_grad` has one head-only step less. Learning rates count from 0 there, too:
    the runner steps its scheduler after the optimizer."""

    def __post_init__(self) -> None:
        if isinstance(self.total_steps, bool) or not isinstance(self.total_steps, int) or self.total_steps < 1:
            raise UsageError(
                f"total_steps is {self.total_steps!r}", hint="give the number of all optimizer steps, such as 50000"
            )
        shares = (self.head_only, self.warmup, self.hold)
        if not all(0 <= share <= 1 for share in shares) or self.warmup + self.hold > 1:
            raise UsageError(
                f"head_only {self.head_only}, warmup {self.warmup} and hold {self.hold} must be shares of all steps, "
                f"from 0 to 1, and warmup and hold together not above 1"
            )
        if self.first_step not in (0, 1):
            raise UsageError(f"the first step is {self.first_step!r}", hint="count from 0, or from 1 as S3PRL's runner")

    @property
    def head_only_steps(self) -> int:
        """Steps in which the head alone trains: floor(head_only T), one less where these are counted from 1."""
        return max(0, int(self.total_steps * self.head_only) - self.first_step)

    def trains(self, part: Part, step: int) -> bool:
        """Return whether a part of the model trains at a step, counted from 0."""
        return part == "head" or (part == "encoder" and step >= self.head_only_steps)

    def learning_rate(self, step: int) -> float:
        """Return the factor (0 to 1) on the peak learning rate at a step, counted from 0.

        With w = floor(0.1 T) and h = w + floor(0.4 T): s / w below w, 1 below h, then (T - s) / (T - h), as in the
        official `stable_finetuning_schedule` (nervjack2/Speech-FT).
        """
        warm = int(self.total_steps * self.warmup)
        held = warm + int(self.total_steps * self.hold)
        if step < warm:
            return step / warm
        if step < held:
            return 1.0
        return max(0.0, (self.total_steps - step) / max(1, self.total_steps - held))
