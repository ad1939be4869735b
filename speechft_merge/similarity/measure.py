"""Measures every layer of two or three encoders on one probe, from hidden states, one group at a time."""

from __future__ import annotations

import contextlib
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch

from speechft_merge.choices import ESTIMATORS
from speechft_merge.similarity.cka import (
    Cross,
    LeaveOneOut,
    Representation,
    cka,
    hsic,
    interval,
    mean_cosine,
    normalise,
    procrustes,
    replicates,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor

    from speechft_merge.choices import Estimator
    from speechft_merge.similarity.cka import Shifted

    Side = tuple[Representation, Cross, list[Shifted]]
    """Of one encoder in one layer: its sums, those with itself, its features."""

THREADS = 8
"""Most threads: each has the sums of a layer, and the products, in memory."""
PRODUCTS = 256 << 20
"""Bytes of products, of one pair of encoders in one layer, that are kept for the second pass rather than made again."""

_Result = TypeVar("_Result")

Group = list["Tensor"]
"""The features of one group in one layer, one tensor (frames, width) for each encoder."""

Pair = tuple[int, int]
"""Two encoders, by their indexes, the smaller one first."""


@dataclass(frozen=True, slots=True)
class Similarity:
    """How alike two representations are; nan where a figure is not defined."""

    cka: float
    """CKA by the requested estimator."""
    se: float
    """Its standard error; of the estimator `group` only, and where the features could be kept."""
    low: float
    """Lower end of its 95 % interval; where it has a standard error."""
    high: float
    """Upper end."""
    frame: float
    biased: float
    procrustes: float
    cosine: float
    """Mean over frames, then over groups; nan if the widths differ."""


@dataclass(frozen=True, slots=True)
class MeanSimilarity:
    """Mean CKA over layers, and its error as `Similarity` has it."""

    cka: float
    se: float = math.nan
    low: float = math.nan
    high: float = math.nan


class LayerResult(NamedTuple):
    """One layer."""

    pairs: dict[Pair, Similarity]
    replicates: dict[Pair, Tensor]
    """CKA without each group; empty where the features were not kept."""


class LayerMeter:
    """Sums of one layer, over the groups so far: O(width^2) memory for each pair of encoders."""

    def __init__(self, encoders: int) -> None:
        self.groups = 0
        self._sides = [Representation() for _ in range(encoders)]
        self._crosses = {
            (i, j): Cross(self._sides[i], self._sides[j])
            for i, j in itertools.combinations_with_replacement(range(encoders), 2)
        }
        self._cosines = dict.fromkeys(itertools.combinations(range(encoders), 2), 0.0)

    def add(self, group: Group) -> None:
        """Add one group."""
        shifted = self._shift(group)
        for (i, j), cross in self._crosses.items():
            cross.add(shifted[i], shifted[j])

    def add_all(self, groups: Sequence[Group], errors: bool) -> dict[Pair, Tensor]:
        """Add all groups, one pair of encoders after the other.

        Returns:
            With `errors`, CKA without each group: of each pair, float64, (groups,).
        """
        shifted = [self._shift(group) for group in groups]
        without = {}
        for (i, j), cross in self._crosses.items():
            pairs = [(sides[i], sides[j]) for sides in shifted]
            size = 4 * len(pairs) * pairs[0][0].frames.shape[1] * pairs[0][1].frames.shape[1]
            products: list[Tensor | None] = []
            for x, y in pairs:
                product = cross.add(x, y)
                products.append(product if errors and size <= PRODUCTS else None)
            if errors:
                second = LeaveOneOut(cross)
                for (x, y), kept in zip(pairs, products, strict=True):
                    second.add(x, y, kept)
                without[i, j] = second.hsic()
        if not errors:
            return {}
        return {(i, j): replicates(without[i, j], without[i, i], without[j, j]).cpu() for i, j in self._cosines}

    def _shift(self, group: Group) -> list[Shifted]:
        for i, j in self._cosines:
            alike = group[i].shape == group[j].shape
            self._cosines[i, j] += mean_cosine(group[i], group[j]) if alike else math.nan
        self.groups += 1
        return [side.add(frames) for side, frames in zip(self._sides, group, strict=True)]

    def finish(self, estimator: Estimator, without: dict[Pair, Tensor] | None = None) -> LayerResult:
        """Return the figures; with standard errors if `without` is what `add_all` returned."""
        found = {name: {pair: hsic(cross, name) for pair, cross in self._crosses.items()} for name in ESTIMATORS}
        values = {
            name: {(i, j): normalise(hsics[i, j], hsics[i, i], hsics[j, j]) for i, j in self._cosines}
            for name, hsics in found.items()
        }
        pairs = {
            pair: Similarity(
                values[estimator][pair],
                *(interval(values[estimator][pair], without[pair]) if without else (math.nan,) * 3),
                frame=values["frame"][pair],
                biased=values["biased"][pair],
                procrustes=procrustes(self._crosses[pair]),
                cosine=cosine / self.groups,
            )
            for pair, cosine in self._cosines.items()
        }
        return LayerResult(pairs, without or {})


def measure(groups: Iterable[Sequence[Group]], estimator: Estimator) -> list[LayerResult]:
    """Measure in one pass, nothing kept: no standard errors.

    Args:
        groups: of each, its features layer by layer.
        estimator: of the figure `cka`.
    """
    meters: list[LayerMeter] = []
    for layers in groups:
        meters = meters or [LayerMeter(len(layer)) for layer in layers]
        for_each(layers[0][0], LayerMeter.add, meters, layers)
    return [meter.finish(estimator) for meter in meters]


def measure_kept(layers: Sequence[Sequence[Group]], estimator: Estimator) -> list[LayerResult]:
    """Measure layer by layer, from features in memory: with standard errors, and the sums of few layers at a time.

    Args:
        layers: of each, its features group by group.
        estimator: of the figure `cka`.
    """

    def measure_layer(groups: Sequence[Group]) -> LayerResult:
        meter = LayerMeter(len(groups[0]))
        without = meter.add_all(groups, errors=estimator == "group")
        return meter.finish(estimator, without)

    return for_each(layers[0][0][0], measure_layer, layers)


def for_each(where: Tensor, function: Callable[..., _Result], *items: Iterable[Any]) -> list[_Result]:
    """Call a function on as many threads as torch has, within reason, each running its operations alone; one for a GPU.

    These are many and small: shared among threads, they took three times as long on two cores as on one.
    A GPU has its own, and torch's linear algebra there fails if several threads begin with it (PyTorch issue 90613).
    """
    with (
        torch_threads(1) as before,  # which a thread takes over with its first operation
        ThreadPoolExecutor(min(before, THREADS) if where.device.type == "cpu" else 1) as pool,
    ):
        return list(pool.map(function, *items))


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[int]:
    """Let torch use so many threads, None for as many as it does; yield how many it used before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


def measure_grid(layers: Sequence[Sequence[Group]], pair: Pair, estimator: Estimator) -> list[list[float]]:
    """Measure CKA of every layer of one encoder (rows) with every layer of another (columns)."""
    rows, columns = ([summarise([group[which] for group in layer]) for layer in layers] for which in pair)

    def measure_row(row: Side) -> list[float]:
        return [measure_between(row, column, estimator) for column in columns]

    return for_each(layers[0][0][0], measure_row, rows)


def measure_against(
    layers: Sequence[Sequence[Tensor]], others: Sequence[Sequence[Side]], estimator: Estimator
) -> list[list[float]]:
    """Measure CKA of one encoder with others whose features were summarised before: layer by layer, one figure each.

    Args:
        layers: of each, the features of the encoder, group by group: (frames, width).
        others: of each other encoder, its layers by `summarise`.
        estimator: of CKA.
    """

    def measure_layer(features: Sequence[Tensor], *theirs: Side) -> list[float]:
        ours = summarise(features)
        return [measure_between(ours, side, estimator) for side in theirs]

    return for_each(layers[0][0], measure_layer, layers, *others)


def measure_between(row: Side, column: Side, estimator: Estimator) -> float:
    """Return CKA of two encoders in one layer, from what `summarise` made of either; nan where frames do not match.

    Those of a decoder are tokens.
    """
    (x, own_x, ours), (y, own_y, theirs) = row, column
    if any(len(one.frames) != len(other.frames) for one, other in zip(ours, theirs, strict=True)):
        return math.nan
    cross = Cross(x, y)
    for one, other in zip(ours, theirs, strict=True):
        cross.add(one, other)
    return cka(cross, own_x, own_y, estimator)


def summarise(groups: Sequence[Tensor]) -> Side:
    """Return the sums of one encoder in one layer, those with itself and its features: (frames, width) a group."""
    side = Representation()
    own = Cross(side, side)
    shifted = [side.add(frames) for frames in groups]
    for frames in shifted:
        own.add(frames, frames)
    return side, own, shifted


def mean_over_layers(results: Sequence[LayerResult], pair: Pair) -> MeanSimilarity:
    """Return a pair's mean CKA over the layers where it is defined; without error where a layer has none."""
    values = [result.pairs[pair].cka for result in results if math.isfinite(result.pairs[pair].cka)]
    if not values:
        return MeanSimilarity(math.nan)
    mean = math.fsum(values) / len(values)
    kept = [result.replicates[pair] for result in results if pair in result.replicates]
    if not len(kept) == len(values) == len(results):
        return MeanSimilarity(mean)
    return MeanSimilarity(mean, *interval(mean, torch.stack(kept).mean(0)))
