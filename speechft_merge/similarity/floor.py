"""Measures the floor: what CKA reads of one encoder on different speech, where frames have nothing in common.

Each group is paired with another one, its clips with theirs, and theirs are turned in time by a random part of their
length: nothing is left in common. Without that turn frames stay aligned by their place in a clip, and at the same place
any two clips are alike (silence at the ends, perhaps). So that figure is a second one, `aligned`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from speechft_merge.similarity.cka import Cross, Representation, hsic
from speechft_merge.similarity.measure import for_each, summarise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from speechft_merge.choices import Estimator
    from speechft_merge.similarity.measure import Group

DRAWS, SEED = 20, 20261127
"""How many times all groups are paired anew, and from what."""
FRAMES = 1000
"""Frames that a draw takes at least, evenly spread, of a longer probe: neighbours are alike, and products cost."""

Lengths = tuple[tuple[int, ...], ...]
"""Of each group, the frames of each of its clips."""
Pairing = list[tuple[int, "Tensor", "Tensor"]]
"""Of each group: the group that it is paired with, and the places of its own frames and of the other's, (frames,)."""


@dataclass(frozen=True, slots=True)
class Floor:
    """What CKA reads in one layer where nothing is in common."""

    mean: float
    sd: float
    """Standard deviation over the draws."""
    aligned: float
    """Mean where frames stay aligned by their place in a clip."""


def measure_floor(
    layers: Sequence[Sequence[Group]], lengths: Sequence[Sequence[Sequence[int]]], estimator: Estimator
) -> list[Floor]:
    """Measure the floor of the first encoder in each layer.

    The HSIC of mismatched frames is divided by that of the encoder with itself on all of its frames.

    Args:
        layers: of each, the features group by group.
        lengths: of each group, of each of its clips, the frames in each layer (of a text decoder the tokens).
        estimator: of CKA.
    """
    by_layer = [tuple(tuple(clip[layer] for clip in group) for group in lengths) for layer, _ in enumerate(layers)]
    drawn = {frames: _draw_pairings(frames, estimator) for frames in {*by_layer}}

    def measure_layer(layer: tuple[Sequence[Group], Lengths]) -> Floor:
        groups, frames = layer
        features = [group[0] for group in groups]
        own = hsic(summarise(features)[1], estimator)
        turned, aligned = (
            [_hsic_of(features, pairing) / own if own > 0 else math.nan for pairing in pairings]
            for pairings in zip(*drawn[frames], strict=True)
        )
        return Floor(float(np.mean(turned)), float(np.std(turned, ddof=1)), float(np.mean(aligned)))

    def _hsic_of(features: Sequence[Tensor], pairing: Pairing) -> float:
        x, y = Representation(), Representation()
        cross = Cross(x, y)
        for ours, (other, here, there) in zip(features, pairing, strict=True):
            cross.add(x.add(ours[here.to(ours.device)]), y.add(features[other][there.to(ours.device)]))
        return hsic(cross, estimator)

    return for_each(layers[0][0][0], measure_layer, [*zip(layers, by_layer, strict=True)])


def _draw_pairings(lengths: Lengths, estimator: Estimator) -> list[tuple[Pairing, Pairing]]:
    step = max(1, sum(map(sum, lengths)) // FRAMES) if estimator == "group" else 1  # the others depend on how many
    return [draw_pairing(lengths, draw, step) for draw in range(DRAWS)]


def draw_pairing(lengths: Sequence[Sequence[int]], draw: int, step: int = 1) -> tuple[Pairing, Pairing]:
    """Return a random derangement of the groups twice: turned in time, and aligned.

    Clip number c is paired with the other group's number c, counted round. Turned, a clip that is shorter is gone
    through more than once; aligned, both are cut to the shorter one.

    Args:
        lengths: of each group, the frames of each of its clips; two groups at least.
        draw: number of the draw, from 0.
        step: every how manieth frame is taken.
    """
    random = np.random.default_rng([SEED, draw])
    others = np.arange(len(lengths))
    while (others == np.arange(len(lengths))).any():
        others = random.permutation(len(lengths))
    starts = [np.cumsum([0, *frames[:-1]]).tolist() for frames in lengths]
    turned, aligned = Pairing(), Pairing()
    for group, other in enumerate(others.tolist()):
        places: list[list[Tensor]] = [[], [], [], []]
        for clip, frames in enumerate(lengths[group]):
            its = clip % len(lengths[other])
            theirs, ours = lengths[other][its], torch.arange(0, frames, step)
            start, begin = starts[group][clip], starts[other][its]
            common = ours[ours < theirs]
            turn = int(random.integers(theirs))
            found = ours + start, (ours + turn) % theirs + begin, common + start, common + begin
            for kept, some in zip(places, found, strict=True):
                kept.append(some)
        here, there, same_here, same_there = map(torch.cat, places)
        turned.append((other, here, there))
        aligned.append((other, same_here, same_there))
    return turned, aligned
