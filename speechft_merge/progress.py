"""Tells how far the work is: steps that long functions report, stage by stage, to whoever asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from speechft_merge.text import megabytes

BYTES = "bytes"


@dataclass(frozen=True, slots=True)
class Step:
    """How far one stage of the work is; as text `merging 40 % of 377.5 MB`.

    Args:
        stage: what is done: `merging`, `loading hubert-base`, `features`, `statistics` ...
        done: how much of it.
        total: of how much; 0 where that is not known.
        unit: of what: `bytes`, `clips`, `cells` ...

    Example:
        >>> from speechft_merge import merge
        >>> from tempfile import mkdtemp
        >>> steps = []
        >>> _ = merge("examples/pair/base", "examples/pair/finetuned", mkdtemp() + "/o", progress=steps.append)
        >>> print(steps[-1])
        merging 100 % of 6.2 MB
    """

    stage: str
    done: int = 0
    total: int = 0
    unit: str = BYTES

    @property
    def tenths(self) -> int:
        """Tenths of the whole that are done; 0 where that is not known."""
        return self.done * 10 // self.total if self.total else 0

    @property
    def amount(self) -> str:
        """How much is done: `40 % of 377.5 MB`, `3 of 24 clips`; empty where that is not known."""
        if not self.total:
            return ""
        if self.unit == BYTES:
            return f"{self.done * 100 // self.total} % of {megabytes(self.total)}"
        return f"{self.done} of {self.total} {self.unit}"

    def __str__(self) -> str:
        return f"{self.stage} {self.amount}".rstrip()


Progress = Callable[[Step], object]
"""What long functions take to report to: `print`, for one. It is called from any thread, and should return at once."""
Count = Callable[[int, int], object]
"""Called with how much is done, and of how much."""


def silent(step: Step) -> None:
    """Report to nobody."""


def counted(progress: Progress, stage: str, unit: str = BYTES) -> Count:
    """Return what reports the steps of one stage as they are counted; that it begins is reported at once."""
    progress(Step(stage, unit=unit))
    return lambda done, total: progress(Step(stage, done, total, unit))
