"""Applies rules that give some tensors their own alpha: `0-5=0.1`, `cnn=0`, `0-11=0.1:0.5`, `**.fc1.*=0.3`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from speechft_merge.errors import UsageError, quote
from speechft_merge.layouts.structure import PARTS, STACKS
from speechft_merge.recipe.alpha import parse_alpha

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speechft_merge.layouts.structure import Location

_RANGE = re.compile(r"(?:([A-Za-z_][\w.]*)\.)?(\d+)(?:-(\d+))?")


@dataclass(frozen=True, slots=True)
class AlphaRule:
    """One rule: alpha goes from `start` to `stop` over the layers that it selects."""

    selector: str
    start: float
    stop: float

    def __str__(self) -> str:
        ramp = "" if self.start == self.stop else f":{self.stop!r}"
        return f"{self.selector}={self.start!r}{ramp}"


@dataclass(frozen=True, slots=True)
class Subject:
    """What a rule sees of a tensor."""

    name: str
    relative: str
    location: Location


def parse_rule(text: str) -> AlphaRule:
    """Parse one rule: SELECTOR=ALPHA or SELECTOR=FIRST:LAST.

    Raises:
        UsageError: it is not of that form, or a ramp over something that has no depth.
    """
    selector, equals, value = text.strip().rpartition("=")
    if not equals or not selector:
        raise UsageError(
            f"{quote(text)} is not a rule", hint="write SELECTOR=ALPHA, such as 0-5=0.1, cnn=0 or layers=0.1:0.5"
        )
    first, ramp, last = value.partition(":")
    start = parse_alpha(first)
    stop = parse_alpha(last) if ramp else start
    if ramp and selector not in ("layers", *STACKS) and not _RANGE.fullmatch(selector):
        raise UsageError(
            f"{quote(text)}: a ramp goes over blocks, and {quote(selector)} has none",
            hint="write a ramp as 0-11=0.1:0.5 or layers=0.1:0.5",
        )
    return AlphaRule(selector, start, stop)


def alphas_of(subjects: list[Subject], default: float, rules: tuple[AlphaRule, ...]) -> dict[str, float]:
    """Return the alpha of every tensor, later rules winning. Heads have none unless a rule names them.

    Raises:
        UsageError: a rule matches nothing, or names layers that the model lacks.
    """
    alphas = {subject.name: default for subject in subjects if not subject.location.is_head}
    for rule in rules:
        chosen = [subject for subject in subjects if _selects(rule.selector, subject)]
        depths = [subject.location.block for subject in chosen if subject.location.block is not None]
        _require_match(rule, chosen, depths, subjects)
        low, high = (min(depths), max(depths)) if depths else (0, 0)
        for subject in chosen:
            alphas[subject.name] = _ramp(rule, subject.location.block, low, high)
    return alphas


def _ramp(rule: AlphaRule, layer: int | None, low: int, high: int) -> float:
    """Interpolate linearly over depth; what is outside the blocks takes the start of the ramp."""
    if layer is None or low == high or layer == low:
        return rule.start
    if layer == high:
        return rule.stop
    return rule.start + (rule.stop - rule.start) * (layer - low) / (high - low)


def _selects(selector: str, subject: Subject) -> bool:
    location = subject.location
    layers = _RANGE.fullmatch(selector)
    if layers and location.block is not None and location.stack == (layers[1] or "encoder"):
        return int(layers[2]) <= location.block <= int(layers[3] or layers[2])
    if selector in (*STACKS, location.stack):
        return location.stack == selector
    if selector in PARTS:
        return location.part == selector
    return any(_matches(selector.split("."), name.split(".")) for name in (subject.name, subject.relative))


def _matches(pattern: list[str], words: list[str]) -> bool:
    """Match a pattern with the dotted words of a name, from end to end: `*` stays within a word, `**` is any words.

    A layer index is a word, so `layers.1.**` never meets layer 10 (mergekit issue 680, PR 689).
    """
    if not pattern:
        return not words
    if pattern[0] == "**":
        return any(_matches(pattern[1:], words[start:]) for start in range(len(words) + 1))
    return bool(words) and fnmatchcase(words[0], pattern[0]) and _matches(pattern[1:], words[1:])


def _require_match(rule: AlphaRule, chosen: list[Subject], depths: list[int], subjects: list[Subject]) -> None:
    layers = _RANGE.fullmatch(rule.selector)
    if layers:
        stack, low, high = layers[1] or "encoder", int(layers[2]), int(layers[3] or layers[2])
        there = _layers_of(subjects).get(stack, [])
        if (there or stack in STACKS) and (low > high or low not in depths or high not in depths):
            known = f"layers {there[0]} to {there[-1]}" if there else "no layers that take part"
            raise UsageError(f"rule {rule}: the {stack} has {known}")
    if not chosen:
        parts = sorted(
            {subject.location.part for subject in subjects} | {s.location.stack for s in subjects if s.location.stack}
        )
        name = subjects[0].relative if subjects else "encoder.layers.0.**"
        raise UsageError(
            f"rule {rule} matches nothing that takes part; parts of this model: {', '.join(parts)}",
            hint=f"name one of these, or write a pattern that matches whole names, such as {name}",
        )


def _layers_of(subjects: list[Subject]) -> Mapping[str, list[int]]:
    found: dict[str, set[int]] = {}
    for subject in subjects:
        if subject.location.block is not None:
            found.setdefault(subject.location.stack, set()).add(subject.location.block)
    return {stack: sorted(indexes) for stack, indexes in found.items()}
