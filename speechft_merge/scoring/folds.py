"""Deals groups of clips out to folds, so that each class is spread evenly. Pure, and the same in any order."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def assign_folds(labels: Sequence[str], groups: Sequence[str], count: int = 5) -> list[int]:
    """Return the fold of each clip; a group lies in one fold, and no fold has all of a class if that can be.

    The largest groups go first, each to the fold that has the least of its classes.

    Args:
        labels: class of each clip.
        groups: group of each clip.
        count: of folds, at most.
    """
    sizes = Counter(labels)
    classes: dict[str, Counter[str]] = {}
    for label, group in zip(labels, groups, strict=True):
        classes.setdefault(group, Counter())[label] += 1
    dealt = [Counter[str]() for _ in range(count)]
    chosen: dict[str, int] = {}
    for group in sorted(classes, key=lambda name: (-classes[name].total(), name)):
        held = classes[group]

        def cost(fold: int, held: Counter[str] = held) -> tuple[int, float, int, int]:
            whole = sum(dealt[fold][label] + number == sizes[label] for label, number in held.items())
            crowd = sum(dealt[fold][label] * number / sizes[label] ** 2 for label, number in held.items())
            return whole, crowd, dealt[fold].total(), fold

        chosen[group] = min(range(count), key=cost)
        dealt[chosen[group]].update(held)
    return [chosen[group] for group in groups]
