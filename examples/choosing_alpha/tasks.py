"""The tasks: who speaks, which language, which phone; half a second each, in noise, over the telephone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from examples.finetune import Lessons
from examples.sources import sound
from examples.sources.recordings import RATE, Samples
from examples.sources.sound import loud_crops

NAMES = ("speaker", "language", "phones")
BILINGUAL = {"en": "allison-en", "es": "allison-es"}
"""One speaker, heard in two languages on the same channel."""
ONE_SPEAKER = "allison"
WINDOW = RATE // 2
SNR = 10.0, 25.0
"""Decibels of speech over pink noise, before the telephone."""
FOLDS = 4
"""Parts of the test crops, each from other stretches of the recordings; a probe is fitted on all but the tested one."""
CROPS = {"speaker": 48, "language": 320}
"""Test crops of each class."""
WINDOWS = 360
"""Test windows with phones."""
STRIDE = 3
"""Every third frame has a part in the test of phones."""
TEST_SEED = 1000


@dataclass(frozen=True)
class Test:
    """Crops that no fine-tune has heard, (rows, WINDOW), with labels, (rows,) or (rows, frames), -1 for none."""

    waves: torch.Tensor
    labels: torch.Tensor
    folds: torch.Tensor
    """Of each row."""


class Task(Lessons, Protocol):
    """What an encoder can be fine-tuned for, and tested on."""

    test: Test


class Voices:
    """Crops of recordings, one recording a class."""

    window = WINDOW

    def __init__(self, train: list[Samples], test: list[Samples], each: int) -> None:
        self.classes = len(train)
        self._train = train
        generator = np.random.default_rng(TEST_SEED)
        stretches = [part for recording in test for part in np.array_split(recording, FOLDS)]
        waves = torch.cat([loud_crops(stretch, each // FOLDS, WINDOW, generator) for stretch in stretches])
        numbers = torch.arange(len(stretches)).repeat_interleave(each // FOLDS)
        self.test = Test(telephone(waves, generator), numbers // FOLDS, numbers % FOLDS)

    def batch(self, rows: int, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        labels = generator.integers(0, self.classes, size=rows)
        waves = torch.cat([loud_crops(self._train[label], 1, WINDOW, generator) for label in labels])
        return telephone(waves, generator), torch.from_numpy(labels)


class Phones:
    """Windows of utterances with a phone a frame; every fifth utterance is held out, as everywhere."""

    window = WINDOW

    def __init__(self, recordings: Path) -> None:
        with np.load(recordings) as arrays:
            waves = torch.from_numpy(arrays["phones/waves"]).float() / 32768
            labels = torch.from_numpy(arrays["phones/labels"]).long()
            owners = torch.from_numpy(arrays["phones/utterance"]).long()
        self.classes = int(labels.max()) + 1
        held_out = owners % 5 == 0
        self._waves, self._labels = waves[~held_out], labels[~held_out]
        chosen = torch.linspace(0, int(held_out.sum()) - 1, WINDOWS).long()
        waves, labels, owners = (each[held_out][chosen] for each in (waves, labels, owners))
        sparse = torch.full_like(labels, -1)
        sparse[:, ::STRIDE] = labels[:, ::STRIDE]
        self.test = Test(telephone(waves, np.random.default_rng(TEST_SEED)), sparse, owners // 5 % FOLDS)

    def batch(self, rows: int, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.from_numpy(generator.integers(0, len(self._waves), size=rows))
        return telephone(self._waves[chosen], generator), self._labels[chosen]


def open_tasks(recordings: Path) -> dict[str, Task]:
    """All tasks, from the file that `prepare` wrote."""
    who = [list(speakers(recordings, split).values()) for split in ("train", "test")]
    tongues = [languages(recordings, split) for split in ("train", "test")]
    return {
        "speaker": Voices(*who, CROPS["speaker"]),
        "language": Voices(*tongues, CROPS["language"]),
        "phones": Phones(recordings),
    }


def speakers(recordings: Path, split: str) -> dict[str, Samples]:
    """One recording of each class of who speaks; the bilingual speaker is one class."""
    with np.load(recordings) as arrays:
        voices = {name.partition("/")[2]: arrays[name] for name in arrays.files if name.startswith(f"{split}/")}
    both = np.concatenate([voices.pop(name) for name in BILINGUAL.values()])
    return {ONE_SPEAKER: both, **voices}


def languages(recordings: Path, split: str) -> list[Samples]:
    """The one speaker's recordings, one a language."""
    with np.load(recordings) as arrays:
        return [arrays[f"{split}/{name}"] for name in BILINGUAL.values()]


def telephone(waves: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """Waves, (rows, samples), with pink noise, held to a telephone's band, each row at one loudness."""
    return sound.telephone(sound.noisy(waves, SNR, generator))
