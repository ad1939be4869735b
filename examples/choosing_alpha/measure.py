"""What an encoder can do: its own head, fresh probes of every task, and how like the base its features are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from examples.choosing_alpha.probe import probe_accuracy
from examples.choosing_alpha.tasks import WINDOW
from examples.sources.recordings import RATE
from examples.speech_ft.encoder import FRAME
from speechft_merge.similarity.cka import Cross, Representation, cka
from speechft_merge.similarity.inputs import Batch
from speechft_merge.similarity.probe import read_probe

if TYPE_CHECKING:
    from examples.choosing_alpha.encoders import Base, Inputs, State
    from examples.choosing_alpha.tasks import Task, Test
    from speechft_merge.similarity.cka import Shifted
    from speechft_merge.similarity.encoders import Encoder

ROWS = 80
"""Crops that are heard at once."""
CLIP = 5 * RATE // 2
"""Samples that hold any of the 24 clips of the built-in probe, 50 s in all."""


class Bench:
    """One base, with the inputs of all tests prepared once."""

    def __init__(self, base: Base, tasks: dict[str, Task]) -> None:
        self.base = base
        self.tests = {name: task.test for name, task in tasks.items()}
        self.inputs = {name: [base.hear(rows) for rows in test.waves.split(ROWS)] for name, test in self.tests.items()}
        self.likeness = Likeness(base)
        self.at_base: dict[str, float] = {}
        """What fresh probes find in the base; empty until it is measured."""

    def merge(self, finetuned: State, own: str, head: State) -> Merge:
        """The merges of the base and a fine-tune for the task `own`."""
        return Merge(self, finetuned, own, head)


class Merge:
    """A live encoder, and its twin for the built-in probe, at one alpha after the other."""

    def __init__(self, bench: Bench, finetuned: State, own: str, head: State) -> None:
        self._bench, self._own = bench, own
        self._encoder = bench.base.build(WINDOW)
        self._live = bench.base.live(self._encoder, finetuned, WINDOW)
        self._twin = bench.base.live(bench.likeness.encoder, finetuned, CLIP)
        self._head = torch.nn.Linear(*reversed(head["weight"].shape))
        self._head.load_state_dict(head)

    def at(self, alpha: float) -> dict[str, float]:
        """Accuracies and CKA: `own`, of the fine-tune's head; of each task fresh probes, on all layers and the last."""
        self._live.set(alpha)
        self._twin.set(alpha)
        known = self._bench.at_base if alpha == 0 else {}
        found = {"cka": self._bench.likeness.measure()}
        for name, test in self._bench.tests.items():
            if known and name != self._own:
                continue
            layers, labels, folds = features(self._encoder, self._bench.inputs[name], test)
            if name == self._own:
                with torch.no_grad():
                    found["own"] = float(self._head(layers[-1]).argmax(dim=1).eq(labels).float().mean())
            found[f"{name}_all"] = probe_accuracy(torch.cat(layers, dim=1), labels, folds)
            found[f"{name}_last"] = probe_accuracy(layers[-1], labels, folds)
        if alpha == 0:
            self._bench.at_base |= {name: value for name, value in found.items() if name not in ("cka", "own")}
        return known | found


def features(
    encoder: Encoder, batches: list[Inputs], test: Test
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Rows of each layer, (rows, width), with labels and folds: a row a crop, or a row a labelled frame."""
    heard = []
    for inputs in batches:
        count = len(next(iter(inputs.values())))
        clips = encoder.run(Batch(inputs, frames=[10**6] * count))
        heard.append([torch.stack(layer) for layer in zip(*(clip.values() for clip in clips), strict=True)])
    layers = [torch.cat(parts) for parts in zip(*heard, strict=True)]
    if test.labels.dim() == 1:
        return [layer.mean(dim=1) for layer in layers], test.labels, test.folds
    labels = test.labels[:, : layers[0].shape[1]]
    known = labels >= 0
    return [layer[known] for layer in layers], labels[known], test.folds[:, None].expand_as(labels)[known]


class Likeness:
    """CKA to a base on the built-in probe, layer by layer, as `speechft-merge compare` estimates it."""

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
