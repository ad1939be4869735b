"""Defines on what, where and how to compare: checked once, before anything large is imported or read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speechft_merge.arguments import PathText, listed, path_of, require_fields
from speechft_merge.choices import ESTIMATORS, Estimator, choose
from speechft_merge.errors import NotFoundError, UsageError
from speechft_merge.executor.device import AUTO, CPU, open_device, require_device_name
from speechft_merge.packages import require_packages
from speechft_merge.similarity.grouping import AUTOMATIC, FILE, parse_rule
from speechft_merge.sources.nearby import nearest

SECONDS = 120.0
"""Seconds of audio by default: beyond it error bars shrink slowly and the models take minutes."""
MEMORY = 1 << 30
"""Bytes."""

FIGURES = (".png", ".svg", ".pdf", ".html")
"""Suffixes of the files that a figure can be drawn into."""

PACKAGES = ("torch", "transformers", "soundfile", "soxr")
"""What running models on audio needs."""


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """On what audio to compare, where and how.

    Args:
        paths: an audio file, a folder or a table of these, or several; None for the built-in probe. `files` has them
            as paths.
        seconds: most seconds of audio.
        group_by: what tells which recordings are one speaker's: `auto`, `file` or a regular expression, see `grouping`.
        estimator: of CKA: `group`, `frame` or `biased`, see `cka`.
        device: where to run the models: `auto` (a GPU if there is one that can be used), `cpu`, `cuda`, `cuda:N`.
        null: also measure the floor.
        grid: also compare every layer with every other (--heatmap).
        decoder: also compare the text decoders, all on the tokens that the base writes of each clip.
        memory: bytes that the features of all models may take; beyond it they are summed as they come, without error
            bars.
        workers: threads of torch that run the models; None leaves it to torch.

    Raises:
        UsageError: a value is invalid.

    Example:
        >>> from speechft_merge import ProbeRequest
        >>> ProbeRequest(paths="dev-clean", seconds=60).files
        (PosixPath('dev-clean'),)
    """

    paths: PathText | Sequence[PathText] | None = None
    seconds: float = SECONDS
    group_by: str = AUTOMATIC
    estimator: Estimator = "group"
    device: str = AUTO
    null: bool = False
    grid: bool = False
    decoder: bool = False
    memory: int = MEMORY
    workers: int | None = None

    def __post_init__(self) -> None:
        require_fields(self)
        choose("estimator", self.estimator, ESTIMATORS)
        if not 0 < self.seconds < math.inf:
            raise UsageError(f"a probe cannot be of {self.seconds:g} seconds", hint="give a positive number")
        if self.group_by not in (AUTOMATIC, FILE):
            parse_rule(self.group_by)
        require_device_name(self.device)
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"{self.workers} workers cannot do any work", hint="give 1 or more")

    @property
    def files(self) -> tuple[Path, ...] | None:
        """The paths as such; None for the built-in probe."""
        return None if self.paths is None else tuple(path_of(path, "paths") for path in listed(self.paths))

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
        for path in self.files or ():
            require_audio(path)
        if self.device not in (AUTO, CPU):
            open_device(self.device, float64=True)


def require_audio(path: Path) -> None:
    """Refuse a path that is neither a file nor a folder: a pipe would be waited for, a device has no end.

    Raises:
        NotFoundError: it is neither.
    """
    if not path.exists():
        raise NotFoundError(f"there is no audio file or folder {path}", found=nearest(str(path)))
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
