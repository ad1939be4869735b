"""Decodes audio files: stretches of them, channels averaged, resampled to a model's rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from speechft_merge.errors import CheckpointError
from speechft_merge.packages import needs_extra

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LONGEST = 30.0
"""Seconds of a file that `read_clip` takes."""
BELIEVABLE = 1e6
"""Most seconds of a file: eleven days."""
FASTEST = 768_000
"""Most samples a second of a file: above it no recorder goes."""
CHANNELS = 64
"""Most channels of a file."""
_FRAMES = 1 << 16
"""Frames of all channels that are decoded at once."""
SILENCE = 1e-4
"""Greatest distance from its mean of a clip that counts as silent (-80 dB of full scale)."""


class UnusableError(Exception):
    """Why a file is left out, in a few words."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a file, in frames of the file's own rate."""

    path: Path
    start: int
    stop: int
    rate: int

    @property
    def seconds(self) -> float:
        """How long it is."""
        return (self.stop - self.start) / self.rate


def whole_file(path: Path) -> Stretch:
    """Return all of a file, by its header.

    Raises:
        UnusableError: it is no audio, or its length is not believable.
        UsageError: soundfile is not installed.
    """
    with needs_extra("soundfile"):
        import soundfile
    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, OSError) as error:
        raise UnusableError(f"cannot be read: {getattr(error, 'error_string', error)}") from error
    frames, rate = int(info.frames), int(info.samplerate)
    if frames <= 0 or rate <= 0:
        raise UnusableError("is empty")
    if rate > FASTEST or info.channels > CHANNELS:
        raise UnusableError(
            f"has {info.channels} channels of {rate} samples a second; {CHANNELS} and {FASTEST} are read"
        )
    if frames / rate > BELIEVABLE:  # libsndfile says 2^63 - 1 frames where a header does not tell the length
        raise UnusableError("does not state its length (written to a pipe?); write it again as a file")
    return Stretch(path, 0, frames, rate)


def read_stretch(stretch: Stretch) -> NDArray[np.float32]:
    """Return the samples, channels averaged: (frames,), at the file's own rate.

    Raises:
        UnusableError: it cannot be read, or is silent.
    """
    import soundfile

    try:
        with soundfile.SoundFile(str(stretch.path)) as file:
            file.seek(stretch.start)
            pieces = file.blocks(_FRAMES, frames=stretch.stop - stretch.start, dtype="float32", always_2d=True)
            samples: NDArray[np.float32] = np.concatenate([piece.mean(1) for piece in pieces])
    except (soundfile.LibsndfileError, OSError) as error:
        raise UnusableError(f"cannot be read: {getattr(error, 'error_string', error)}") from error
    if not np.isfinite(samples).all():
        raise UnusableError("holds samples that are not finite")
    if not len(samples) or float(np.abs(samples - samples.mean()).max()) < SILENCE:
        raise UnusableError("is silent")
    return samples


def resample(samples: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """Return samples at another rate.

    Raises:
        UsageError: soxr is not installed.
    """
    if rate == wanted:
        return samples
    with needs_extra("soxr"):
        import soxr
    resampled: NDArray[np.float32] = soxr.resample(samples, rate, wanted)
    return resampled


def seconds_of(path: Path) -> float:
    """Return how long an audio file is, by its header.

    Raises:
        CheckpointError: it is none, or does not say.
        UsageError: soundfile is not installed.
    """
    try:
        return whole_file(path).seconds
    except UnusableError as error:
        raise CheckpointError(f"{path} {error}") from error


def read_clip(path: Path, rate: int, seconds: float = LONGEST) -> NDArray[np.float32]:
    """Return the first `seconds` of a file as one clip: (samples,), mono, -1 to 1, `rate` samples a second.

    Raises:
        CheckpointError: it cannot be read, or is silent.
        UsageError: soundfile or soxr is not installed.
    """
    try:
        whole = whole_file(path)
        samples = read_stretch(Stretch(path, 0, min(whole.stop, int(seconds * whole.rate)), whole.rate))
    except UnusableError as error:
        raise CheckpointError(f"{path} {error}") from error
    return resample(samples, whole.rate, rate)
