"""Makes whole models of adapters and of checkpoints with LoRA in them, so that the rest of a merge knows no adapters.

An adapter alone stands for the base with its changes in it: what it does not change is the base's own tensor, and is
read once. A checkpoint that has LoRA around its weights becomes the model that it computes with.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from speechft_merge.adapters.settings import CONFIG, MERGE, Settings, read_settings
from speechft_merge.checkpoints.index import Adapter
from speechft_merge.errors import CheckpointError, MismatchError, UsageError, quote
from speechft_merge.layouts.alignment import align
from speechft_merge.layouts.heads import is_head
from speechft_merge.layouts.lora import find_places, is_own_adapter, placed, read_lora

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from speechft_merge.adapters.low_rank import LowRank
    from speechft_merge.checkpoints.index import Checkpoint, TensorSpan
    from speechft_merge.layouts.lora import Adapted, Change

SAMPLED_WEIGHTS = 8
"""Weights that tell whether the LoRA beside them is already merged into them."""
SAMPLED_ELEMENTS = 4096

_SHOWN = 6
"""Names of layers that are told."""


class Wrapped(NamedTuple):
    """A checkpoint with an adapter in it, or an adapter alone."""

    model: Checkpoint
    names: Adapted
    """Its names, without the words of other wrappers."""
    own: Mapping[str, str]
    """These names -> those in the file."""

    @property
    def is_whole(self) -> bool:
        """Whether it has weights that it changes; else it is an adapter alone."""
        there = {*self.names.plain.values()}
        return any(change.weight in there for change in self.names.changes)

    @property
    def layers(self) -> str:
        """The kinds of layers that it changes."""
        kinds = list(dict.fromkeys(change.module.rpartition(".")[2] for change in self.names.changes))
        return ", ".join(kinds[:_SHOWN]) + (", ..." if len(kinds) > _SHOWN else "")

    @property
    def ranks(self) -> str:
        """The ranks of its changes."""
        return ", ".join(map(str, sorted({self.rank(change) for change in self.names.changes})))

    def span(self, name: str) -> TensorSpan:
        """Return one of its tensors."""
        return self.model.tensors[self.own[name]]

    def rank(self, change: Change, weight: TensorSpan | None = None) -> int:
        """Return the rank of a change; loralib's of a convolution has each of its kernel's columns apart."""
        right = self.span(change.right)
        kernel = weight.shape[-1] if weight is not None and len(weight.shape) > 2 == len(right.shape) else 1
        return (right.shape or (0,))[0] // kernel

    def added_to(self, weight: TensorSpan, change: Change, settings: Settings) -> LowRank:
        """Return a weight with its change.

        Raises:
            MismatchError: they do not fit, or the settings are others'.
        """
        from speechft_merge.adapters.low_rank import LowRank  # imports numpy, which an inspection does without

        scale = settings.scale(change.module, self.rank(change, weight) or 1)
        left, right = self.span(change.left), self.span(change.right)
        name = f"{self.model.reference}: {change.weight}"
        return LowRank(name, weight, left, right, scale, change.embedding or settings.transposed)

    def standing_for(self, tensors: Mapping[str, TensorSpan], added: Mapping[str, LowRank]) -> Checkpoint:
        """Return the model that it stands for, with the changed weights by their names; its file is none of that."""
        scales = {name: one.scale for name, one in added.items()}
        adapter, container = Adapter(self.model.tensors, scales), f"adapter in {self.model.container}"
        return replace(self.model, container=container, tensors=tensors, adapter=adapter, origin=None, state_path="")


def find_adapter(model: Checkpoint) -> Wrapped | None:
    """Return a checkpoint as one with an adapter in it, or as an adapter alone; None if it is neither."""
    own = {plain: name for name, plain in model.naming.unwrapped.items()}
    names = read_lora(own)
    if names.changes or _is_of_its_class(names) or model.file.startswith("adapter_model."):
        return Wrapped(model, names, own)
    return None


def _is_of_its_class(names: Adapted) -> bool:
    """Return whether these are an adapter's tensors, its class's own, and perhaps a head's: MMS's of one language."""
    adapters = [is_own_adapter(name) for name in names.plain]
    return any(adapters) and all(told or is_head(name) for told, name in zip(adapters, names.plain, strict=True))


def describe_adapter(model: Checkpoint) -> tuple[str, bool] | None:
    """Describe the adapter in a checkpoint, and return whether it can be folded; None if none is known."""
    wrapped = find_adapter(model)
    if wrapped is None or not wrapped.names.changes:
        return ("of its class, for one language", True) if wrapped and _is_of_its_class(wrapped.names) else None
    try:
        settings = read_settings(model)
    except CheckpointError as error:
        return error.message, False
    known = "its alpha is not known: pass --lora-alpha" if settings is None else f"alpha {settings.alpha:g}"
    told = f"LoRA of rank {wrapped.ranks} on {len(wrapped.names.changes)} weights ({wrapped.layers}), {known}"
    return told, settings is not None


def fold_adapters(
    base: Checkpoint, finetuned: Sequence[Checkpoint], lora_alpha: float | None = None
) -> tuple[list[Checkpoint], list[str]]:
    """Return fine-tunes that are whole models, and what is to be noted about those that were not.

    LoRA in a whole checkpoint whose scale is unknown stays there; the plan then refuses it.

    Args:
        base: the pre-trained model.
        finetuned: fine-tunes of it, adapters among them.
        lora_alpha: alpha of those whose settings are not beside them.

    Raises:
        MismatchError: the base is an adapter, or an adapter does not fit the base, is of a kind that cannot be folded,
            or its scale is unknown.
        UsageError: `lora_alpha` is given, and no fine-tune needs it.
    """
    wrapped = find_adapter(base)
    if wrapped is not None and not wrapped.is_whole:
        raise MismatchError(
            f"{base.reference} is an adapter, not a whole model", hint="give the model that it was trained on first"
        )
    models, findings, needed = [], [], False
    for model in finetuned:
        wrapped = find_adapter(model)
        if wrapped is None:
            models.append(model)
            continue
        settings = None if _is_of_its_class(wrapped.names) else read_settings(model)
        if settings is None and lora_alpha is not None:
            settings, needed = Settings(lora_alpha), True
        folded, found = _fold(base, wrapped, settings)
        models.append(folded)
        findings += found
    if lora_alpha is not None and not needed:
        raise UsageError(
            "--lora-alpha has no effect: no fine-tune holds LoRA whose settings are not beside it",
            hint="leave it out (in a recipe, lora_alpha)",
        )
    return models, findings


def _fold(base: Checkpoint, wrapped: Wrapped, settings: Settings | None) -> tuple[Checkpoint, list[str]]:
    if not wrapped.names.changes and not _is_of_its_class(wrapped.names):
        raise MismatchError(f"{wrapped.model.reference} is called an adapter, and holds no LoRA", hint=MERGE)
    if wrapped.is_whole:
        if settings is None or len(wrapped.names.adapters) > 1:
            return wrapped.model, []
        return _fold_within(base, wrapped, settings)
    if settings is None and wrapped.names.changes:
        raise MismatchError(
            f"{wrapped.model.reference} is LoRA of rank {wrapped.ranks} on {wrapped.layers} of unknown alpha",
            hint=f"put the {CONFIG} that was saved with it beside it, or pass --lora-alpha",
        )
    return _fold_onto(base, wrapped, settings or Settings(1.0)), []


def _fold_within(base: Checkpoint, wrapped: Wrapped, settings: Settings) -> tuple[Checkpoint, list[str]]:
    """Return a checkpoint with the LoRA in it added to its own weights."""
    model, names = wrapped.model, wrapped.names
    tensors = {plain: wrapped.span(name) for name, plain in names.plain.items()}
    missing = [change.module for change in names.changes if change.weight not in tensors]
    if missing:
        text = f"{model.reference} has LoRA on {len(names.changes)} layers, of which {len(missing)} have no weight"
        raise MismatchError(f"{text}, first {quote(missing[0])}")
    added = {c.weight: wrapped.added_to(tensors[c.weight], c, settings) for c in names.changes}
    if _is_merged(base, model, tensors, added):
        text = (
            f"the LoRA in {model.reference} is in its weights already (saved in evaluation mode): it is not added again"
        )
        return replace(model, tensors=tensors), [text]
    tensors |= {name: one.span for name, one in added.items()}
    return wrapped.standing_for(tensors, added), []


def _is_merged(
    base: Checkpoint, model: Checkpoint, tensors: Mapping[str, TensorSpan], added: Mapping[str, LowRank]
) -> bool:
    """Return whether weights are nearer to the base's with the changes added: loralib adds them for eval()."""
    import numpy as np

    from speechft_merge.checkpoints.rounding import read_numbers

    pairs = {other: name for name, other in align(base.naming, replace(model, tensors=tensors).naming).pairs.items()}
    known = [name for name in added if name in pairs]
    apart = together = 0.0
    for name in known[:: max(1, len(known) // SAMPLED_WEIGHTS)][:SAMPLED_WEIGHTS]:
        span = tensors[name]
        count = min(SAMPLED_ELEMENTS, span.elements)
        first = (span.elements - count) // 2
        moved = read_numbers(span, first, count) - read_numbers(base.tensors[pairs[name]], first, count)
        change = np.zeros(count)
        added[name].change(change, first)
        apart += float(moved @ moved)
        together += float((moved - change) @ (moved - change))
    return together < apart


def _fold_onto(base: Checkpoint, wrapped: Wrapped, settings: Settings) -> Checkpoint:
    """Return the base with an adapter's changes, under the base's names."""
    model, names = wrapped.model, wrapped.names
    if len(names.adapters) > 1:
        listed = ", ".join(sorted(names.adapters))
        raise MismatchError(f"{model.reference} holds several adapters: {listed}", hint="save the one that is meant")
    prefix, theirs = _find_places(base, wrapped)
    own = {plain: name for name, plain in base.naming.unwrapped.items()}
    own |= {canonical: name for name, canonical in base.naming.full.items() if canonical not in own}
    added: dict[str, LowRank] = {}
    for change in names.changes:
        weight = own[placed(change.weight, prefix, theirs)]
        added[weight] = wrapped.added_to(base.tensors[weight], change, settings)
    plain = {placed(name, prefix, theirs): wrapped.span(held) for held, name in names.plain.items()}
    tensors = {**base.tensors, **{own.get(name, name): span for name, span in plain.items()}}
    tensors |= {name: one.span for name, one in added.items()}
    return wrapped.standing_for(tensors, added)


def _find_places(base: Checkpoint, wrapped: Wrapped) -> tuple[str, str]:
    """Return the prefixes of the adapter's names and of the base's, in the base's own names or transformers'."""
    names = wrapped.names
    changed = [change.weight for change in names.changes] or [name for name in names.plain if is_own_adapter(name)]
    for there in (base.naming.unwrapped, base.naming.full):
        if (found := find_places(changed, there.values())) is not None:
            return found
    raise MismatchError(
        f"{wrapped.model.reference} changes {len(changed)} weights that {base.reference} does not have, such as "
        f"{quote(changed[0])}",
        hint="check that the base is the model that it was trained on",
    )
