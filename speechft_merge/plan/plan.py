"""Decides what becomes of each tensor, from the indexes of the models and a recipe; nothing is decided later."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from speechft_merge.checkpoints.dtypes import DType
from speechft_merge.errors import amount
from speechft_merge.layouts.structure import Location
from speechft_merge.plan.evidence import is_equal
from speechft_merge.plan.findings import Finding, Level
from speechft_merge.plan.kernels import Kernels, unfold
from speechft_merge.plan.operations import Copy, Interpolate, Segment, Term
from speechft_merge.plan.pairing import pair_models
from speechft_merge.plan.ties import find_ties
from speechft_merge.recipe.rules import alphas_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from speechft_merge.checkpoints.index import Checkpoint, TensorSpan
    from speechft_merge.layouts.alignment import Alignment
    from speechft_merge.layouts.naming import TensorName
    from speechft_merge.plan.operations import Operation
    from speechft_merge.recipe.recipe import Recipe

_OUTPUT_DTYPES = {"float32": DType.F32, "float16": DType.F16, "bfloat16": DType.BF16}


class Action(StrEnum):
    """What becomes of a tensor."""

    INTERPOLATED = "interpolated"
    COPIED = "copied"
    """The base's tensor."""
    TAKEN = "taken"
    """The fine-tune's tensor, of its head."""
    LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the output, or one of an input that does not reach it."""

    name: str
    """Name in the output; for a tensor that is left out, its own."""
    action: Action
    reason: str
    location: Location
    dtype: DType
    """Element type in the output."""
    shape: tuple[int, ...]
    operation: Operation | None = None
    """What makes it; None for what is left out."""
    alpha: float | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def inputs(self) -> tuple[TensorSpan, ...]:
        """The spans that must be read for it."""
        return self.at(0).operation.inputs if self.operation is not None else ()

    def at(self, offset: int) -> Segment:
        """Return the tensor as a segment of a file: a copy of its fine-tune's where a single one has alpha 1."""
        operation = self.operation
        assert operation is not None
        match operation:
            case Interpolate(_, (Term(span, 1.0),), 1.0):  # the base need not be read
                operation = Copy(span)
        return Segment(offset, operation, self.dtype, self.name)


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """What becomes of every tensor of a merge; `Merge.plan` has it.

    Args:
        recipe: what is mixed.
        tensors: in the order of the output: larger element types first, so that all are aligned, then as in the file.
        left_out: tensors of the inputs that do not reach the output.
        alignments: what is called what in base and fine-tune.
        coverages: share of the base's parameters, heads aside, that are mixed with each fine-tune's.
        findings: what speaks against the merge, the weightiest first, and what is to be noted.
    """

    recipe: Recipe
    tensors: tuple[PlannedTensor, ...]
    left_out: tuple[PlannedTensor, ...]
    alignments: tuple[Alignment, ...]
    coverages: tuple[float, ...]
    findings: tuple[Finding, ...]

    def __repr__(self) -> str:
        return f"<Plan of {len(self.tensors)} tensors: {self.counts['interpolated']} interpolated>"

    @property
    def counts(self) -> dict[str, int]:
        """Number of tensors by what becomes of them."""
        found = Counter(tensor.action.value for tensor in (*self.tensors, *self.left_out))
        return {action.value: found[action.value] for action in Action}

    @property
    def needs_float64(self) -> bool:
        """Whether some arithmetic is in float64."""
        return any(span.dtype is DType.F64 for tensor in self.tensors for span in tensor.inputs)

    @property
    def converts(self) -> bool:
        """Whether most of what is interpolated must be converted for the arithmetic."""
        mixed = [tensor for tensor in self.tensors if len(tensor.inputs) > 1]
        plain = sum(t.nbytes for t in mixed if all(span.dtype in (DType.F32, DType.F64) for span in t.inputs))
        return 2 * plain < sum(tensor.nbytes for tensor in mixed)


def make_plan(base: Checkpoint, finetuned: Sequence[Checkpoint], recipe: Recipe) -> Plan:
    """Decide on every tensor of the base and of the fine-tunes, and find what speaks against mixing them.

    Nothing is refused here: see `findings.require_sound`. A little of the weights is read where names and shapes leave
    a choice.

    Args:
        base: the pre-trained model.
        finetuned: fine-tunes of it, with one encoder each, see `encoders.choose_encoders`.
        recipe: what is mixed.

    Raises:
        UsageError: a rule of the recipe matches nothing, or the weights do not fit.
    """
    weights = recipe.coefficients(len(finetuned))
    pairing = pair_models(base, finetuned, recipe.keep_head)
    decision = _Decision(pairing.base, pairing.finetuned, weights, pairing.alignments, recipe)
    planned = decision.of_finetuned_class() if recipe.keep_head else decision.of_base_class()
    owner = finetuned[0] if recipe.keep_head else base
    whole = [tensor for tensor in planned if tensor.action is not Action.LEFT_OUT]
    tensors = [part for tensor in whole for part in _in_parts(tensor, pairing.kernels, owner)]
    tensors, torn = _untie(owner, tensors, find_ties(owner, owner.naming.under(pairing.prefix)))
    stays = _unnamed_language_model(tensors, recipe.keep_head)
    tensors.sort(key=lambda tensor: -tensor.dtype.itemsize)
    return Plan(
        recipe=recipe,
        tensors=tuple(tensors),
        left_out=tuple(tensor for tensor in planned if tensor.action is Action.LEFT_OUT),
        alignments=pairing.alignments,
        coverages=tuple(pairing.side_of_base(which).share() for which in range(len(finetuned))),
        findings=tuple(_with_nothing_mixed([*pairing.findings(), *torn, *stays], tensors)),
    )


def _with_nothing_mixed(findings: list[Finding], tensors: Sequence[PlannedTensor]) -> list[Finding]:
    """Put it in front if nothing would be interpolated, unless it is known why."""
    if any(tensor.action is Action.INTERPOLATED or tensor.alpha == 0 for tensor in tensors):
        return findings
    if any(finding.level is Level.REFUSAL and not finding.allowed_by for finding in findings):
        return findings
    reasons = Counter(tensor.reason for tensor in tensors).most_common(3)
    told = "; ".join(f"{amount(count, 'tensor')} {why}" for why, count in reasons)
    return [Finding(Level.REFUSAL, f"nothing would be interpolated: {told}"), *findings]


@dataclass(slots=True)
class _Decision:
    base: Checkpoint
    finetuned: Sequence[Checkpoint]
    weights: tuple[float, ...]
    alignments: tuple[Alignment, ...]
    recipe: Recipe

    def of_base_class(self) -> list[PlannedTensor]:
        """Plan every tensor of the base, under its own name; what only a fine-tune has is left out."""
        alphas = self._alphas()
        return [self._merged(name, name, alphas) for name in self.base.tensors] + self._unused(0)

    def _unused(self, first: int) -> list[PlannedTensor]:
        """Return what the fine-tunes from number `first` on have and the output lacks."""
        planned = []
        for checkpoint, alignment in list(zip(self.finetuned, self.alignments, strict=True))[first:]:
            used = {*alignment.pairs.values(), *alignment.heads.values()}
            for name, span in checkpoint.tensors.items():
                if name not in used:
                    known = alignment.finetuned_names[name]
                    reason = _what_stays(known.location, "the fine-tune's") or "not in the base"
                    planned.append(_left_out(name, span, reason, known))
            planned += [_unread(name, why) for name, why in checkpoint.unreadable.items()]
        return planned

    def of_finetuned_class(self) -> list[PlannedTensor]:
        """Plan every tensor of the first fine-tune, under its name there; what only the base has is left out."""
        alphas = self._alphas()
        first, alignment = self.finetuned[0], self.alignments[0]
        base_names = {other: name for name, other in (alignment.pairs | alignment.heads).items()}
        resized = {*alignment.mismatched.values()}
        planned = []
        for name, span in first.tensors.items():
            base_name = base_names.get(name)
            known = alignment.finetuned_names[name]
            if base_name is not None and (not known.location.stays or base_name in alphas):
                planned.append(self._merged(base_name, name, alphas))
            else:
                reason = _what_stays(known.location, "the fine-tune's") or "not in the base"
                reason = "of another size in the base" if name in resized else reason
                dtype = self._dtype(span)
                planned.append(PlannedTensor(name, Action.TAKEN, reason, known.location, dtype, span.shape, Copy(span)))
        for name, span in self.base.tensors.items():
            if name not in alignment.pairs and name not in alignment.heads:
                known = alignment.base_names[name]
                reason = _what_stays(known.location, "the base's") or "not in the fine-tune"
                planned.append(_left_out(name, span, reason, known))
        return planned + self._unused(1)

    def _alphas(self) -> dict[str, float]:
        """Return the alpha of each base tensor that can be interpolated; of heads only where a rule names them."""
        names = {}
        for name, span in self.base.tensors.items():
            partners = self._partners(name)
            if partners and span.dtype.interpolated and any(other.dtype.interpolated for other, _ in partners):
                names[name] = self._known(name)
        return alphas_of(names, self.recipe.alpha, self.recipe.rules)

    def _known(self, name: str) -> TensorName:
        """Return what a tensor of the base is: not a head, if any fine-tune has it in the encoder."""
        known = [alignment.base_names[name] for alignment in self.alignments]
        return next((one for one in known if not one.is_head), known[0])

    def _partners(self, name: str) -> list[tuple[TensorSpan, int]]:
        """Return the tensor of each fine-tune that has it, and which fine-tune that is."""
        found = []
        for model, (checkpoint, alignment) in enumerate(zip(self.finetuned, self.alignments, strict=True)):
            other = alignment.pairs.get(name) or alignment.heads.get(name)
            if other is not None:
                found.append((checkpoint.tensors[other], model))
        return found

    def _merged(self, name: str, output_name: str, alphas: dict[str, float]) -> PlannedTensor:
        """Decide on a tensor of the base: interpolated, or copied for a reason."""
        span, partners = self.base.tensors[name], self._partners(name)
        known, alpha, dtype = self._known(name), alphas.get(name), self._dtype(span)
        copied = PlannedTensor(output_name, Action.COPIED, "", known.location, dtype, span.shape, Copy(span), alpha)
        if alpha is None:
            return replace(copied, reason=self._why_copied(name, partners))
        if alpha == 0:
            return replace(copied, reason="alpha is 0")
        terms = tuple(Term(other, self.weights[model], model) for other, model in partners if other.dtype.interpolated)
        if all(term.span == span for term in terms):
            return replace(copied, reason="not changed by the adapter")
        missing = len(self.finetuned) - len(terms)
        reason = f"missing in {missing} of {len(self.finetuned)} fine-tunes" if missing else ""
        if len(self.finetuned) == 1:  # its coefficient is an alpha, and has the same bytes
            terms, alpha = (terms[0]._replace(weight=1.0),), alpha * terms[0].weight
        mixed = Interpolate(span, terms, alpha, len(self.finetuned) if self.recipe.method == "model-stock" else 0)
        return replace(copied, action=Action.INTERPOLATED, reason=reason, operation=mixed, alpha=alpha)

    def _why_copied(self, name: str, partners: list[tuple[TensorSpan, int]]) -> str:
        if stays := _what_stays(self._known(name).location, "the base's"):
            return stays
        if not partners and any(name in alignment.mismatched for alignment in self.alignments):
            return "of another size in the fine-tune"
        if not partners:
            return "not in the fine-tune"
        if not (span := self.base.tensors[name]).dtype.interpolated:
            return f"{span.dtype.torch_name} is not interpolated"
        return f"{partners[0][0].dtype.torch_name} in the fine-tune is not interpolated"

    def _dtype(self, span: TensorSpan) -> DType:
        return _OUTPUT_DTYPES.get(self.recipe.dtype, span.dtype) if span.dtype.interpolated else span.dtype


def _what_stays(location: Location, whose: str) -> str:
    """Return what a tensor that only a rule would mix belongs to; empty for any other."""
    return f"{whose} {'head' if location.is_head else 'language model'}" if location.stays else ""


def _unnamed_language_model(tensors: Sequence[PlannedTensor], keep_head: bool) -> list[Finding]:
    """Return a note that a language model, or what of it no rule names, is copied."""
    owned = [tensor for tensor in tensors if tensor.location.stays and not tensor.location.is_head]
    copied = [tensor for tensor in owned if tensor.alpha is None]
    if not copied:
        return []
    stack, owner = copied[0].location.stack, "the fine-tune's" if keep_head else "the base's"
    some = f"{len(copied)} of the {len(owned)} tensors of " if len(copied) < len(owned) else ""
    text = f"{some}the language model beside the encoder ({copied[0].name}, ...) stay{'' if some else 's'} {owner}"
    return [Finding(Level.NOTE, f"{text}; --layer-alpha {stack}=ALPHA mixes it" if not some else text)]


def _left_out(name: str, span: TensorSpan, reason: str, known: TensorName) -> PlannedTensor:
    return PlannedTensor(name, Action.LEFT_OUT, reason, known.location, span.dtype, span.shape)


def _unread(name: str, why: str) -> PlannedTensor:
    return PlannedTensor(name, Action.LEFT_OUT, why, Location("other", ""), DType.U8, (0,))


def _in_parts(tensor: PlannedTensor, kernels: Kernels, owner: Checkpoint) -> Sequence[PlannedTensor]:
    """Return a kernel as the two parts that the owner has it in; any other tensor as it is."""
    parts = kernels.get(tensor.name)
    if parts is None or tensor.operation is None:
        return (tensor,)
    g, v = owner.tensors[parts.g], owner.tensors[parts.v]
    operations = unfold(tensor.operation, g, v, parts.g)
    return (
        replace(tensor, name=parts.g, shape=g.shape, operation=operations[0]),
        replace(tensor, name=parts.v, shape=v.shape, operation=operations[1]),
    )


def _untie(
    owner: Checkpoint, tensors: list[PlannedTensor], ties: Mapping[str, str]
) -> tuple[list[PlannedTensor], list[Finding]]:
    """Keep tensors equal that are one: all become what the encoder's own becomes, and where that loses some, tell it.

    Args:
        owner: the model whose names the output has.
        tensors: what was decided on each by itself.
        ties: name -> the tensor that it is one with, in another storage.
    """
    spans = [owner.tensors[ties.get(tensor.name, tensor.name)] for tensor in tensors]
    storages = [(span.storage_key, span.dtype, span.shape) for span in spans]
    leads: dict[object, PlannedTensor] = {}
    for storage, tensor in zip(storages, tensors, strict=True):
        if storage not in leads or _leads(tensor) > _leads(leads[storage]):
            leads[storage] = tensor
    tied, torn = [], []
    for storage, tensor in zip(storages, tensors, strict=True):
        lead = leads[storage] if tensor.nbytes else tensor
        if (lead.at(0).operation, lead.alpha) == (tensor.at(0).operation, tensor.alpha):
            tied.append(tensor)
        else:
            if _differ(lead.operation, tensor.operation):
                torn.append(f"{tensor.name} (one with {lead.name})")
            tied.append(replace(lead, name=tensor.name, location=tensor.location, reason=f"tied to {lead.name}"))
    if not torn:
        return tied, []
    text = (
        f"{amount(len(torn), 'tensor', 'is', 'are')} one with another in {owner.reference}, and not in the other "
        "model, first "
    )
    return tied, [Finding(Level.WARNING, f"{text}{torn[0]}: what these have there takes no part")]


def _leads(tensor: PlannedTensor) -> tuple[bool, bool]:
    """Return what makes a tensor the one that those tied to it follow: it is the encoder's, and it is mixed."""
    return not tensor.location.is_head, tensor.action is Action.INTERPOLATED


def _differ(one: Operation | None, other: Operation | None) -> bool:
    """Return whether two mixes have other numbers mixed in; reads them."""
    if not isinstance(one, Interpolate) or not isinstance(other, Interpolate):
        return False
    pairs = zip(one.terms, other.terms, strict=False)
    return len(one.terms) != len(other.terms) or not all(is_equal(a.span, b.span) for a, b in pairs)
