"""Applies rules that give some tensors their own alpha: `0-5=0.1`, `cnn=0`, `0-11=0.1:0.5`, `**.fc1.*=0.3`."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from speechft_merge.errors import QUOTED, UsageError, quote
from speechft_merge.layouts.structure import PARTS, STACKS, blocks_of, main_stack
from speechft_merge.recipe.alpha import parse_alpha

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speechft_merge.layouts.naming import TensorName

LONGEST = 250
"""Most characters of a selector; the names of tensors have a hundred."""
MOST = 5000
"""Most rules: each is held against each tensor."""

_RANGE = re.compile(r"(?:([A-Za-z_][\w.]*)\.)?(\d{1,6})(?:-(\d{1,6}))?")


@dataclass(frozen=True, slots=True)
class AlphaRule:
    """One rule: alpha goes from `start` to `stop` over the layers that it selects."""

    selector: str
    start: float
    stop: float

    def __str__(self) -> str:
        ramp = "" if self.start == self.stop else f":{self.stop!r}"
        return f"{self.selector}={self.start!r}{ramp}"


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
    if len(selector) > LONGEST:
        raise UsageError(f"the rule {quote(text)} has {len(selector)} characters, at most {LONGEST} are allowed")
    start = parse_alpha(first)
    stop = parse_alpha(last) if ramp else start
    if ramp and selector not in ("layers", *STACKS) and not _RANGE.fullmatch(selector):
        raise UsageError(
            f"{quote(text)}: a ramp goes over blocks, and {quote(selector)} has none",
            hint="write a ramp as 0-11=0.1:0.5 or layers=0.1:0.5",
        )
    return AlphaRule(selector, start, stop)


def alphas_of(names: Mapping[str, TensorName], default: float, rules: tuple[AlphaRule, ...]) -> dict[str, float]:
    """Return the alpha of every tensor, later rules winning.

    Heads, and a language model beside the encoder, have none unless a rule names them.

    Raises:
        UsageError: a rule matches nothing, or names layers that the model lacks.
    """
    alphas = {own: default for own, name in names.items() if not name.location.stays}
    stacks = blocks_of(name.location for name in names.values())
    main = main_stack(stacks)
    for rule in rules:
        chosen = {own: name.location.block for own, name in names.items() if _selects(rule.selector, own, name, main)}
        _require_match(rule, bool(chosen), names, stacks, main)
        blocks = [block for block in chosen.values() if block is not None]
        low, high = (min(blocks), max(blocks)) if blocks else (0, 0)
        alphas |= {own: _ramp(rule, block, low, high) for own, block in chosen.items()}
    return alphas


def _ramp(rule: AlphaRule, block: int | None, low: int, high: int) -> float:
    """Interpolate linearly over depth; what is outside the blocks takes the start of the ramp."""
    if block is None or low == high or block == low:
        return rule.start
    if block == high:
        return rule.stop
    return rule.start + (rule.stop - rule.start) * (block - low) / (high - low)


def _selects(selector: str, own: str, name: TensorName, main: str) -> bool:
    """Return whether a selector means a tensor; `main` is the stack whose blocks it may number without its name."""
    location = name.location
    blocks = _RANGE.fullmatch(selector)
    if blocks and location.block is not None and location.stack == (blocks[1] or main):
        return int(blocks[2]) <= location.block <= int(blocks[3] or blocks[2])
    if selector in (*STACKS, location.stack):
        return location.stack == selector
    if selector in PARTS:
        return location.part == selector and (location.is_head or not location.stays)
    pattern = selector.split(".")
    return any(_matches(pattern, spelled.split(".")) for spelled in (own, _relative(own, name)))


def _relative(own: str, name: TensorName) -> str:
    """Return the name within the encoder; of a head, its own."""
    return own if name.is_head else name.canonical


def _matches(pattern: list[str], words: list[str]) -> bool:
    """Match a pattern with the dotted words of a name, from end to end: `*` stays within a word, `**` is any words.

    A layer index is a word, so `layers.1.**` never meets layer 10 (mergekit issue 680, PR 689). Only the last `**` is
    ever tried again, at the next word: what an earlier one could take, it can take as well.
    """
    at = begin = 0
    last = None
    while begin < len(words):
        if at < len(pattern) and pattern[at] == "**":
            last, resume, at = at, begin, at + 1
        elif at < len(pattern) and fnmatchcase(words[begin], pattern[at]):
            at, begin = at + 1, begin + 1
        elif last is not None:
            resume += 1
            at, begin = last + 1, resume
        else:
            return False
    return all(word == "**" for word in pattern[at:])


def _require_match(
    rule: AlphaRule, matches: bool, names: Mapping[str, TensorName], stacks: Mapping[str, list[int]], main: str
) -> None:
    blocks = _RANGE.fullmatch(rule.selector)
    if blocks:
        stack, low, high = blocks[1] or main, int(blocks[2]), int(blocks[3] or blocks[2])
        there = stacks.get(stack, [])
        if (there or stack in STACKS) and not (low <= high and low in there and high in there):
            known = f"blocks {there[0]} to {there[-1]}" if there else "no blocks that take part"
            raise UsageError(f"rule {rule}: the {stack} has {known}")
    if not matches:
        parts = {word for name in names.values() for word in (name.location.part, name.location.stack) if word}
        example = next(itertools.starmap(_relative, names.items()), "encoder.layers.0.**")
        raise UsageError(
            f"rule {rule} matches nothing that takes part; parts of this model: "
            + ", ".join(part[:QUOTED] for part in sorted(parts)[:16]),
            hint=f"name one of these, or write a pattern that matches whole names, such as {example[:QUOTED]}",
        )
