"""Makes whole models of adapters and of checkpoints with LoRA in them, so that the rest of a merge knows no adapters.

An adapter alone stands for the base with its changes in it: what it does not change is the base's own tensor, and is
read once. A checkpoint that has LoRA around its weights becomes the model that it computes with.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from speechft_merge.adapters.settings import CONFIG, MERGE, Settings, read_settings
from speechft_merge.checkpoints.computed import LIMIT
from speechft_merge.checkpoints.index import Adapter
from speechft_merge.errors import CheckpointError, MismatchError, UsageError, amount, quote
from speechft_merge.layouts.alignment import align
from speechft_merge.layouts.elsewhere import other_adapters
from speechft_merge.layouts.heads import is_head
from speechft_merge.layouts.lora import find_places, is_own_adapter, placed, read_lora
from speechft_merge.sources.literal import Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from speechft_merge.adapters.low_rank import LowRank
    from speechft_merge.checkpoints.index import Checkpoint, TensorSpan
    from speechft_merge.layouts.lora import Change, LoraNames

SAMPLED_WEIGHTS = 8
"""Weights that tell whether the LoRA beside them is already merged into them."""
SAMPLED_ELEMENTS = 4096

_SHOWN = 6
"""Names of layers that are told."""


class Kind(Enum):
    """What a checkpoint with an adapter is."""

    WITHIN = "a whole model with LoRA around its weights"
    ALONE = "LoRA without the weights that it changes"
    OF_ITS_CLASS = "an adapter that is a part of its model, for one language"
    UNKNOWN = "a file that is called an adapter and holds no LoRA"


class Adapted(NamedTuple):
    """A checkpoint with an adapter in it, or an adapter alone."""

    model: Checkpoint
    names: LoraNames
    """Its names, without the words of other wrappers."""
    own: Mapping[str, str]
    """These names -> those in the file."""
    kind: Kind

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
        return (right.shape or (0,))[0] // max(kernel, 1)

    def fits(self, weight: TensorSpan, change: Change) -> bool:
        """Return whether a change can be one of a weight, by their shapes."""
        from speechft_merge.adapters.low_rank import fits

        return fits(weight.shape, self.span(change.left).shape, self.span(change.right).shape)

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
        changes = {name: (one.scale, one.transposed) for name, one in added.items()}
        adapter, container = Adapter(self.model.tensors, changes), f"adapter in {self.model.container}"
        tensors = {**tensors, **{name: one.span for name, one in added.items()}}
        return replace(self.model, container=container, tensors=tensors, adapter=adapter, origin=None, state_path="")


def find_adapter(model: Checkpoint) -> Adapted | None:
    """Return a checkpoint as one with an adapter in it, or as an adapter alone; None if it is neither."""
    own = {plain: name for name, plain in model.naming.unwrapped.items()}
    names = read_lora(own)
    kind = _kind_of(names)
    is_other = kind is Kind.UNKNOWN and not model.file.startswith("adapter_model.")
    return None if is_other else Adapted(model, names, own, kind)


def _kind_of(names: LoraNames) -> Kind:
    """Return what names tell; an adapter alone may hold a few of the weights that it changes, such as an embedding."""
    if names.changes:
        there = {*names.plain.values()}
        held = sum(change.weight in there for change in names.changes)
        return Kind.WITHIN if 2 * held >= len(names.changes) else Kind.ALONE
    own = [name for name in names.plain if is_own_adapter(name)]
    return Kind.OF_ITS_CLASS if own and all(map(is_head, names.plain.keys() - own)) else Kind.UNKNOWN


def describe_adapter(model: Checkpoint) -> tuple[str, bool] | None:
    """Describe the adapter in a checkpoint, and return whether it can be folded; None if none is known."""
    adapted = find_adapter(model)
    if adapted is None or not adapted.names.changes:
        return (adapted.kind.value, adapted.kind is Kind.OF_ITS_CLASS) if adapted else None
    try:
        settings = read_settings(model)
    except CheckpointError as error:
        return error.message, False
    known = "its alpha is not known: pass --lora-alpha" if settings is None else f"alpha {settings.alpha:g}"
    told = f"LoRA of rank {adapted.ranks} on {amount(len(adapted.names.changes), 'weight')} ({adapted.layers}), {known}"
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
    adapted = find_adapter(base)
    if adapted is not None and adapted.kind is not Kind.WITHIN:
        raise MismatchError(
            f"{base.reference} is an adapter, not a whole model", hint="give the model that it was trained on first"
        )
    models, notes, needed = [], [], False
    for model in finetuned:
        adapted = find_adapter(model)
        if adapted is None:
            models.append(model)
            continue
        settings = None if adapted.kind is Kind.OF_ITS_CLASS else read_settings(model)
        if settings is None and lora_alpha is not None and adapted.names.changes:
            settings, needed = Settings(lora_alpha), True
        folded, found = _fold(base, adapted, settings)
        models.append(folded)
        notes += found
    if lora_alpha is not None and not needed:
        raise UsageError(
            "--lora-alpha has no effect: no fine-tune holds LoRA whose settings are not beside it",
            hint="leave it out (in a recipe, lora_alpha)",
        )
    return models, notes


def _fold(base: Checkpoint, adapted: Adapted, settings: Settings | None) -> tuple[Checkpoint, list[str]]:
    model, names, kind = adapted.model, adapted.names, adapted.kind
    if kind is Kind.UNKNOWN:
        raise MismatchError(f"{model.reference} is called an adapter, and holds no LoRA", hint=MERGE)
    if settings is None and kind is Kind.WITHIN:
        return model, []
    if len(names.adapters) > 1:
        listed = ", ".join(sorted(names.adapters))
        raise MismatchError(f"{model.reference} holds several adapters: {listed}", hint="save the one that is meant")
    if others := other_adapters(names.plain.values()):
        raise MismatchError(
            f"{model.reference} holds more than LoRA: {others[0]}, ..., which cannot be merged as it is", hint=MERGE
        )
    if settings is None and kind is Kind.ALONE:
        raise MismatchError(
            f"{model.reference} is LoRA of rank {adapted.ranks} on {adapted.layers} of unknown alpha",
            hint=f"put the {CONFIG} that was saved with it beside it, or pass --lora-alpha (in a recipe, lora_alpha)",
        )
    fold = _fold_within if kind is Kind.WITHIN else _fold_onto
    return fold(base, adapted, settings or Settings(1.0))


def _fold_within(base: Checkpoint, adapted: Adapted, settings: Settings) -> tuple[Checkpoint, list[str]]:
    """Return a checkpoint with the LoRA in it added to its own weights."""
    model, names = adapted.model, adapted.names
    tensors = {plain: adapted.span(name) for name, plain in names.plain.items()}
    missing = [change.module for change in names.changes if change.weight not in tensors]
    if missing:
        layers = amount(len(names.changes), "layer")
        text = f"{model.reference} has LoRA on {layers}, and no weight of {len(missing)}"
        raise MismatchError(f"{text}, first {quote(missing[0])}")
    added = {c.weight: adapted.added_to(tensors[c.weight], c, settings) for c in names.changes}
    if _is_merged(base, model, tensors, added):
        return replace(model, tensors=tensors), [
            f"the LoRA in {model.reference} is in its weights already (saved in evaluation mode): it is not added again"
        ]
    return adapted.standing_for(tensors, added), []


def _is_merged(
    base: Checkpoint, model: Checkpoint, tensors: Mapping[str, TensorSpan], added: Mapping[str, LowRank]
) -> bool:
    """Return whether weights are nearer to the base's with the changes added: loralib adds them for eval()."""
    import numpy as np

    from speechft_merge.checkpoints.rounding import read_numbers

    pairs = {other: name for name, other in align(base.naming, replace(model, tensors=tensors).naming).pairs.items()}
    known = [name for name in added if name in pairs]
    apart = together = 0.0
    with np.errstate(all="ignore"):
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


def _fold_onto(base: Checkpoint, adapted: Adapted, settings: Settings) -> tuple[Checkpoint, list[str]]:
    """Return the base with an adapter's changes, under the base's names; those of heads that it lacks are left out."""
    adapted = adapted._replace(model=_at_hand(adapted.model))
    names, own = adapted.names, _own_names(base)
    prefix, theirs = _find_place(base, adapted, own)
    plain = {placed(name, prefix, theirs): adapted.span(held) for held, name in names.plain.items()}
    tensors = {**base.tensors, **{own.get(name, name): span for name, span in plain.items()}}
    added: dict[str, LowRank] = {}
    lost = []
    for change in names.changes:
        name = placed(change.weight, prefix, theirs)
        weight = own.get(name, name)
        if weight in tensors and (adapted.fits(tensors[weight], change) or not is_head(change.weight)):
            added[weight] = adapted.added_to(tensors[weight], change, settings)
        else:
            lost.append(change.module)
    left = f"the LoRA on {', '.join(lost)} of {adapted.model.reference} is left out: a head of its own"
    return adapted.standing_for(tensors, added), [left] * bool(lost)


def _at_hand(model: Checkpoint) -> Checkpoint:
    """Return an adapter with its file in memory where that is on the Hub: each of its tensors would be a request."""
    far = {id(span.source): span.source for span in model.tensors.values() if not span.source.seeks_cheaply}
    read = {
        key: Literal(source.name, source.read(0, source.size)) for key, source in far.items() if source.size <= LIMIT
    }
    tensors = {n: replace(span, source=read.get(id(span.source), span.source)) for n, span in model.tensors.items()}
    return replace(model, tensors=tensors)


def _own_names(base: Checkpoint) -> dict[str, str]:
    """Return what a tensor may be called, without wrappers or by transformers -> its own name."""
    naming = base.naming
    return {canonical: own for own, canonical in naming.full.items()} | {
        plain: own for own, plain in naming.unwrapped.items()
    }


def _find_place(base: Checkpoint, adapted: Adapted, own: Mapping[str, str]) -> tuple[str, str]:
    """Return the prefixes of the adapter's names and of the base's, in the base's own names or transformers'."""
    changes = [change for change in adapted.names.changes if not is_head(change.weight)]
    wanted = [change.weight for change in changes] or [name for name in adapted.names.plain if is_own_adapter(name)]
    where = f"{adapted.model.reference}: its adapter"
    if not wanted:
        raise MismatchError(f"{where} changes heads only, which are not merged")
    for naming in (base.naming.unwrapped, base.naming.full):
        names = {
            prefix: {name[len(prefix) :] for name in naming.values() if name.startswith(prefix)}
            for prefix in sorted(base.naming.by_prefix)
        }
        found = find_places(wanted, names)
        alike = [place for place in found if _fit_there(base, adapted, changes, place, own)]
        if len(alike) > 1:
            listed = " and ".join(quote(theirs + wanted[0][len(prefix) :]) for prefix, theirs in alike[:2])
            raise MismatchError(f"{where} fits several parts of {base.reference}: {listed}", hint=MERGE)
        if alike or found:
            return (alike or found)[0]
    unknown = [name for name in wanted if not any(one.endswith(name.split(".", 1)[-1]) for one in own)]
    raise MismatchError(
        f"{where} changes {amount(len(wanted), 'weight')} that {base.reference} does not have where it has them, such "
        f"as {quote((unknown or wanted)[0])}",
        hint="check that the base is the model that it was trained on",
    )


def _fit_there(
    base: Checkpoint, adapted: Adapted, changes: Sequence[Change], place: tuple[str, str], own: Mapping[str, str]
) -> bool:
    return all(adapted.fits(base.tensors[own[placed(change.weight, *place)]], change) for change in changes)
