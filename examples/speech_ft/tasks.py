"""The tasks: who speaks (fine-tuned for), which phone and which language (never trained), each by a fresh probe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import WhisperFeatureExtractor

from examples.sources.recordings import RATE, Samples, random_crops
from examples.speech_ft.encoder import FRAME, WINDOW, Hearing, states

BILINGUAL = {"en": "allison-en", "es": "allison-es"}
"""One speaker, heard in two languages on the same channel."""
ONE_SPEAKER = "allison"
ROWS = 64
"""Windows that are heard at once."""


def speakers(recordings: Path, split: str) -> dict[str, Samples]:
    """One recording of each class of the fine-tune; the bilingual speaker is one class."""
    with np.load(recordings) as arrays:
        voices = {name.partition("/")[2]: arrays[name] for name in arrays.files if name.startswith(f"{split}/")}
    both = np.concatenate([voices.pop(name) for name in BILINGUAL.values()])
    return {ONE_SPEAKER: both, **voices}


def languages(recordings: Path, split: str) -> list[Samples]:
    """The one speaker's recordings, one a language."""
    with np.load(recordings) as arrays:
        return [arrays[f"{split}/{name}"] for name in BILINGUAL.values()]


class Clips:
    """Crops of recordings of several classes, and what an encoder makes of them."""

    def __init__(self, recordings: list[Samples], each: int, seed: int, hear: Hearing) -> None:
        generator = np.random.default_rng(seed)
        waves = torch.cat([random_crops(recording, each, WINDOW, generator) for recording in recordings])
        self.inputs = [hear(rows) for rows in waves.split(ROWS)]
        self.labels = torch.arange(len(recordings)).repeat_interleave(each)

    def heard(self, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean of the encoder's last layer over time, (crops, width), and what the model's own head makes of it."""
        pooled, logits = zip(*(self._pooled(model, inputs) for inputs in self.inputs), strict=True)
        return torch.cat(pooled), torch.cat(logits)

    @staticmethod
    def _pooled(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, logits = states(model, inputs)
        return hidden.mean(dim=1), logits


class Phones:
    """Windows of utterances with a phone a frame; two thirds of the utterances to fit, the others to test."""

    def __init__(self, recordings: Path, hear: Hearing, share: float = 1.0) -> None:
        with np.load(recordings) as arrays:
            owners = torch.from_numpy(arrays["phones/utterance"])
            keep = owners < share * (int(owners.max()) + 1)
            waves = torch.from_numpy(arrays["phones/waves"])[keep].float() / 32768
            self.labels = torch.from_numpy(arrays["phones/labels"])[keep].long()
        owners = owners[keep]
        self.fit = owners < (int(owners.max()) + 1) * 2 // 3
        self.inputs = [hear(rows) for rows in waves.split(ROWS)]
        self.spectra = log_mel(waves)

    def accuracy(self, model: Any) -> float:
        """Of a probe from single frames of the last layer to phones."""
        return self.readable(torch.cat([states(model, inputs)[0] for inputs in self.inputs]))

    def readable(self, frames: torch.Tensor) -> float:
        """Accuracy of a probe from frames, (windows, frames, width), to phones."""
        labels = self.labels[:, : frames.shape[1]]  # HuBERT and its kin give one frame less
        frames = frames[:, : labels.shape[1]]
        fit, test = (
            (frames[rows][labels[rows] >= 0], labels[rows][labels[rows] >= 0]) for rows in (self.fit, ~self.fit)
        )
        return probe_accuracy(*fit, *test)


def log_mel(waves: torch.Tensor) -> torch.Tensor:
    """What an encoder has to beat: log-mel spectra, two 10 ms frames side by side, (windows, frames, 160)."""
    extractor = WhisperFeatureExtractor(chunk_length=WINDOW // RATE)
    mel = extractor(list(waves.numpy()), sampling_rate=RATE, return_tensors="pt").input_features
    return mel.transpose(1, 2).reshape(len(waves), WINDOW // FRAME, -1)


def accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of rows whose highest score is at the label."""
    return float(scores.argmax(dim=1).eq(labels).double().mean())


def probe_accuracy(
    fit: torch.Tensor, fit_labels: torch.Tensor, test: torch.Tensor, test_labels: torch.Tensor, ridge: float = 0.1
) -> float:
    """Accuracy of ridge regression onto one-hot classes; features (n, width), labels (n,)."""
    mean, scale = fit.double().mean(dim=0), fit.double().std(dim=0) + 1e-6
    fit, test = (torch.nn.functional.pad((x.double() - mean) / scale, (0, 1), value=1.0) for x in (fit, test))
    targets = torch.nn.functional.one_hot(fit_labels).double()
    gram = fit.T @ fit + ridge * len(fit) * torch.eye(fit.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, fit.T @ targets)
    return accuracy(test @ weights, test_labels)


class Tasks:
    """All of them, prepared once for many models."""

    def __init__(self, work: Path, *, quick: bool = False) -> None:
        recordings, hear = work / "recordings.npz", Hearing(work / "base")
        each = 10 if quick else 20
        self.speakers, self.languages = (
            [Clips(recordings_of(split), count, seed, hear) for seed, split in enumerate(("train", "test"))]
            for recordings_of, count in (
                (lambda split: list(speakers(recordings, split).values()), each),
                (lambda split: languages(recordings, split), 5 * each // 2),
            )
        )
        self.phones = Phones(recordings, hear, share=0.5 if quick else 1.0)

    def identification(self, model: Any) -> float:
        """By the model's own head alone."""
        return accuracy(self.speakers[1].heard(model.eval())[1], self.speakers[1].labels)

    def measure(self, model: Any) -> dict[str, float]:
        """The accuracies of a model: identification by its own head, and all three tasks by fresh probes."""
        model.eval()
        test = self.speakers[1]
        speaking, logits = test.heard(model)
        return {
            "identification": accuracy(logits, test.labels),
            "identification_probe": probe_accuracy(
                self.speakers[0].heard(model)[0], self.speakers[0].labels, speaking, test.labels
            ),
            "language": probe_accuracy(*(x for clips in self.languages for x in (clips.heard(model)[0], clips.labels))),
            "phones": self.phones.accuracy(model),
        }
