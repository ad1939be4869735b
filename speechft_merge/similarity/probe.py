"""Reads the probe: recordings that models are compared on, resampled to the model's rate and bounded in length."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speechft_merge.errors import CheckpointError, NotFoundError
from speechft_merge.packages import needs_extra
from speechft_merge.similarity.request import SECONDS, require_audio

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

BUILT_IN = Path(__file__).with_name("probe_audio")
"""24 clips of real speech in four languages; their licences are beside them."""

SUFFIXES = frozenset(".wav .flac .ogg .oga .opus .mp3 .aif .aiff .au .sph .nist .w64 .caf".split())
"""Suffixes of files that are taken from a folder; a file that is named itself is always tried."""

LONGEST = 30.0
"""Seconds up to which a file is one utterance; a longer one is a recording, and is cut into pieces."""
PIECES = 20
"""Pieces that one recording is cut into where its length allows: enough for an error bar."""
PIECE = 1.0, 15.0
"""Seconds of a piece, at least and at most."""
BELIEVABLE = 1e6
"""Most seconds of a file: eleven days."""
FASTEST = 768_000
"""Most samples a second of a file: above it no recorder goes."""
CHANNELS = 64
"""Most channels of a file."""
_FRAMES = 1 << 16
"""Frames of all channels that are decoded at once."""
SILENCE = 1e-4
"""Greatest amplitude of a clip that counts as silent (-80 dB of full scale)."""


@dataclass(frozen=True, slots=True)
class ProbeRecord:
    """What a report says of its probe; its fields are the keys in JSON."""

    origin: str
    """`built-in`, or the names of files and folders."""
    sha256: str
    """Digest of the clips as decoded, before resampling to `rate`: equal for equal probes."""
    clips: int
    seconds: float
    rate: int
    """Samples a second that the models took."""
    skipped: dict[str, str]
    """Files that were not used, and why."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Audio in memory."""

    clips: tuple[NDArray[np.float32], ...]
    """One utterance each: (samples,), mono, -1 to 1."""
    rate: int
    """Samples a second."""
    origin: str
    sha256: str
    skipped: dict[str, str]
    """As `ProbeRecord` has them."""

    @property
    def seconds(self) -> float:
        """Seconds of all clips."""
        return sum(map(len, self.clips)) / self.rate

    @property
    def record(self) -> ProbeRecord:
        """What the report says of it."""
        return ProbeRecord(
            self.origin, self.sha256, len(self.clips), round(self.seconds, 3), self.rate, dict(self.skipped)
        )


@dataclass(frozen=True, slots=True)
class _Clip:
    """A stretch of a file, in frames of the file's own rate."""

    path: Path
    start: int
    stop: int
    rate: int

    @property
    def seconds(self) -> float:
        return (self.stop - self.start) / self.rate


def read_probe(paths: Sequence[Path] | None, rate: int, seconds: float = SECONDS) -> Probe:
    """Read a probe, bounded in length; a long list of files is thinned evenly, so that all of it is sampled.

    Args:
        paths: audio files, and folders that are searched for some; None for the probe that ships with the package.
        rate: samples a second that the models take.
        seconds: most seconds of audio.

    Raises:
        NotFoundError: there is no audio file.
        CheckpointError: none of them can be used.
        UsageError: soundfile or soxr is not installed.
    """
    files = list_files(paths)
    skipped: dict[str, str] = {}
    clips: list[_Clip] = []
    for path in files:
        try:
            clips += _cut(path, seconds)
        except _UnusableError as error:
            skipped[str(path)] = str(error)
    digest, audio = hashlib.sha256(), []
    for clip in _thin(clips, seconds):
        try:
            samples = _read(clip)
        except _UnusableError as error:
            skipped[str(clip.path)] = str(error)
            continue
        digest.update(f"{clip.rate}\0{len(samples)}\0".encode() + samples.tobytes())
        audio.append(_resample(samples, clip.rate, rate))
    if not audio:
        first = "; ".join(f"{path}: {why}" for path, why in list(skipped.items())[:3])
        raise CheckpointError(f"no clip of the probe can be used ({first})", hint="give other audio files (--probe)")
    origin = "built-in" if paths is None else ", ".join(path.name or str(path) for path in paths[:4])
    return Probe(tuple(audio), rate, origin, digest.hexdigest(), skipped)


def seconds_of(path: Path) -> float:
    """Return how long an audio file is, by its header.

    Raises:
        CheckpointError: it is none, or does not say.
        UsageError: soundfile is not installed.
    """
    try:
        frames, rate = _stated_length(path)
    except _UnusableError as error:
        raise CheckpointError(f"{path} {error}") from error
    return frames / rate


def read_clip(path: Path, rate: int, seconds: float = LONGEST) -> NDArray[np.float32]:
    """Return the first `seconds` of a file as one clip: (samples,), mono, -1 to 1, `rate` samples a second.

    Raises:
        CheckpointError: it cannot be read, or is silent.
        UsageError: soundfile or soxr is not installed.
    """
    try:
        frames, own_rate = _stated_length(path)
        samples = _read(_Clip(path, 0, min(frames, int(seconds * own_rate)), own_rate))
    except _UnusableError as error:
        raise CheckpointError(f"{path} {error}") from error
    return _resample(samples, own_rate, rate)


def list_files(paths: Sequence[Path] | None) -> list[Path]:
    """Return the files of a probe; None is for the one that ships with the package.

    Raises:
        NotFoundError: there is no audio file.
    """
    return sorted(BUILT_IN.glob("*.flac")) if paths is None else find_audio(paths)


def find_audio(paths: Iterable[Path]) -> list[Path]:
    """Return the files among `paths`, and the audio files below the folders, each once, in the order given."""
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inner = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inner:
                raise NotFoundError(f"{path} holds no audio file ({', '.join(sorted(SUFFIXES))})")
            found |= dict.fromkeys(inner)
        else:
            require_audio(path)
            found[path] = None
    if not found:
        raise NotFoundError("the probe names no audio file", hint="give files or folders (--probe)")
    return list(found)


class _UnusableError(Exception):
    """Why a file is left out, in a few words."""


def _cut(path: Path, seconds: float) -> list[_Clip]:
    """Return the utterances of a file.

    Raises:
        _UnusableError: it has none.
    """
    frames, rate = _stated_length(path)
    length = frames / rate
    if length <= LONGEST:
        return [_Clip(path, 0, frames, rate)]
    piece = int(rate * min(max(min(seconds, length) / PIECES, PIECE[0]), PIECE[1]))
    return [_Clip(path, start, start + piece, rate) for start in range(0, frames - piece + 1, piece)]


def _stated_length(path: Path) -> tuple[int, int]:
    """Return the frames of a file and how many are a second, as its header has them.

    Raises:
        _UnusableError: it is no audio, or they are not believable.
    """
    with needs_extra("soundfile"):
        import soundfile
    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, OSError) as error:
        raise _UnusableError(f"cannot be read: {getattr(error, 'error_string', error)}") from error
    frames, rate = int(info.frames), int(info.samplerate)
    if frames <= 0 or rate <= 0:
        raise _UnusableError("is empty")
    if rate > FASTEST or info.channels > CHANNELS:
        raise _UnusableError(
            f"has {info.channels} channels of {rate} samples a second; {CHANNELS} and {FASTEST} are read"
        )
    if frames / rate > BELIEVABLE:  # libsndfile says 2^63 - 1 frames where a header does not tell the length
        raise _UnusableError("does not state its length (written to a pipe?); write it again as a file")
    return frames, rate


def _thin(clips: list[_Clip], seconds: float) -> list[_Clip]:
    """Keep so many of the clips, evenly spread, that they stay within `seconds`; one that alone is longer is cut."""
    total = sum(clip.seconds for clip in clips)
    if total > seconds:
        count = max(1, int(len(clips) * seconds / total))
        clips = [clips[i * len(clips) // count] for i in range(count)]
    while len(clips) > 1 and sum(clip.seconds for clip in clips) > seconds:
        clips.pop()
    if len(clips) == 1 and clips[0].seconds > seconds:
        only = clips[0]
        clips = [_Clip(only.path, only.start, only.start + max(1, int(seconds * only.rate)), only.rate)]
    return clips


def _read(clip: _Clip) -> NDArray[np.float32]:
    """Return the samples of a clip, channels averaged: (frames,), at the file's own rate.

    Raises:
        _UnusableError: it cannot be read, or is silent.
    """
    import soundfile

    try:
        with soundfile.SoundFile(str(clip.path)) as file:
            file.seek(clip.start)
            pieces = file.blocks(_FRAMES, frames=clip.stop - clip.start, dtype="float32", always_2d=True)
            samples: NDArray[np.float32] = np.concatenate([piece.mean(1) for piece in pieces])
    except (soundfile.LibsndfileError, OSError) as error:
        raise _UnusableError(f"cannot be read: {getattr(error, 'error_string', error)}") from error
    if not np.isfinite(samples).all():
        raise _UnusableError("holds samples that are not finite")
    if float(np.abs(samples).max(initial=0)) < SILENCE:
        raise _UnusableError("is silent")
    return samples


def _resample(samples: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    if rate == wanted:
        return samples
    with needs_extra("soxr"):
        import soxr
    resampled: NDArray[np.float32] = soxr.resample(samples, rate, wanted)
    return resampled
