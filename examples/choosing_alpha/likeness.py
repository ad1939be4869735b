"""How like the base's features are: CKA on the built-in probe, by `speechft-merge compare --group-by file`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from examples.sources.encoders import FRAME
from examples.sources.recordings import RATE
from speechft_merge.similarity.cka import Cross, Representation, cka
from speechft_merge.similarity.inputs import Batch
from speechft_merge.similarity.probe import read_probe

if TYPE_CHECKING:
    from examples.sources.encoders import Base
    from speechft_merge.similarity.cka import Shifted

CLIP = 5 * RATE // 2
"""Samples that hold any of the 24 clips of the built-in probe, 50 s in all."""


class Likeness:
    """A live encoder on the probe, and what the base made of it."""

    def __init__(self, base: Base) -> None:
        clips = [torch.from_numpy(clip[:CLIP]) for clip in read_probe(None, RATE).clips]
        self.encoder = base.build(CLIP)
        self._batches = [Batch(base.hear(base.fill(clip, CLIP)[None]), [-(-len(clip) // FRAME)]) for clip in clips]
        self._layers = [Layer() for _ in self._states(0)]
        for number in range(len(clips)):
            for layer, states in zip(self._layers, self._states(number), strict=True):
                layer.add_base(states)

    def _states(self, clip: int) -> list[torch.Tensor]:
        return list(self.encoder.run(self._batches[clip])[0].values())

    def measure(self) -> float:
        """Mean over layers of the CKA of the encoder, as it now is, to the base."""
        found = [self._states(number) for number in range(len(self._batches))]
        values = [layer.cka(list(states)) for layer, states in zip(self._layers, zip(*found, strict=True), strict=True)]
        return math.fsum(values) / len(values)


class Layer:
    """The base's features in one layer, and what is like them."""

    def __init__(self) -> None:
        self._side = Representation()
        self._own = Cross(self._side, self._side)
        self._frames: list[Shifted] = []

    def add_base(self, states: torch.Tensor) -> None:
        """Add a clip of the base, (frames, width)."""
        shifted = self._side.add(states)
        self._own.add(shifted, shifted)
        self._frames.append(shifted)

    def cka(self, clips: list[torch.Tensor]) -> float:
        """Of another encoder's features of the same clips."""
        side = Representation()
        own, cross = Cross(side, side), Cross(self._side, side)
        for ours, states in zip(self._frames, clips, strict=True):
            theirs = side.add(states)
            own.add(theirs, theirs)
            cross.add(ours, theirs)
        return cka(cross, self._own, own)
