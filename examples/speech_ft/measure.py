"""What fresh probes find in an encoder: right answers on each clip or utterance of the tests, by task and probe."""

from __future__ import annotations

import base64
import zlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from examples.probes import SEEDS, ridge, weighted_sum
from examples.sources.encoders import layers_of

if TYPE_CHECKING:
    from examples.sources.encoders import Base, Inputs, State
    from examples.speech_ft.tasks import Sounds
    from speechft_merge.similarity.encoders import Encoder

PROBES = {"ws": SEEDS, "ridge": 1, "last": 1}
"""Name -> answers that it gives to each question."""
ROWS = 64
"""Crops that are heard at once."""
Counts = NDArray[np.int64]


class Bench:
    """A base, and sounds for it to hear, whose spectra are computed once."""

    def __init__(self, base: Base, sounds: list[Sounds]) -> None:
        self.base, self.sounds = base, sounds
        self._inputs = [[base.hear(rows) for rows in each.waves.split(ROWS)] for each in sounds]

    def measure(self, finetuned: State | None, alpha: float) -> dict[str, Counts]:
        """Right answers on each unit of the test, by `task/probe`, of a merge; of the base without a fine-tune."""
        found = {}
        for sounds, inputs in zip(self.sounds, self._inputs, strict=True):
            samples = sounds.waves.shape[1]
            encoder = self.base.build(samples)
            if finetuned is not None:
                self.base.live(encoder, finetuned, samples).set(alpha)
            states = features(encoder, inputs, pooled=sounds.pooled)
            for task, labels in sounds.labels.items():
                found |= {f"{task}/{name}": counts for name, counts in probed(states, labels, sounds).items()}
        return found

    def questions(self) -> dict[str, Counts]:
        """The rows of each unit of the test, by task."""
        return {
            task: per_unit(torch.ones(len(units)), units)
            for sounds in self.sounds
            for task, labels in sounds.labels.items()
            for units in [owners(labels, sounds)[labels >= 0][tested(labels, sounds)]]
        }


def features(encoder: Encoder, batches: list[Inputs], *, pooled: bool) -> torch.Tensor:
    """Hidden states, (rows, frames, layers, width), or their means over the frames, (rows, layers, width).

    The last block's are those after the norm, as transformers and S3PRL have it.
    """
    heard = ([*layers[:-2], layers[-1]] for layers in (layers_of(encoder, inputs) for inputs in batches))
    return torch.cat(
        [torch.stack([layer.mean(dim=1) for layer in layers] if pooled else layers, dim=-2) for layers in heard]
    )


def owners(labels: torch.Tensor, sounds: Sounds) -> torch.Tensor:
    """The unit of each label, in the labels' shape."""
    return sounds.units.view(-1, *[1] * (labels.dim() - 1)).expand_as(labels)


def tested(labels: torch.Tensor, sounds: Sounds) -> torch.Tensor:
    """Whether each label that is known is for the test, (labels,)."""
    return sounds.tested.view(-1, *[1] * (labels.dim() - 1)).expand_as(labels)[labels >= 0]


def probed(states: torch.Tensor, labels: torch.Tensor, sounds: Sounds) -> dict[str, Counts]:
    """Right answers on each unit of the test, by probe; one quarter of the other units is held out of a first fit."""
    known, test, units = labels >= 0, tested(labels, sounds), owners(labels, sounds)
    states, labels, units = states[known], labels[known], units[known]
    order = torch.unique(units[~test], return_inverse=True)[1]
    held_out = order % 4 == 0
    fit, asked = states[~test], states[test]
    answers = {
        "ws": weighted_sum(fit, labels[~test], held_out, asked),
        "ridge": ridge(fit.flatten(1), labels[~test], held_out, asked.flatten(1)),
        "last": ridge(fit[:, -1], labels[~test], held_out, asked[:, -1]),
    }
    return {
        name: per_unit(found.eq(labels[test]).view(-1, int(test.sum())).sum(dim=0), units[test])
        for name, found in answers.items()
    }


def per_unit(values: torch.Tensor, units: torch.Tensor) -> Counts:
    """Sums over the rows of each unit, (units,), in the order of their numbers."""
    places = torch.unique(units, return_inverse=True)[1]
    return np.bincount(places.numpy(), values.numpy()).astype(np.int64)


def pack(counts: Counts) -> str:
    """Counts below 65,536 as a short text."""
    planes = counts.astype("<u2").view(np.uint8).reshape(-1, 2).T
    return base64.b85encode(zlib.compress(planes.tobytes(), 9)).decode()


def unpack(text: str) -> Counts:
    """Counts, (units,), from what `pack` made."""
    planes = np.frombuffer(zlib.decompress(base64.b85decode(text)), np.uint8).reshape(2, -1)
    return planes[0].astype(np.int64) + 256 * planes[1].astype(np.int64)
