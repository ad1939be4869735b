"""From hidden states to figures: every layer of two or three encoders on one probe, one utterance at a time."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from speechft_merge.similarity.cka import (
    Cross,
    LeaveOneOut,
    Representation,
    cka,
    mean_cosine,
    procrustes,
    replicates,
    standard_error,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from speechft_merge.similarity.cka import Shifted
    from speechft_merge.similarity.request import Estimator

Utterance = list["Tensor"]
"""The features of one utterance in one layer, one tensor (frames, width) for each encoder."""

Pair = tuple[int, int]
"""Two encoders, by their places; the first one is smaller."""


@dataclass(frozen=True, slots=True)
class Similarity:
    """Of two representations; nan where a figure is not defined."""

    cka: float
    """By the estimator that was asked for."""
    se: float
    """Its standard error; of the estimator `utterance` only, and where the features could be kept."""
    frame: float
    biased: float
    procrustes: float
    cosine: float
    """Mean over frames, then over utterances; nan if the widths differ."""


class LayerResult(NamedTuple):
    """One layer."""

    pairs: dict[Pair, Similarity]
    replicates: dict[Pair, Tensor]
    """CKA without each utterance; empty where the features were not kept."""


class LayerMeter:
    """Sums of one layer, over the utterances so far: O(width^2) memory for each pair of encoders."""

    def __init__(self, encoders: int) -> None:
        self.utterances = 0
        self._sides = [Representation() for _ in range(encoders)]
        self._crosses = {
            (i, j): Cross(self._sides[i], self._sides[j])
            for i, j in itertools.combinations_with_replacement(range(encoders), 2)
        }
        self._cosines = dict.fromkeys(itertools.combinations(range(encoders), 2), 0.0)

    def add(self, utterance: Utterance) -> list[Shifted]:
        """Count in one utterance; returns it shifted, as `finish` may want it again."""
        shifted = [side.add(frames) for side, frames in zip(self._sides, utterance, strict=True)]
        for (i, j), cross in self._crosses.items():
            cross.add(shifted[i], shifted[j])
        for i, j in self._cosines:
            alike = utterance[i].shape == utterance[j].shape
            self._cosines[i, j] += mean_cosine(utterance[i], utterance[j]) if alike else math.nan
        self.utterances += 1
        return shifted

    def finish(self, estimator: Estimator, kept: Sequence[list[Shifted]] | None = None) -> LayerResult:
        """The figures; with standard errors if `kept` has what `add` returned, utterance by utterance."""
        pairs, without = {}, {}
        errors = self._without_each(kept) if kept is not None and estimator == "utterance" else {}
        for (i, j), cosine in self._cosines.items():
            sums = self._crosses[i, j], self._crosses[i, i], self._crosses[j, j]
            if errors:
                without[i, j] = replicates(errors[i, j], errors[i, i], errors[j, j]).cpu()
            pairs[i, j] = Similarity(
                cka=cka(*sums, estimator),
                se=standard_error(without[i, j]) if errors else math.nan,
                frame=cka(*sums, "frame"),
                biased=cka(*sums, "biased"),
                procrustes=procrustes(sums[0]),
                cosine=cosine / self.utterances,
            )
        return LayerResult(pairs, without)

    def _without_each(self, kept: Sequence[list[Shifted]]) -> dict[Pair, Tensor]:
        """HSIC of every pair without each utterance."""
        found = {}
        for (i, j), cross in self._crosses.items():
            pass_ = LeaveOneOut(cross)
            for shifted in kept:
                pass_.add(shifted[i], shifted[j])
            found[i, j] = pass_.hsic()
        return found


def measure(utterances: Iterable[Sequence[Utterance]], estimator: Estimator) -> list[LayerResult]:
    """In one pass, nothing kept: no standard errors.

    Args:
        utterances: of each, its features layer by layer.
        estimator: of the figure `cka`.
    """
    meters: list[LayerMeter] = []
    for layers in utterances:
        meters = meters or [LayerMeter(len(layer)) for layer in layers]
        for meter, layer in zip(meters, layers, strict=True):
            meter.add(layer)
    return [meter.finish(estimator) for meter in meters]


def measure_kept(layers: Sequence[Sequence[Utterance]], estimator: Estimator) -> list[LayerResult]:
    """Layer by layer, from features that are in memory: with standard errors, and the sums of one layer at a time.

    Args:
        layers: of each, its features utterance by utterance.
        estimator: of the figure `cka`.
    """
    results = []
    for utterances in layers:
        meter = LayerMeter(len(utterances[0]))
        shifted = [meter.add(utterance) for utterance in utterances]
        results.append(meter.finish(estimator, shifted))
    return results


def measure_null(layers: Sequence[Sequence[Utterance]], estimator: Estimator) -> list[float]:
    """What the measure reads where nothing is common: CKA of the first encoder with itself on another utterance.

    Utterance u is paired with u + half of them, and both are cut to the shorter one's frames.
    """
    found = []
    for utterances in layers:
        meter, half = LayerMeter(2), len(utterances) // 2
        for u, utterance in enumerate(utterances):
            ours, other = utterance[0], utterances[(u + half) % len(utterances)][0]
            count = min(len(ours), len(other))
            meter.add([ours[:count], other[:count]])
        found.append(meter.finish(estimator).pairs[0, 1].cka)
    return found


def measure_grid(layers: Sequence[Sequence[Utterance]], pair: Pair, estimator: Estimator) -> list[list[float]]:
    """CKA of every layer of one encoder (rows) with every layer of another (columns)."""
    rows = [_with_itself(utterances, pair[0]) for utterances in layers]
    columns = [_with_itself(utterances, pair[1]) for utterances in layers]
    grid = []
    for x, own_x, x_shifted in rows:
        line = []
        for y, own_y, y_shifted in columns:
            cross = Cross(x, y)
            for ours, theirs in zip(x_shifted, y_shifted, strict=True):
                cross.add(ours, theirs)
            line.append(cka(cross, own_x, own_y, estimator))
        grid.append(line)
    return grid


def _with_itself(utterances: Sequence[Utterance], which: int) -> tuple[Representation, Cross, list[Shifted]]:
    side = Representation()
    own = Cross(side, side)
    shifted = [side.add(utterance[which]) for utterance in utterances]
    for frames in shifted:
        own.add(frames, frames)
    return side, own, shifted


def mean_over_layers(results: Sequence[LayerResult], pair: Pair) -> tuple[float, float]:
    """Mean CKA of a pair over the layers where it is defined, and its standard error (nan without replicates)."""
    values = [result.pairs[pair].cka for result in results if math.isfinite(result.pairs[pair].cka)]
    if not values:
        return math.nan, math.nan
    kept = [result.replicates[pair] for result in results if pair in result.replicates]
    error = standard_error(torch.stack(kept).mean(0)) if len(kept) == len(values) == len(results) else math.nan
    return math.fsum(values) / len(values), error
