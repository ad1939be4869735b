"""Judges how much of a model is mixed, stack by stack: what has no partner in the other model is told, or refused."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING

from speechft_merge.errors import amount, quote
from speechft_merge.layouts.heads import is_head
from speechft_merge.layouts.structure import blocks_of
from speechft_merge.plan.findings import ALLOW_PARTIAL, ALLOW_UNRELATED, Finding, Level

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from speechft_merge.checkpoints.dtypes import DType
    from speechft_merge.checkpoints.index import Checkpoint
    from speechft_merge.layouts.naming import TensorName

LEAST_RENAMED = 0.9
"""Share of the parameters without a partner that have one by shape if the models differ in their names only."""
LEAST_MISSING = 0.05
"""Share of a model's parameters that have none by name in that case."""
LEAST_COVERAGE = 0.5
"""Share of the parameters of a model without blocks that must be mixed."""

_SPARE = re.compile(
    r"(.*\.)?(masked_spec_embed|mask_embedding|(original_)?inv_freq|embed_positions\.(weights|_float_tensor)"
    r"|pos_enc\.pe)"
)
"""What is used in training only, or computed anew from the config; not every writer keeps it."""

_SHOWN = 3
"""Patterns of names that a message lists."""


@dataclass(frozen=True)
class Side:
    """One of two models, and what of it is mixed."""

    model: Checkpoint
    names: Mapping[str, TensorName]
    """What each of its tensors is."""
    mixed: Collection[str]
    """Own names of the tensors that have a partner and are mixed with it."""
    partners: Mapping[str, DType]
    """Own name -> element type of its partner."""

    @classmethod
    def of(cls, model: Checkpoint, names: Mapping[str, TensorName], pairs: Mapping[str, DType]) -> Side:
        """Make one from the element types of the partners; a tensor that is one with a paired one has its partner."""
        tensors = model.tensors
        storages = {(tensors[name].storage_key, tensors[name].shape): dtype for name, dtype in pairs.items()}
        places = ((name, (tensors[name].storage_key, tensors[name].shape)) for name in names)
        partners = {name: storages[place] for name, place in places if place in storages} | dict(pairs)
        mixed = {name for name, dtype in partners.items() if dtype.interpolated and tensors[name].dtype.interpolated}
        return cls(model, names, mixed, partners)

    @cached_property
    def units(self) -> dict[str, list[str]]:
        """Return stack, or part or module outside of the stacks -> its tensors that could be mixed unasked."""
        found: dict[str, list[str]] = {}
        for name, known in self.names.items():
            span = self.model.tensors[name]
            if (
                not known.location.stays
                and not _SPARE.fullmatch(known.canonical)
                and (span.dtype.continuous or self.partners.get(name, span.dtype).continuous)
                and span.elements
            ):
                found.setdefault(_unit(known), []).append(name)
        return found

    def blocks(self) -> dict[str, list[int]]:
        """Return stack -> the indexes of its blocks."""
        return blocks_of(known.location for known in self.names.values() if not known.location.stays)

    def share(self) -> float:
        """Return the share of its parameters, heads aside, that are mixed."""
        sizes = {name: self.model.tensors[name].elements for names in self.units.values() for name in names}
        return sum(size for name, size in sizes.items() if name in self.mixed) / max(sum(sizes.values()), 1)

    def unpaired(self) -> Iterator[str]:
        """Yield the tensors that could be mixed and have no partner."""
        return (name for names in self.units.values() for name in names if name not in self.partners)

    def unusual_heads(self) -> set[str]:
        """Return the modules that count as heads for their place alone."""
        heads = (known.canonical for known in self.names.values() if known.is_head)
        return {name.rpartition(".")[0] or name for name in heads if not is_head(name)}

    def beyond(self, other: Side, stack: str) -> set[str]:
        """Return the tensors of those blocks of a stack that another model does not have."""
        there = other.blocks().get(stack, [])
        return {
            name
            for name, known in self.names.items()
            if known.location.stack == stack and known.location.block not in (None, *there)
        }


def judge_coverage(base: Side, finetuned: Side, keep_head: bool, several: bool = False) -> list[Finding]:
    """Return what speaks against a merge, or is worth a note, about tensors that only one of two models has.

    If the other model has a stack in part, that of the output would be a chimera: refused. If it lacks it as a whole
    (the decoder of an encoder-decoder, of a fine-tune that is an encoder), this is noted.

    Args:
        base: the pre-trained model.
        finetuned: a fine-tune.
        keep_head: whether the fine-tune's class is written; else it is the base's.
        several: whether there are other fine-tunes, which may move what this one lacks.
    """
    return list(_Judge(base, finetuned, keep_head, several).findings())


@dataclass(frozen=True)
class _Judge:
    base: Side
    finetuned: Side
    keep_head: bool
    several: bool

    @property
    def owner(self) -> Side:
        return self.finetuned if self.keep_head else self.base

    @property
    def other(self) -> Side:
        return self.base if self.keep_head else self.finetuned

    @property
    def stay(self) -> str:
        """What tensors without a partner would do."""
        return "be mixed without it" if self.several else f"stay {self.owners}"

    @property
    def owners(self) -> str:
        return "the fine-tune's" if self.keep_head else "the base's"

    def findings(self) -> Iterator[Finding]:
        base, finetuned = self.base.model.reference, self.finetuned.model.reference
        if renamed := self._renamed():
            yield renamed
            return
        if self._is_foreign():
            text = f"{finetuned} has only {self.base.share():.0%} of the parameters of {base}"
            hint = "check that the base is the one that was fine-tuned"
            yield Finding(Level.REFUSAL, text, hint, ALLOW_UNRELATED)
            return
        ours = self.owner.units
        lost = {unit: [name for name in names if name not in self.owner.mixed] for unit, names in ours.items()}
        absent = {unit: [name for name in names if name not in self.owner.partners] for unit, names in ours.items()}
        whole = [unit for unit, names in absent.items() if len(names) == len(ours[unit])]
        for unit in ours:
            if unit not in whole:
                yield from self._of_stack(unit, lost[unit])
        if whole:
            text = f"{self.other.model.reference} has no {', '.join(whole)}"
            text += " and takes no part there" if self.several else f": it stays {self.owners}"
            yield Finding(Level.NOTE, text)
        if taken := self.owner.unusual_heads() & self.other.unusual_heads():
            listed = ", ".join(sorted(taken))
            text = f"taken for heads, by their place beside the encoder: {listed}; they stay {self.owners}"
            yield Finding(Level.NOTE, text)

    def _renamed(self) -> Finding | None:
        """Return a reason to refuse if most of what lacks a partner has one by its shape: the names are other ones."""
        ours, theirs = ([*side.unpaired()] for side in (self.owner, self.other))
        shapes = self.owner.model.shapes
        free, found = Counter(self.other.model.shapes[name] for name in theirs), 0
        for name in ours:
            if free[shapes[name]]:
                free[shapes[name]] -= 1
                found += math.prod(shapes[name])
        missing = sum(math.prod(shapes[name]) for name in ours)
        total = sum(math.prod(shapes[name]) for names in self.owner.units.values() for name in names)
        if found < LEAST_RENAMED * missing or missing <= LEAST_MISSING * total:
            return None
        text = (
            f"{self.owner.model.reference} has {amount(len(ours), 'tensor')} without a partner by name in "
            f"{self.other.model.reference}, which has as many of their shapes under other names: "
            f"{quote(ours[0])}, ... and {quote(theirs[0])}, ..."
        )
        hint = "write both with one version of one library (transformers: from_pretrained and save_pretrained)"
        return Finding(Level.REFUSAL, text, hint, ALLOW_PARTIAL)

    def _is_foreign(self) -> bool:
        """Return whether nothing that matters is mixed: no block, or of a model without blocks less than half."""
        located = {name: known.location for name, known in self.owner.names.items()}
        blocks = [name for name, location in located.items() if location.block is not None and not location.stays]
        return not any(name in self.owner.mixed for name in blocks) if blocks else self.owner.share() < LEAST_COVERAGE

    def _of_stack(self, unit: str, lost: Sequence[str]) -> Iterator[Finding]:
        """Yield what is found about a stack, or another unit, that both models have."""
        depth = self._depth(unit)
        if depth is not None:
            yield depth
        beyond = self.owner.beyond(self.other, unit) if depth is not None else set()
        if rest := [name for name in lost if name not in beyond]:
            types = {self.owner.model.tensors[name].dtype for name in rest}
            types |= {self.owner.partners[name] for name in rest if name in self.owner.partners}
            text = f"{self.other.model.reference} has the {unit} in part only: {_listed(rest)} would {self.stay}"
            if unmixed := sorted(dtype.torch_name for dtype in types if not dtype.interpolated):
                text = f"the {unit} is mixed in part only, {' and '.join(unmixed)} being no type for it: "
                text += f"{_listed(rest)} would {self.stay}"
            for name, why in list(self.other.model.unreadable.items())[:1]:
                text += f"; it has tensors that cannot be read, first {quote(name)}: {why}"
            yield Finding(Level.REFUSAL, text, "", ALLOW_PARTIAL)
        beyond = self.other.beyond(self.owner, unit) if depth is not None else set()
        theirs = self.other.units.get(unit, [])
        extra = [name for name in theirs if name not in self.other.partners and name not in beyond]
        if extra and not self.keep_head:
            text = (
                f"{self.finetuned.model.reference} has more in the {unit} than {self.base.model.reference}: "
                f"{_listed(extra)} would be lost"
            )
            yield Finding(Level.REFUSAL, text, "", ALLOW_PARTIAL)

    def _depth(self, stack: str) -> Finding | None:
        """Return what is found about a stack that has other blocks in the two models."""
        ours, theirs = self.base.blocks().get(stack, []), self.finetuned.blocks().get(stack, [])
        if ours == theirs or not ours or not theirs:
            return None
        text = (
            f"{self.base.model.reference} has {amount(len(ours), 'layer')} in the {stack}, "
            f"{self.finetuned.model.reference} has {len(theirs)}; they are paired by number, which need not be the "
            "same layers"
        )
        only_base = [block for block in ours if block not in theirs]
        only_finetuned = [block for block in theirs if block not in ours]
        if self.keep_head and not only_finetuned:
            return Finding(Level.WARNING, text)
        if self.keep_head:
            text += f", and layers {_ranges(only_finetuned)} would be the fine-tune's"
            return Finding(Level.REFUSAL, text, "", ALLOW_PARTIAL)
        if only_base:
            become = "be mixed without it" if self.several else "be the base's"
            text += f", and layers {_ranges(only_base)} would {become}"
        if only_finetuned:
            text += f", and layers {_ranges(only_finetuned)} would be lost"
        hint = "" if only_finetuned else f"pass --keep-head for an output of {amount(len(theirs), 'layer')}, all mixed"
        return Finding(Level.REFUSAL, text, hint, ALLOW_PARTIAL)


def _unit(known: TensorName) -> str:
    """Return the stack, part or module that is there as a whole or not: SpeechT5's classes differ in their prenets."""
    part, stack, _ = known.location
    words = known.canonical.split(".")
    own_name = stack.rpartition(".")[2]
    words = words[words.index(own_name) + 1 :] if own_name in words[:-1] else words
    if part in ("cnn", "projection"):
        return part
    own = len(words) > {"other": 2, "pos_conv": 3}.get(part, len(words))  # a module of several, with the stack's own
    if own or (part == "other" and not stack):
        return ".".join(filter(None, (stack, words[0])))
    return stack or part


def _listed(names: Sequence[str]) -> str:
    """Return how many tensors these are, their names with `*` for numbers, and one of them as it is."""
    patterns = Counter(re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in names)
    shown = ", ".join(f"{quote(pattern)} ({count})" for pattern, count in list(patterns.items())[:_SHOWN])
    more = ", ..." if len(patterns) > _SHOWN else ""
    return f"{amount(len(names), 'tensor')} such as {quote(names[0])} ({shown}{more})"


def _ranges(blocks: Sequence[int]) -> str:
    """Return numbers in ascending order as ranges: `0, 3-5`."""
    runs = [[block for _, block in run] for _, run in groupby(enumerate(blocks), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
