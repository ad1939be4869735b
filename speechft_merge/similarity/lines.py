"""Draws layer against CKA into axes of matplotlib: a line for each pair of models, with the band of its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from speechft_merge.record.layers import ENCODER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from speechft_merge.record.layers import LayerKey
    from speechft_merge.similarity.measure import Similarity

STYLES = {  # Okabe and Ito's colours, which the colour-blind can tell apart; and markers, for print in grey
    "base_finetuned": {"color": "#D55E00", "marker": "s"},
    "base_merged": {"color": "#0072B2", "marker": "o"},
    "finetuned_merged": {"color": "#009E73", "marker": "^"},
}
ALIKE = 0.8
"""The least CKA above which an axis from 0 would hide what there is to see."""
WIDE = 30
"""Rows that a column of a paper has room for."""


@dataclass(frozen=True, slots=True)
class Curves:
    """What is drawn."""

    keys: Sequence[LayerKey]
    """The layers."""
    pairs: Mapping[str, Sequence[Similarity]]
    """Pair of models, one of `STYLES` -> its figures, layer by layer."""
    labels: Mapping[str, str]
    """Pair -> its name in the legend."""
    floor: Sequence[float]
    """The floor of each layer; nan where it is not known."""
    measure: str
    """What the figures are."""


def plot_lines(axes: Any, curves: Curves) -> None:
    """Draw lines into axes of matplotlib, with the names of what is drawn."""
    keys = curves.keys
    stacks = [[place for place, _ in run] for _, run in groupby(enumerate(keys), lambda one: one[1].stack)]
    places = [place + apart for apart, stack in enumerate(stacks) for place in stack]
    bottom = _bottom(curves)
    for pair, found in curves.pairs.items():
        _line(axes, places, stacks, found, curves.labels[pair], STYLES[pair])
    _draw_floor(axes, places, stacks, curves.floor, bottom)
    axes.set_xlabel("layer")
    axes.set_ylabel(curves.measure if bottom <= 0 else f"{curves.measure}\n(axis from {bottom:.6g}, not 0)")
    axes.set_ylim(bottom, 1 + 0.02 * (1 - bottom))
    axes.set_xlim(places[0] - 0.5, places[-1] + 0.5)
    labels = [key.part if key.block is None else str(key.block) for key in keys]
    label_layers(axes.xaxis, keys, labels, places, 1 + len(keys) // (14 if len(keys) <= WIDE else 28))
    if {key.stack for key in keys} != {ENCODER}:
        _name_stacks(axes, keys, places, stacks)


def _bottom(curves: Curves) -> float:
    """Return where the axis begins: at 0 or the least value, or where all are alike just below the least end."""
    found = [similarity for line in curves.pairs.values() for similarity in line]
    ends = [end for one in found for end in (one.cka, one.low) if math.isfinite(end)]
    least = min(ends, default=0.0)
    if least <= ALIKE:
        return 1.05 * min([0.0, least, *filter(math.isfinite, curves.floor)])
    gap = max(1.1 * (1 - least), 1e-4)
    step = 10.0 ** math.floor(math.log10(gap)) / 2
    return 1 - math.ceil(gap / step) * step


def _draw_floor(
    axes: Any, places: Sequence[int], stacks: Sequence[Sequence[int]], floor: Sequence[float], bottom: float
) -> None:
    known = [value for value in floor if math.isfinite(value)]
    if not known:
        return
    label, look = "floor (mismatched)", {"color": "0.5", "linestyle": ":"}
    if min(known) < bottom:
        axes.plot([], [], **look, label="floor: below this axis")
        return
    for number_of, stack in enumerate(stacks):
        look_up = [places[at] for at in stack], [floor[at] for at in stack]
        axes.plot(*look_up, **look, label=None if number_of else label)


def _name_stacks(axes: Any, keys: Sequence[LayerKey], places: Sequence[int], stacks: Sequence[Sequence[int]]) -> None:
    """Write the name of each stack above it, and shade every other one."""
    for shaded, stack in enumerate(stacks):
        start, end = places[stack[0]] - 0.5, places[stack[-1]] + 0.5
        if shaded % 2:
            axes.axvspan(start, end, color="0.94", linewidth=0, zorder=0)
        where = axes.get_xaxis_transform()
        name = keys[stack[0]].stack.replace("_", " ")
        axes.text((start + end) / 2, 1.01, name, transform=where, ha="center", va="bottom", color="0.25")


def label_layers(axis: Any, keys: Sequence[LayerKey], labels: Sequence[str], places: Sequence[int], step: int) -> None:
    """Label rows along an axis: as many blocks as there is room for beside the words at their ends.

    Args:
        axis: of matplotlib.
        keys: the rows.
        labels: their labels.
        places: where each is on the axis.
        step: how far labels of blocks are apart; words, which stand upright, may be at half of that.
    """
    words: list[int] = []
    for row, key in enumerate(keys):
        if key.block is None and (not words or places[row] - places[words[-1]] >= (step + 1) // 2):
            words.append(row)
    free = [
        row for row, key in enumerate(keys)
        if key.block is not None and key.block % step == 0 and all(abs(places[row] - places[w]) >= step for w in words)
    ]  # fmt: skip
    ticks = sorted([*words, *free])
    axis.set_ticks([places[row] for row in ticks], [labels[row] for row in ticks])
    for tick, row in zip(axis.get_major_ticks(), ticks, strict=True):
        if axis.axis_name == "x" and len(labels[row]) > 2:  # wider than the room of one block
            tick.label1.set_rotation(90)


def _line(
    axes: Any, places: Sequence[int], stacks: Sequence[Sequence[int]], found: Sequence[Any], label: str,
    style: dict[str, str],
) -> None:  # fmt: skip
    """Draw the line and the band of a pair, interrupted between stacks."""
    for first, stack in enumerate(stacks):
        at = [places[place] for place in stack]
        here = [found[place] for place in stack]
        lows, highs = [one.low for one in here], [one.high for one in here]
        axes.fill_between(at, lows, highs, color=style["color"], alpha=0.2, linewidth=0)
        axes.plot(at, [one.cka for one in here], label=None if first else label, **style)
