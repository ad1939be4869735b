"""What an encoder can do: its own head, fresh probes of every task, and how like the base its features are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from examples.choosing_alpha.likeness import CLIP, Likeness
from examples.choosing_alpha.probe import probe_accuracy
from examples.choosing_alpha.tasks import WINDOW
from examples.sources.encoders import layers_of

if TYPE_CHECKING:
    from examples.choosing_alpha.tasks import Task, Test
    from examples.sources.encoders import Base, Inputs, State
    from speechft_merge.similarity.encoders import Encoder

ROWS = 32
"""Crops that are heard at once."""


class Bench:
    """One base, with the inputs of all tests prepared once."""

    def __init__(self, base: Base, tasks: dict[str, Task]) -> None:
        self.base = base
        self.tests = {name: task.test for name, task in tasks.items()}
        self.inputs = {name: [base.hear(rows) for rows in test.waves.split(ROWS)] for name, test in self.tests.items()}
        self.likeness = Likeness(base)
        self.at_base: dict[str, float] = {}
        """What fresh probes find in the base; empty until it is measured."""


class Merge:
    """A base and a fine-tune for the task `own` in live encoders: one for the tests, one for the built-in probe."""

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
    heard = [layers_of(encoder, inputs) for inputs in batches]
    layers = [torch.cat(parts) for parts in zip(*heard, strict=True)]
    if test.labels.dim() == 1:
        return [layer.mean(dim=1) for layer in layers], test.labels, test.folds
    labels = test.labels[:, : layers[0].shape[1]]
    known = labels >= 0
    return [layer[known] for layer in layers], labels[known], test.folds[:, None].expand_as(labels)[known]
