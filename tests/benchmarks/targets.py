"""What a merge may take, and whether it did."""

from collections.abc import Iterator
from dataclasses import dataclass

MAX_MB = 120
MAX_COPIES = 3  # wall time of the merge, in copies of one model, beside the start of Python and numpy


@dataclass(frozen=True)
class Target:
    """What a pair is held to, with one worker."""

    max_cpu: float  # seconds
    below_mergekit: float  # factor, in CPU time


TARGETS = {"hubert": Target(1.0, 10), "xlsr": Target(4.0, 8)}


@dataclass(frozen=True)
class Taken:
    """Medians of what a variant took, and its highest peak of memory."""

    wall: float
    cpu: float
    rss: int


@dataclass(frozen=True)
class Check:
    target: str
    found: float
    limit: float
    unit: str
    at_least: bool = False

    @property
    def passed(self) -> bool:
        return self.found >= self.limit if self.at_least else self.found <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        verdict = "PASS" if self.passed else "MISS"
        return f"{verdict}  {self.target}: {self.found:.2f} {self.unit} ({sign} {self.limit:.2f})"


def checks(target: Target | None, ours: Taken, copy: Taken, start: Taken, mergekit: Taken | None) -> Iterator[Check]:
    """Hold what was measured against the targets."""
    if target:
        yield Check("CPU", ours.cpu, target.max_cpu, "s")
    if target and mergekit:
        below = target.below_mergekit
        yield Check("CPU of mergekit-pytorch over ours", mergekit.cpu / ours.cpu, below, "times", at_least=True)
    yield Check(f"wall, against {MAX_COPIES} copies and the start", ours.wall, MAX_COPIES * copy.wall + start.wall, "s")
    yield Check("peak RSS", ours.rss / 1e6, MAX_MB, "MB")
