"""Describes jobs that do the shares of one sweep, and waits for them, wherever they run."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from speechft_merge.errors import UsageError, quote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from speechft_merge.choices import Place

End = int | str
"""How a job ended: its exit code, or where there is none what Slurm calls it: `CANCELLED`, `NODE_FAIL` ..."""

_TAIL = 10
"""Lines of a log that tell why a job failed."""


@dataclass(frozen=True, slots=True)
class Submission:
    """Where jobs run, and what each of them is given; None leaves it to the cluster."""

    where: Place
    jobs: int
    """Number of jobs, and so of shares."""
    parallelism: int | None = None
    """Most jobs that run at once; None: all of them."""
    minutes: int = 60
    """Of wall-clock time in Slurm. A job that needs more is requeued, thrice at most, and does the cells left."""
    partition: str | None = None
    memory: str | None = None
    """As `sbatch --mem` takes it: `16G`."""
    gpus: int | None = None
    cpus: int | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Any other long options of sbatch, without dashes in front: `{"account": "speech", "exclusive": ""}`."""

    def __post_init__(self) -> None:
        if self.jobs < 1 or (self.parallelism is not None and self.parallelism < 1):
            raise UsageError("a sweep is shared out to one job or more, of which one or more run at once")


@dataclass(frozen=True, slots=True)
class Failure:
    """A job that did not do its share."""

    job: str
    """Its id, as squeue and scancel have it, or of its process."""
    end: End
    log: Path
    tail: Sequence[str]
    """The last lines of its log."""

    def __str__(self) -> str:
        return f"job {self.job} ended with " + (f"exit code {self.end}" if isinstance(self.end, int) else self.end)


class Jobs(ABC):
    """Jobs that were submitted together."""

    @abstractmethod
    def ends(self) -> Sequence[End | None]:
        """Return how each job ended: 0 if it did its share, None as long as it has not ended."""

    @abstractmethod
    def leave(self) -> None:
        """Stop waiting: what becomes of the jobs depends on where they run."""

    @abstractmethod
    def id(self, index: int) -> str:
        """Return the id of a job that has ended."""

    @abstractmethod
    def log(self, index: int) -> Path:
        """Return the file with all that a job prints."""

    def wait(self, progress: Callable[[int, int], object], every: float = 1.0) -> list[Failure]:
        """Wait for all jobs.

        Args:
            progress: called after each look with the number of jobs that have ended, and of all.
            every: seconds between two looks.

        Returns:
            What failed.
        """
        try:
            while None in (ends := self.ends()):
                progress(sum(end is not None for end in ends), len(ends))
                time.sleep(every)
        except BaseException:
            self.leave()
            raise
        progress(len(ends), len(ends))
        return [Failure(self.id(i), end, self.log(i), _tail(self.log(i))) for i, end in enumerate(ends) if end]


def parse_minutes(text: str) -> int:
    """Return the minutes, rounded up, of a time as sbatch takes it: `90`, `1:30:00`, `2-12` (days and hours) ...

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip(), re.ASCII)
    if not found:
        raise UsageError(f"{quote(text)} is not a time", hint="give minutes, or hours:minutes:seconds")
    days, *parts = (int(part or 0) for part in found.groups())
    with_hours = found[1] is not None or found[4] is not None
    hours, minutes, seconds = parts if with_hours else (0, *parts[:2])
    total = (days * 24 + hours) * 60 + minutes + -(-seconds // 60)
    if not total:
        raise UsageError(f"{quote(text)} is no time at all")
    return total


def exit_code(status: int) -> int:
    """Return what a shell has for the end of a process: of one that a signal ended, 128 and its number."""
    return status if status >= 0 else 128 - status


def _tail(log: Path) -> Sequence[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            return file.read().decode(errors="replace").splitlines()[-_TAIL:]
    except OSError:  # a job that was cancelled before it began has none
        return ()
