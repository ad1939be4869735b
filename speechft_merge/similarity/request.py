"""Defines on what, where and how to compare: checked once, before anything large is imported or read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from speechft_merge.errors import NotFoundError, UsageError
from speechft_merge.executor.device import AUTO, CPU, open_device, require_device_name
from speechft_merge.packages import require_packages
from speechft_merge.similarity.grouping import AUTOMATIC, FILE, parse_rule

if TYPE_CHECKING:
    from collections.abc import Sequence

Estimator = Literal["group", "frame", "biased"]
ESTIMATORS: tuple[Estimator, ...] = ("group", "frame", "biased")
"""See `cka`."""

SECONDS = 120.0
"""Seconds of audio by default: beyond it error bars shrink slowly and the models take minutes."""
MEMORY = 1 << 30
"""Bytes that the features of all models may take; beyond it they are summed as they come, without error bars."""

FIGURES = (".png", ".svg", ".pdf", ".html")
"""Suffixes of the files that a figure can be drawn into."""

PACKAGES = ("torch", "transformers", "soundfile", "soxr")
"""What running models on audio needs."""


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """On what audio to compare, where and how."""

    paths: tuple[Path, ...] | None = None
    """Audio files, folders and tables of these; None for the built-in probe."""
    seconds: float = SECONDS
    group_by: str = AUTOMATIC
    """What tells which recordings are one speaker's: `auto`, `file` or a regular expression, see `grouping`."""
    estimator: Estimator = "group"
    device: str = AUTO
    """Where to run the models: `auto` (a GPU if there is one that can be used), `cpu`, `cuda`, `cuda:N`."""
    null: bool = False
    """Also measure the floor."""
    grid: bool = False
    """Also compare every layer with every other (--heatmap)."""
    decoder: bool = False
    """Also compare the text decoders, all on the tokens that the base writes of each clip."""
    memory: int = MEMORY
    workers: int | None = None
    """Threads of torch that run the models; None leaves it to torch."""

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise UsageError(f"estimator {self.estimator!r} is unknown", hint=f"use one of {', '.join(ESTIMATORS)}")
        if not 0 < self.seconds < math.inf:
            raise UsageError(f"a probe cannot be of {self.seconds:g} seconds", hint="give a positive number")
        if self.group_by not in (AUTOMATIC, FILE):
            parse_rule(self.group_by)
        require_device_name(self.device)
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"{self.workers} workers cannot do any work", hint="give 1 or more")

    def require_means(self, *packages: str, figures: Sequence[Path] = ()) -> None:
        """Fail early if something is missing, without importing or reading more than that takes.

        Args:
            packages: needed besides those that run the models.
            figures: files that are to be drawn.

        Raises:
            UsageError: a package is not installed, or a figure cannot be of that kind.
            NotFoundError: a file or folder of the probe does not exist.
            DeviceError: the device cannot be used.
        """
        kinds = [figure_kind(path) for path in figures]
        require_packages(*PACKAGES, *packages, *(["matplotlib"] if kinds else []))
        for path in self.paths or ():
            require_audio(path)
        if self.device not in (AUTO, CPU):
            open_device(self.device, float64=True)


def require_audio(path: Path) -> None:
    """Refuse a path that is neither a file nor a folder: a pipe would be waited for, a device has no end.

    Raises:
        NotFoundError: it is neither.
    """
    if not path.exists():
        raise NotFoundError(f"there is no audio file or folder {path}")
    if not (path.is_file() or path.is_dir()):
        raise NotFoundError(f"{path} is neither a file nor a folder")


def figure_kind(path: Path) -> str:
    """Return the kind of figure that a path asks for.

    Raises:
        UsageError: none of `FIGURES`.
    """
    kind = path.suffix.lower()
    if kind not in FIGURES:
        raise UsageError(f"a figure cannot be drawn into {path}", hint=f"end its name in one of {', '.join(FIGURES)}")
    return kind
