"""Pairs the tensors of base and fine-tunes, in forms that agree, and finds what speaks against mixing the models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from speechft_merge.errors import amount, quote
from speechft_merge.layouts.alignment import Alignment, align
from speechft_merge.plan.contents import judge_contents
from speechft_merge.plan.coverage import Side, judge_coverage
from speechft_merge.plan.findings import Finding, Level
from speechft_merge.plan.kernels import Kernels, fold, split_kernels
from speechft_merge.plan.order import judge_order
from speechft_merge.plan.packed import is_packed
from speechft_merge.plan.rows import Resized, find_resized, with_rows_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from speechft_merge.checkpoints.index import Checkpoint


@dataclass(frozen=True)
class Pairing:
    """Models whose tensors were paired; the indexes hold some tensors in the other's form."""

    base: Checkpoint
    finetuned: tuple[Checkpoint, ...]
    alignments: tuple[Alignment, ...]
    resized: tuple[tuple[Resized, ...], ...]
    """Of each fine-tune, the tensors that have another size in the base."""
    kernels: Kernels
    """Kernels that the owner has in two parts and others folded."""
    keep_head: bool

    @property
    def prefix(self) -> str:
        """Prefix of the encoder in the names of the owner: the model whose class is written."""
        first = self.alignments[0]
        return first.finetuned_prefix if self.keep_head else first.base_prefix

    def side_of_base(self, which: int) -> Side:
        """Return the base as one side of its pairing with a fine-tune."""
        names = self.alignments[which].base_names
        if self.keep_head and which:  # the output has what the first fine-tune has
            first = self.alignments[0]
            names = {name: known for name, known in names.items() if name in first.pairs or name in first.mismatched}
        theirs = self.finetuned[which].tensors
        partners = {name: theirs[other].dtype for name, other in self._pairs(which).items()}
        return Side.of(self.base, names, partners)

    def side_of_finetuned(self, which: int) -> Side:
        """Return a fine-tune as the other side of its pairing with the base."""
        partners = {other: self.base.tensors[name].dtype for name, other in self._pairs(which).items()}
        names = self.alignments[which].finetuned_names
        return Side.of(self.finetuned[which], names, partners)

    def findings(self) -> Iterator[Finding]:
        """Yield what speaks against mixing the models, the weightiest first, and what is to be noted."""
        contents = [finding for model in (self.base, *self.finetuned) for finding in judge_contents(model)]
        yield from contents
        if contents:
            return
        yield from self._unreadable()
        for which in range(len(self.finetuned)):
            yield from self._of_pair(which)

    def _of_pair(self, which: int) -> Iterator[Finding]:
        finetuned, alignment, resized = self.finetuned[which], self.alignments[which], self.resized[which]
        strange = [*_packed(self.base, finetuned), *_strangers(self.base, finetuned, alignment, resized)]
        if strange:
            yield from strange
            return
        yield from judge_order(self.base, finetuned, alignment)
        ours, theirs = self.side_of_base(which), self.side_of_finetuned(which)
        several = len(self.finetuned) > 1
        for finding in judge_coverage(ours, theirs, self.keep_head and which == 0, several):
            yield replace(finding, hint="") if which else finding  # no class but the first fine-tune's can be written
        for tensor in resized:
            yield Finding(Level.WARNING, tensor.in_words(self.keep_head, finetuned.reference if several else ""))

    def _pairs(self, which: int) -> dict[str, str]:
        """Return the tensors that both have, those of other sizes, of which a line tells, among them."""
        alignment = self.alignments[which]
        return alignment.pairs | alignment.mismatched

    def _unreadable(self) -> Iterator[Finding]:
        needed = [(self.base, "load the file with torch, make it a plain dense tensor and save it again")]
        if self.keep_head:
            needed.append((self.finetuned[0], "omit --keep-head, which needs all of them"))
        for model, hint in needed:
            for name, why in list(model.unreadable.items())[:1]:
                yield Finding(Level.REFUSAL, f"{model.reference}: tensor {quote(name)} cannot be read: {why}", hint)


def pair_models(base: Checkpoint, finetuned: Sequence[Checkpoint], keep_head: bool) -> Pairing:
    """Pair the tensors of a base with those of its fine-tunes.

    A kernel in two parts (weight norm) meets a folded one, and the rows of a tensor those of one with more or fewer.

    Args:
        base: the pre-trained model.
        finetuned: fine-tunes of it.
        keep_head: whether the first fine-tune's class is written; else it is the base's.
    """
    alignments = _align(base, finetuned)
    kernels: Kernels = {}
    wanted = {name for alignment in alignments for name in split_kernels(alignment)}
    if wanted:
        base_names = {own: name.canonical for own, name in alignments[0].base_names.items()}
        base, of_base = fold(base, base_names, wanted)
        folded = [
            fold(model, {own: name.canonical for own, name in alignment.finetuned_names.items()}, wanted)
            for model, alignment in zip(finetuned, alignments, strict=True)
        ]
        finetuned = [model for model, _ in folded]
        kernels = folded[0][1] if keep_head else of_base
        alignments = _align(base, finetuned)
    resized = tuple(
        tuple(find_resized(base, model, alignment)) for model, alignment in zip(finetuned, alignments, strict=True)
    )
    if any(tensor.mixed for tensors in resized for tensor in tensors):
        base, finetuned = _with_equal_rows(base, finetuned, alignments, resized, keep_head)
        alignments = _align(base, finetuned)
    return Pairing(base, tuple(finetuned), alignments, resized, kernels, keep_head)


def _align(base: Checkpoint, finetuned: Sequence[Checkpoint]) -> tuple[Alignment, ...]:
    return tuple(align(base.naming, model.naming) for model in finetuned)


def _with_equal_rows(
    base: Checkpoint, finetuned: Sequence[Checkpoint], alignments: Sequence[Alignment],
    resized: Sequence[Collection[Resized]], keep_head: bool,
) -> tuple[Checkpoint, list[Checkpoint]]:  # fmt: skip
    """Give every model the rows of the owner in the tensors whose rows are mixed."""
    names = {tensor.name for tensors in resized for tensor in tensors if tensor.mixed}
    theirs = [{n: (a.pairs | a.mismatched)[n] for n in names if n in a.pairs or n in a.mismatched} for a in alignments]
    if not keep_head:
        return base, [
            with_rows_of(model, base, {other: name for name, other in found.items()})
            for model, found in zip(finetuned, theirs, strict=True)
        ]
    owner, first = finetuned[0], theirs[0]
    others = [
        with_rows_of(model, owner, {other: first[name] for name, other in found.items() if name in first})
        for model, found in zip(finetuned[1:], theirs[1:], strict=True)
    ]
    return with_rows_of(base, owner, first), [owner, *others]


def _packed(base: Checkpoint, finetuned: Checkpoint) -> list[Finding]:
    """Return a reason to refuse an owner whose tensors could not be put together again, see `packed`."""
    packed = [model for model in (base, finetuned) if is_packed(model)]
    if len(packed) != 1:
        return []
    text = (
        f"{packed[0].reference} is torchaudio's WavLM, which has query, key and value in one tensor (in_proj_weight), "
        f"and the other model is not; as {packed[0].container} it can only be the fine-tune, without --keep-head"
    )
    hint = "save it with torch.save, or exchange its part: give the other model as the base"
    return [Finding(Level.REFUSAL, text, hint)]


def _strangers(
    base: Checkpoint, finetuned: Checkpoint, alignment: Alignment, resized: Collection[Resized]
) -> list[Finding]:
    """Return a reason to refuse models that have no tensor in common, or the same tensors in other sizes."""
    known = {tensor.name for tensor in resized}
    names = alignment.base_names
    others = {
        name: other
        for name, other in alignment.mismatched.items()
        if name not in known and not names[name].location.stays
    }
    if others:
        name, other = next(iter(others.items()))
        which = amount(len(others), "tensor", "has another shape", "have other shapes")
        text = (
            f"{which} in {finetuned.reference} than in {base.reference}, first "
            f"{name}: {list(base.tensors[name].shape)}, in the fine-tune {list(finetuned.tensors[other].shape)}"
        )
        return [Finding(Level.REFUSAL, text, "give a fine-tune of this base; these models differ in size or kind")]
    if not alignment.pairs and not alignment.mismatched:
        ours, theirs = (quote(next(iter(model.tensors))) for model in (base, finetuned))
        text = (
            f"{base.reference} and {finetuned.reference} have no tensor in common, by name and shape, under any "
            f"prefix; their names are such as {ours} and {theirs}"
        )
        return [Finding(Level.REFUSAL, text)]
    return []
