"""Chooses and reads the probe: clips of speech that models are compared on, and whose they are."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from speechft_merge.errors import CheckpointError, NotFoundError
from speechft_merge.similarity.audio import Stretch, UnusableError, read_stretch, resample, whole_file
from speechft_merge.similarity.grouping import AUTOMATIC, group_files, read_groups
from speechft_merge.similarity.request import SECONDS, require_audio

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

BUILT_IN = Path(__file__).with_name("probe_audio")
"""24 clips of real speech in four languages; their licences are beside them, and a table of the voices."""

SUFFIXES = frozenset(".wav .flac .ogg .oga .opus .mp3 .aif .aiff .au .sph .nist .w64 .caf".split())
"""Suffixes of files that are taken from a folder; a file that is named itself is always tried."""
TABLE = ".tsv"
"""Suffix of a table of files and their groups."""

CLIPS = 20, 60
"""Clips that there shall be in the seconds allowed, at least: so many, or one of each group up to so many."""
CLIP = 1.0, 15.0
"""Seconds above which a file is cut, into clips of equal length: at least and at most."""
FEW_FILES = 4
"""With fewer, clips have to do as independent units: what there is is cut into as many."""


class Recording(NamedTuple):
    """One audio file of a probe."""

    path: Path
    group: str
    """Its speaker, session or whatever else its clips have in common."""


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
    """Files and clips of files (`PATH at 1.5 s`) that were not used, and why."""
    groups: dict[str, int]
    """Group -> its clips."""
    grouped_by: str
    """What told the groups: `folder`, `name`, `file`, `pattern` or the name of a table's column."""
    repeated: int
    """Clips that were left out because another one has the same samples."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Audio in memory."""

    clips: tuple[NDArray[np.float32], ...]
    """Each (samples,), mono, -1 to 1."""
    files: tuple[Path, ...]
    """The file of each clip."""
    groups: tuple[str, ...]
    """The group of each."""
    grouped_by: str
    """As `ProbeRecord` has it, and so the fields below."""
    rate: int
    origin: str
    sha256: str
    skipped: dict[str, str]
    repeated: int = 0

    @property
    def seconds(self) -> float:
        """Seconds of all clips."""
        return sum(map(len, self.clips)) / self.rate

    @property
    def record(self) -> ProbeRecord:
        """What the report says of it."""
        return ProbeRecord(
            self.origin, self.sha256, len(self.clips), round(self.seconds, 3), self.rate, dict(self.skipped),
            dict(Counter(self.groups)), self.grouped_by, self.repeated,
        )  # fmt: skip


def read_probe(paths: Sequence[Path] | None, rate: int, seconds: float = SECONDS, group_by: str = AUTOMATIC) -> Probe:
    """Read a probe, bounded in length: of more audio every group, and all of each, is sampled.

    Args:
        paths: see `find_recordings`.
        rate: samples a second that the models take.
        seconds: most seconds of audio.
        group_by: see `find_recordings`.

    Raises:
        NotFoundError: there is no audio file.
        CheckpointError: none of them can be used.
        UsageError: soundfile or soxr is not installed, or the rule of groups does not fit.
    """
    recordings, grouped_by = find_recordings(paths, group_by)
    skipped: dict[str, str] = {}
    files: dict[Stretch, str] = {}
    for path, group in recordings:
        try:
            files[whole_file(path)] = group
        except UnusableError as error:
            skipped[str(path)] = str(error)
    digest, known, repeated = hashlib.sha256(), set[bytes](), 0
    audio: list[NDArray[np.float32]] = []
    whose: list[tuple[Path, str]] = []
    for clip, group in choose_clips(files, seconds):
        try:
            samples = read_stretch(clip)
        except UnusableError as error:
            whole = clip in files
            skipped[str(clip.path) if whole else f"{clip.path} at {clip.start / clip.rate:.1f} s"] = str(error)
            continue
        content = f"{clip.rate}\0{len(samples)}\0".encode() + samples.tobytes()
        own = hashlib.sha256(content).digest()
        if own in known:
            repeated += 1
            continue
        known.add(own)
        digest.update(content)
        audio.append(resample(samples, clip.rate, rate))
        whose.append((clip.path, group))
    if not audio:
        first = (
            "; ".join(f"{path}: {why}" for path, why in list(skipped.items())[:3]) or f"{seconds:g} seconds hold none"
        )
        raise CheckpointError(f"no clip of the probe can be used ({first})", hint="give other audio files (--probe)")
    origin = "built-in" if paths is None else ", ".join(path.name or str(path) for path in paths[:4])
    paths_of, groups = zip(*whose, strict=True)
    return Probe(tuple(audio), paths_of, groups, grouped_by, rate, origin, digest.hexdigest(), skipped, repeated)


def find_recordings(paths: Sequence[Path] | None, group_by: str = AUTOMATIC) -> tuple[list[Recording], str]:
    """Return the files of a probe, each once in the order given, and what told their groups.

    Args:
        paths: audio files, folders that are searched for some, and tables that name some with their groups (`.tsv`);
            None for the probe that ships with the package.
        group_by: AUTOMATIC for the groups of the tables, and of other files by where they lie or what they are called;
            else a rule for all of them, see `group_files`.

    Raises:
        NotFoundError: there is no audio file.
        CheckpointError: a table cannot be read.
        UsageError: the rule does not fit.
    """
    told: dict[Path, str | None] = {}
    by: dict[str, None] = {}
    for path in [BUILT_IN / "voices.tsv"] if paths is None else paths:
        if path.suffix.lower() == TABLE:
            groups, column = read_groups(path)
            told.update(groups)
            by[column] = None
        else:
            told |= {file: told.get(file) for file in find_audio([path])}
    if not told:
        raise NotFoundError("the probe names no audio file", hint="give files, folders or tables (--probe)")
    others = [path for path, group in told.items() if group is None or group_by != AUTOMATIC]
    if others:
        found, rule = group_files(others, group_by)
        told |= dict(zip(others, found, strict=True))
        by = dict.fromkeys([rule]) if group_by != AUTOMATIC else by | {rule: None}
    return [Recording(path, group or "") for path, group in told.items()], " and ".join(by)


def find_audio(paths: Iterable[Path]) -> list[Path]:
    """Return the files among `paths`, and the audio files below the folders, each once, in the order given.

    Raises:
        NotFoundError: there is no such file or folder, or no audio file in it.
    """
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
    return list(found)


def choose_clips(files: Mapping[Stretch, str], seconds: float) -> list[tuple[Stretch, str]]:
    """Return clips of all files, in their order, and the group of each: `seconds` in all, at most. Pure.

    Longer files are cut, see `CLIPS`. What is more than `seconds` allow is shared out among the groups, and within a
    group evenly over its clips.

    Args:
        files: file -> its group.
        seconds: most seconds of all clips.
    """
    groups = {*files.values()}
    wanted = min(max(CLIPS[0], len(groups)), CLIPS[1])
    there = seconds if len(files) >= FEW_FILES else min(math.fsum(file.seconds for file in files), seconds)
    length = min(max(there / wanted, CLIP[0]), CLIP[1], seconds)
    clips = [(clip, group) for file, group in files.items() for clip in _cut(file, length, seconds)]
    by_group: dict[str, list[int]] = {group: [] for group in groups}
    for place, (_, group) in enumerate(clips):
        by_group[group].append(place)
    by_seconds = {group: math.fsum(clips[place][0].seconds for place in own) for group, own in by_group.items()}
    chosen: list[int] = []
    left = seconds
    for done, group in enumerate(sorted(groups, key=lambda group: (by_seconds[group], group))):
        share = left / (len(groups) - done) + 1e-6  # what a group does not need is left to the others
        count = int(len(by_group[group]) * min(share / by_seconds[group], 1.0))
        kept = _spread(by_group[group], count)
        while sum(clips[place][0].seconds for place in kept) > share:
            kept = _spread(by_group[group], len(kept) - 1)
        left -= sum(clips[place][0].seconds for place in kept)
        chosen += kept
    return [clips[place] for place in sorted(chosen)]


def _cut(file: Stretch, length: float, seconds: float) -> list[Stretch]:
    """Return clips of a file, of at most `length` seconds each: all of it, or evenly spread what could be used."""
    count = max(1, min(math.ceil(file.seconds / length - 1e-6), math.ceil(seconds / length)))
    frames = min(file.stop // count, max(1, int(length * file.rate + 1e-6)))
    starts = (file.stop * number // count for number in range(count))
    return [Stretch(file.path, start, start + frames, file.rate) for start in starts]


def _spread(items: Sequence[int], count: int) -> list[int]:
    return [items[number * len(items) // count] for number in range(count)]
