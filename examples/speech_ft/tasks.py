"""The two directions: what is fine-tuned for, and what is tested, on speakers that the fine-tune has not heard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from examples.finetune import Lessons
from examples.sources.recordings import RATE, Samples
from examples.sources.sound import RMS, coded, levelled, loud_crops, noisy, telephone

BILINGUAL = ("allison-en", "allison-es")
"""One speaker, and so one class of who speaks, heard in two languages on the same channel."""
CROP = RATE // 2
"""Samples of a crop of a voice."""
SEED = 20261127
"""Of the crops and the noise that models are tested on."""
NOISE = 0.0, 5.0
"""Decibels of speech over noise, in the unseen tasks and in phones."""


@dataclass(frozen=True)
class Sizes:
    """How much is heard to fit and to test probes, at most."""

    fit_clips: int = 1000
    """Of each voice."""
    test_clips: int = 1000
    fit_crops: int = 2
    """Of each clip."""
    test_crops: int = 1
    fit_utterances: int = 70
    test_utterances: int = 1000
    windows: int = 4
    """Of each utterance."""


QUICK = Sizes(fit_clips=60, test_clips=45, fit_crops=1, fit_utterances=40, test_utterances=40, windows=3)


@dataclass(frozen=True)
class Sounds:
    """Crops that are heard once, for all the tasks that are read from them."""

    waves: torch.Tensor
    """(rows, samples)"""
    labels: dict[str, torch.Tensor]
    """Task -> (rows,), or (rows, frames); -1 where a row has no part in it."""
    units: torch.Tensor
    """The clip or the utterance that a row is from, (rows,)."""
    tested: torch.Tensor
    """Whether a row is for the test, (rows,); on the others probes are fitted."""

    @property
    def pooled(self) -> bool:
        """Whether a row has one label, and not one a frame."""
        return all(labels.dim() == 1 for labels in self.labels.values())


@dataclass(frozen=True)
class Pair:
    """A direction: a task that encoders are fine-tuned for, and unseen ones."""

    task: str
    unseen: tuple[str, ...]
    lessons: Callable[[Path], Lessons]
    sounds: Callable[[Path, Sizes], list[Sounds]]


class Voices:
    """The clips of each voice."""

    def __init__(self, recordings: Path, split: str) -> None:
        with np.load(recordings) as arrays:
            names = [name.partition("/")[2] for name in arrays.files if name.startswith(f"{split}/")]
            self.clips = {
                name: np.split(arrays[f"{split}/{name}"], arrays[f"{split}-ends/{name}"][:-1]) for name in names
            }
        classes = ["allison" if name in BILINGUAL else name for name in names]
        self.classes = {name: list(dict.fromkeys(classes)).index(own) for name, own in zip(names, classes, strict=True)}


class SpeakerLessons:
    """Crops of voices in noise, by telephone, to learn who speaks from."""

    window = CROP
    snr = -5.0, 15.0

    def __init__(self, recordings: Path) -> None:
        voices = Voices(recordings, "fit")
        self.classes = max(voices.classes.values()) + 1
        self._clips: list[list[Samples]] = [[] for _ in range(self.classes)]
        for name, clips in voices.clips.items():
            self._clips[voices.classes[name]] += clips

    def batch(self, rows: int, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        labels = generator.integers(0, self.classes, size=rows)
        chosen = [self._clips[label][generator.integers(len(self._clips[label]))] for label in labels]
        waves = torch.cat([loud_crops(clip, 1, CROP, generator) for clip in chosen])
        return heard_by_telephone(waves, self.snr, generator), torch.from_numpy(labels)


class Phones:
    """Windows of utterances with a phone a frame; every sixth utterance is for the test."""

    snr = NOISE

    def __init__(self, recordings: Path) -> None:
        with np.load(recordings) as arrays:
            self.waves, self.labels, self.owners = (
                torch.from_numpy(arrays[f"phones/{name}"]) for name in ("waves", "labels", "utterance")
            )
        self.labels, self.owners = self.labels.long(), self.owners.long()
        self.classes = int(self.labels.max()) + 1
        self.window = self.waves.shape[1]
        self.tested = self.owners % 6 == 1
        self._taught = (~self.tested).nonzero()[:, 0]

    def batch(self, rows: int, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = self._taught[torch.from_numpy(generator.integers(len(self._taught), size=rows))]
        return self.heard(chosen, generator), self.labels[chosen]

    def heard(self, chosen: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        """These windows in noise."""
        return RMS * levelled(noisy(self.waves[chosen].float() / 32768, self.snr, generator))


def heard_by_telephone(waves: torch.Tensor, snr: tuple[float, float], generator: np.random.Generator) -> torch.Tensor:
    """Waves as a telephone passes them on, in the noise of where they are heard."""
    return RMS * levelled(noisy(coded(telephone(waves)), snr, generator))


def speaker_sounds(recordings: Path, sizes: Sizes, snr: tuple[float, float]) -> Sounds:
    """Crops of every voice: who speaks, and which language the bilingual one speaks."""
    generator = np.random.default_rng(SEED)
    waves, rows = [], []
    for split, most, crops in (
        ("fit", sizes.fit_clips, sizes.fit_crops),
        ("test", sizes.test_clips, sizes.test_crops),
    ):
        voices = Voices(recordings, split)
        for name, clips in voices.clips.items():
            language, each = (BILINGUAL.index(name), 2) if name in BILINGUAL else (-1, crops)
            for clip in clips[:: -(-len(clips) // most)]:
                rows += [(voices.classes[name], language, len(waves), split == "test")] * each
                waves.append(loud_crops(clip, each, CROP, generator))
    speakers, languages, units, tested = map(torch.tensor, zip(*rows, strict=True))
    heard = heard_by_telephone(torch.cat(waves), snr, generator)
    return Sounds(heard, {"speaker": speakers, "language": languages}, units, tested)


def phone_sounds(recordings: Path, sizes: Sizes) -> Sounds:
    """Windows of utterances: which phone, frame by frame."""
    phones = Phones(recordings)
    rows = []
    for tested, most in ((False, sizes.fit_utterances), (True, sizes.test_utterances)):
        owners = phones.owners[phones.tested == tested].unique()
        few = owners[torch.linspace(0, len(owners) - 1, min(most, len(owners))).long()]
        rows += [(phones.owners == owner).nonzero()[: sizes.windows, 0] for owner in few]
    chosen = torch.cat(rows)
    waves = phones.heard(chosen, np.random.default_rng(SEED))
    return Sounds(waves, {"phones": phones.labels[chosen]}, phones.owners[chosen], phones.tested[chosen])


def only(sounds: Sounds, task: str) -> Sounds:
    """The sounds for one of their tasks alone."""
    return replace(sounds, labels={task: sounds.labels[task]})


PAIRS = {
    "A": Pair(
        "phones",
        ("speaker", "language"),
        Phones,
        lambda recordings, sizes: [phone_sounds(recordings, sizes), speaker_sounds(recordings, sizes, NOISE)],
    ),
    "B": Pair(
        "speaker",
        ("phones",),
        SpeakerLessons,
        lambda recordings, sizes: [
            only(speaker_sounds(recordings, sizes, (-5.0, 0.0)), "speaker"),
            phone_sounds(recordings, sizes),
        ],
    ),
}
