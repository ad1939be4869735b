"""What becomes of each tensor: a pure decision on two or more indexes and a recipe. Nothing is decided later."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from speechft_merge.checkpoints.dtypes import DType
from speechft_merge.errors import MismatchError, quote
from speechft_merge.layouts.alignment import Alignment, align
from speechft_merge.layouts.structure import Place, place_of
from speechft_merge.layouts.torchaudio import PACKED
from speechft_merge.recipe.rules import Subject, alphas_of

if TYPE_CHECKING:
    from speechft_merge.checkpoints.index import Checkpoint, TensorSpan
    from speechft_merge.recipe.recipe import Recipe

LEAST_COVERAGE = 0.5
"""Of the base's parameters, heads aside: what a fine-tune must have for the two to pass as a pair."""

_OUTPUT_DTYPES = {"float32": DType.F32, "float16": DType.F16, "bfloat16": DType.BF16}


class Action(StrEnum):
    """What becomes of a tensor."""

    INTERPOLATED = "interpolated"
    COPIED = "copied"
    """From the base."""
    TAKEN = "taken"
    """From the fine-tune, with its head."""
    LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the output, or one of an input that does not reach it."""

    name: str
    """In the output; of a tensor left out, its own."""
    action: Action
    reason: str
    place: Place
    dtype: DType
    """In the output."""
    shape: tuple[int, ...]
    base: TensorSpan | None = None
    finetuned: tuple[TensorSpan, ...] = ()
    weights: tuple[float, ...] = ()
    """Of the fine-tunes that have this tensor; they sum to 1, or to less if some fine-tune lacks it."""
    alpha: float | None = None
    which: tuple[int, ...] = ()
    """The fine-tune that each of `finetuned` belongs to, by its place in the call."""

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def single(self) -> TensorSpan | None:
        """The one span that is written as it is (but for its dtype); None when two or more are mixed."""
        if self.action is Action.TAKEN or (self.alpha == 1 and self.weights == (1.0,)):
            return self.finetuned[0]
        return self.base if self.action is Action.COPIED else None

    @property
    def inputs(self) -> tuple[TensorSpan, ...]:
        """The spans that must be read for it."""
        if self.single is not None:
            return (self.single,)
        assert self.base is not None
        return (self.base, *self.finetuned)


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole decision."""

    recipe: Recipe
    tensors: tuple[PlannedTensor, ...]
    """In the order of the output: larger element types first, so that all stand aligned, then as in the file read."""
    left_out: tuple[PlannedTensor, ...]
    alignments: tuple[Alignment, ...]
    coverages: tuple[float, ...]
    """Share of the base's parameters, heads aside, that each fine-tune has."""

    @property
    def counts(self) -> dict[str, int]:
        """Tensors by what becomes of them."""
        found = Counter(tensor.action.value for tensor in (*self.tensors, *self.left_out))
        return {action.value: found[action.value] for action in Action}

    @property
    def converts(self) -> bool:
        """Whether most of what is mixed has to be converted before it can be calculated with."""
        mixed = [tensor for tensor in self.tensors if tensor.single is None]
        plain = sum(t.nbytes for t in mixed if all(span.dtype in (DType.F32, DType.F64) for span in t.inputs))
        return 2 * plain < sum(tensor.nbytes for tensor in mixed)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the output."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def read_bytes(self) -> int:
        """Bytes that must be read."""
        return sum(span.nbytes for tensor in self.tensors for span in tensor.inputs)


def make_plan(base: Checkpoint, finetuned: list[Checkpoint], recipe: Recipe) -> Plan:
    """Decide on every tensor of the base and of the fine-tunes.

    Raises:
        UsageError: a rule of the recipe matches nothing, or the weights do not fit.
        MismatchError: shapes differ, no names are common, or nothing would be interpolated.
    """
    weights = recipe.normalised_weights(len(finetuned))
    shapes = {name: span.shape for name, span in base.tensors.items()}
    alignments = tuple(align(shapes, {n: s.shape for n, s in other.tensors.items()}) for other in finetuned)
    for checkpoint, alignment in zip(finetuned, alignments, strict=True):
        _require_match(base, checkpoint, alignment)
    decision = _Decision(base, finetuned, weights, alignments, recipe)
    planned = decision.of_finetuned_class() if recipe.keep_head else decision.of_base_class()
    owner = finetuned[0] if recipe.keep_head else base
    tensors = _untie(owner, [tensor for tensor in planned if tensor.action is not Action.LEFT_OUT])
    if not any(tensor.action is Action.INTERPOLATED or tensor.alpha == 0 for tensor in tensors):
        reasons = Counter(tensor.reason for tensor in tensors).most_common(3)
        raise MismatchError(
            "nothing would be interpolated: " + "; ".join(f"{count} tensors {why}" for why, count in reasons)
        )
    return Plan(
        recipe=recipe,
        tensors=tuple(sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)),
        left_out=tuple(tensor for tensor in planned if tensor.action is Action.LEFT_OUT),
        alignments=alignments,
        coverages=tuple(_coverage(base, alignment) for alignment in alignments),
    )


def _require_match(base: Checkpoint, finetuned: Checkpoint, alignment: Alignment) -> None:
    packed = [checkpoint for checkpoint in (base, finetuned) if any(map(PACKED.fullmatch, checkpoint.tensors))]
    if len(packed) == 1:
        raise MismatchError(
            f"{packed[0].reference} is torchaudio's WavLM, which has query, key and value in one tensor "
            "(in_proj_weight); it can be merged with another of torchaudio's only"
        )
    if alignment.mismatched:
        name, other = next(iter(alignment.mismatched.items()))
        raise MismatchError(
            f"{len(alignment.mismatched)} tensors have other shapes in {finetuned.reference} than in {base.reference}, "
            f"first {quote(name)}",
            found=f"{list(base.tensors[name].shape)}, in the fine-tune {list(finetuned.tensors[other].shape)}",
            hint="these are models of different sizes or kinds; a fine-tune of this base is needed",
        )
    if not alignment.pairs:
        raise MismatchError(
            f"{base.reference} and {finetuned.reference} have no tensor in common, by name and shape, under any prefix",
            found=f"names such as {quote(next(iter(base.tensors)))} in the base, "
            f"{quote(next(iter(finetuned.tensors)))} in the fine-tune",
        )
    if base.unreadable:
        lost, why = next(iter(base.unreadable.items()))
        raise MismatchError(
            f"{base.reference}: tensor {quote(lost)} cannot be read: {why}",
            hint="load the file with torch, make it a plain dense tensor and save it again",
        )


def _coverage(base: Checkpoint, alignment: Alignment) -> float:
    total = sum(base.tensors[name].elements for name in alignment.relative)
    return sum(base.tensors[name].elements for name in alignment.pairs) / max(total, 1)


@dataclass(slots=True)
class _Decision:
    base: Checkpoint
    finetuned: list[Checkpoint]
    weights: tuple[float, ...]
    alignments: tuple[Alignment, ...]
    recipe: Recipe

    def of_base_class(self) -> list[PlannedTensor]:
        """Every tensor of the base, under its own name; what only a fine-tune has is left out."""
        alphas = self._alphas()
        return [self._merged(name, name, alphas) for name in self.base.tensors] + self._unused(0)

    def _unused(self, first: int) -> list[PlannedTensor]:
        """What the fine-tunes from the given one on have and the output has not."""
        planned = []
        for checkpoint, alignment in list(zip(self.finetuned, self.alignments, strict=True))[first:]:
            used = {*alignment.pairs.values(), *alignment.heads.values()}
            for name, span in checkpoint.tensors.items():
                if name not in used:
                    relative = alignment.finetuned_relative.get(name)
                    reason = "not in the base" if relative else "the fine-tune's head"
                    planned.append(_left_out(name, span, reason, relative))
            planned += [_unread(name, why) for name, why in checkpoint.unreadable.items()]
        return planned

    def of_finetuned_class(self) -> list[PlannedTensor]:
        """Every tensor of the first fine-tune, under its name there; what only the base has is left out."""
        alphas = self._alphas()
        first, alignment = self.finetuned[0], self.alignments[0]
        if first.unreadable:
            name, why = next(iter(first.unreadable.items()))
            raise MismatchError(
                f"{first.reference}: tensor {quote(name)} cannot be read: {why}", hint="--keep-head needs all of them"
            )
        base_names = {other: name for name, other in (alignment.pairs | alignment.heads).items()}
        planned = []
        for name, span in first.tensors.items():
            base_name = base_names.get(name)
            relative = alignment.finetuned_relative.get(name)
            if base_name is not None and (relative or base_name in alphas):
                planned.append(self._merged(base_name, name, alphas))
            else:
                reason = "not in the base" if relative else "the fine-tune's head"
                planned.append(
                    PlannedTensor(
                        name, Action.TAKEN, reason, _place(relative), self._dtype(span), span.shape, None, (span,)
                    )
                )
        for name, span in self.base.tensors.items():
            if name not in alignment.pairs and name not in alignment.heads:
                relative = alignment.relative.get(name)
                planned.append(
                    _left_out(name, span, "not in the fine-tune" if relative else "the base's head", relative)
                )
        return planned + self._unused(1)

    def _alphas(self) -> dict[str, float]:
        """Alpha of each base tensor that can be interpolated; heads only where a rule names them."""
        subjects = []
        for name, span in self.base.tensors.items():
            partners = self._partners(name)
            if partners and span.dtype.interpolated and any(other.dtype.interpolated for other, _ in partners):
                relative = self._relative(name)
                subjects.append(Subject(name, relative or name, _place(relative)))
        return alphas_of(subjects, self.recipe.alpha, self.recipe.layer_alpha)

    def _relative(self, name: str) -> str | None:
        return next((a.relative[name] for a in self.alignments if name in a.relative), None)

    def _partners(self, name: str) -> list[tuple[TensorSpan, int]]:
        """The tensor in each fine-tune that has it, and which that is."""
        found = []
        for which, (checkpoint, alignment) in enumerate(zip(self.finetuned, self.alignments, strict=True)):
            other = alignment.pairs.get(name) or alignment.heads.get(name)
            if other is not None:
                found.append((checkpoint.tensors[other], which))
        return found

    def _merged(self, name: str, output_name: str, alphas: dict[str, float]) -> PlannedTensor:
        """A tensor of the base: interpolated, or copied for a reason."""
        span, partners = self.base.tensors[name], self._partners(name)
        relative = self._relative(name)
        alpha = alphas.get(name)
        copied = PlannedTensor(
            output_name, Action.COPIED, "", _place(relative), self._dtype(span), span.shape, span, alpha=alpha
        )
        if alpha is None:
            return replace(copied, reason=self._why_copied(span, partners, relative))
        if alpha == 0:
            return replace(copied, reason="alpha is 0")
        usable = [(other, which) for other, which in partners if other.dtype.interpolated]
        missing = len(self.finetuned) - len(usable)
        return replace(
            copied,
            action=Action.INTERPOLATED,
            reason=f"missing in {missing} of {len(self.finetuned)} fine-tunes" if missing else "",
            finetuned=tuple(other for other, _ in usable),
            which=tuple(which for _, which in usable),
            weights=tuple(self.weights[which] for _, which in usable),
        )

    def _why_copied(self, span: TensorSpan, partners: list[tuple[TensorSpan, int]], relative: str | None) -> str:
        if relative is None:
            return "the base's head"
        if not partners:
            return "not in the fine-tune"
        if not span.dtype.interpolated:
            return f"{span.dtype.torch_name} is not interpolated"
        return f"{partners[0][0].dtype.torch_name} in the fine-tune is not interpolated"

    def _dtype(self, span: TensorSpan) -> DType:
        return _OUTPUT_DTYPES.get(self.recipe.dtype, span.dtype) if span.dtype.interpolated else span.dtype


def _place(relative: str | None) -> Place:
    return place_of(relative) if relative else Place("head", "")


def _left_out(name: str, span: TensorSpan, reason: str, relative: str | None) -> PlannedTensor:
    return PlannedTensor(name, Action.LEFT_OUT, reason, _place(relative), span.dtype, span.shape)


def _unread(name: str, why: str) -> PlannedTensor:
    return PlannedTensor(name, Action.LEFT_OUT, why, Place("other", ""), DType.U8, (0,))


def _untie(owner: Checkpoint, tensors: list[PlannedTensor]) -> list[PlannedTensor]:
    """Tensors that the file tied (one storage, several names) stay equal: all become what the encoder's own becomes.

    Args:
        owner: the model whose names the output has.
        tensors: what was decided on each by itself.
    """
    leads: dict[object, PlannedTensor] = {}
    for tensor in tensors:
        span = owner.tensors[tensor.name]
        place = span.place, span.dtype, span.shape
        if place not in leads or leads[place].place.part == "head":
            leads[place] = tensor
    tied = []
    for tensor in tensors:
        span = owner.tensors[tensor.name]
        lead = leads[span.place, span.dtype, span.shape] if tensor.nbytes else tensor
        if lead.inputs == tensor.inputs and lead.alpha == tensor.alpha:
            tied.append(tensor)
        else:
            tied.append(replace(lead, name=tensor.name, place=tensor.place, reason=f"tied to {lead.name}"))
    return tied
