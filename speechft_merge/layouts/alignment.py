"""Matches the tensors of a fine-tune with those of the base, by rules and by the evidence of names and shapes.

Both sides are compared under transformers' names, in any layouts. A task class puts a prefix before the
encoder's names (`hubert.`, `model.`, `module.` ...) and a head beside it. Nothing here knows the classes: the pair of
prefixes under which most parameters agree in name and shape is the right one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speechft_merge.layouts.heads import EMBEDDINGS, is_head
from speechft_merge.layouts.prefixes import encoder_prefixes
from speechft_merge.layouts.structure import Location, find_stacks, is_decoder

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from speechft_merge.layouts.naming import Naming, TensorName

    Shapes = dict[str, tuple[int, ...]]

LEAST_LIKENESS = 0.9
"""Share of their kinds of tensors that two encoders of one file have in common. The stacks of an encoder-decoder differ
by more: the decoder attends to the encoder."""


_MODELS = ("model", "language_model")
"""Words for a model within a model, which writers put in different places."""
_BRIDGE = re.compile(r".*(projector|connector|adapt[eo]r|enc_to_dec_proj).*")
"""Words for a module between two parts of a model."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """The tensors that two models have in common; names are the files' own."""

    base_prefix: str
    finetuned_prefix: str
    pairs: dict[str, str]
    """Base name -> fine-tuned name, heads aside: equal canonical names and shapes."""
    heads: dict[str, str]
    """Likewise for heads that both sides have in equal shapes."""
    mismatched: dict[str, str]
    """Tensors of equal canonical names and different shapes, heads aside."""
    base_names: Mapping[str, TensorName]
    """What each tensor of the base is, under its prefix."""
    finetuned_names: Mapping[str, TensorName]
    """What each tensor of the fine-tune is."""


def align(base: Naming, finetuned: Naming) -> Alignment:
    """Match the tensors of two models by their names and shapes, in any layouts."""
    base_prefix, finetuned_prefix = _find_prefixes(base, finetuned)
    ours, theirs = base.under(base_prefix), finetuned.under(finetuned_prefix)
    shared = _shared_modules(_beside(ours, base), _beside(theirs, finetuned)) | (_tied(ours) & _tied(theirs))
    if shared:
        ours, theirs = _with_modules(shared, ours), _with_modules(shared, theirs)
    theirs = _with_names_of(ours, theirs, base.shapes, finetuned.shapes)
    common = _common(ours, theirs, heads=False)
    pairs = _of_equal_shapes(common, base, finetuned)
    return Alignment(
        base_prefix=base_prefix,
        finetuned_prefix=finetuned_prefix,
        pairs=pairs,
        heads=_of_equal_shapes(_common(ours, theirs, heads=True), base, finetuned),
        mismatched={name: other for name, other in common.items() if name not in pairs},
        base_names=ours,
        finetuned_names=theirs,
    )


def _beside(names: Mapping[str, TensorName], naming: Naming) -> dict[str, Shapes]:
    """Return the modules beside the encoder that count as heads: first word -> shapes by canonical names."""
    found: dict[str, Shapes] = {}
    for own, name in names.items():
        if name.is_head and not name.inside:
            found.setdefault(name.canonical.partition(".")[0], {})[name.canonical] = naming.shapes[own]
    return found


def _shared_modules(ours: dict[str, Shapes], theirs: dict[str, Shapes]) -> set[str]:
    """Return the modules that both models have beside the encoder and that are no heads: a vocoder, an adaptor.

    What is called as a head is one, and so is a single layer under any name but that of a bridge between two parts.
    """
    return {word for word, shapes in ours.items() if theirs.get(word) == shapes and _is_part(word, shapes, ours)}


def _tied(names: Mapping[str, TensorName]) -> set[str]:
    """Return the output projection of a text decoder that has no embedding of words: it is stored as this one."""
    words = {word for name in names.values() for word in name.canonical.split(".")}
    decodes = any(name.location.block is not None and is_decoder(name.location.stack) for name in names.values())
    return words & {"lm_head", "proj_out"} if decodes and words.isdisjoint(EMBEDDINGS) else set()


def _is_part(word: str, shapes: Shapes, beside: Collection[str]) -> bool:
    if _BRIDGE.fullmatch(word):
        return word != "projector" or "classifier" not in beside
    return not any(map(is_head, shapes)) and len({name.rpartition(".")[0] for name in shapes}) > 1


def _with_modules(words: set[str], names: Mapping[str, TensorName]) -> dict[str, TensorName]:
    """Return names with some of the modules beside the encoder as parts of the model."""
    other = Location("other", "")
    return {
        own: name._replace(location=other) if name.is_head and name.canonical.partition(".")[0] in words else name
        for own, name in names.items()
    }


def _with_names_of(
    ours: Mapping[str, TensorName], theirs: Mapping[str, TensorName],
    our_shapes: Mapping[str, tuple[int, ...]], their_shapes: Mapping[str, tuple[int, ...]],
) -> Mapping[str, TensorName]:  # fmt: skip
    """Return what the fine-tune's tensors are, by the base's names where only words for a model tell these apart.

    transformers 5 writes `language_model.model.layers` and has `model.language_model.layers` in memory, where a
    training loop of one's own takes it.
    """
    taken = {name.canonical for name in theirs.values()}
    free = {own: name for own, name in ours.items() if name.canonical not in taken}
    known = {name.canonical for name in ours.values()}
    lost = {own: name for own, name in theirs.items() if name.canonical not in known}
    if not free or not lost:
        return theirs
    mine = _by_words(free, our_shapes)
    found = {own: mine[key] for key, own in _by_words(lost, their_shapes).items() if key in mine}
    return {**theirs, **{own: ours[name] for own, name in found.items()}}


def _by_words(names: Mapping[str, TensorName], shapes: Mapping[str, tuple[int, ...]]) -> dict[tuple[object, ...], str]:
    """Return words of the name but for `_MODELS`, and shape -> own name, where that is of one tensor only."""
    words = {own: [word for word in name.canonical.split(".") if word not in _MODELS] for own, name in names.items()}
    keys: dict[str, tuple[object, ...]] = {own: (*words[own], shapes[own]) for own in names}
    counts = Counter(keys.values())
    return {key: own for own, key in keys.items() if counts[key] == 1}


def _common(base: Mapping[str, TensorName], finetuned: Mapping[str, TensorName], *, heads: bool) -> dict[str, str]:
    """Return the tensors, or else the heads, that both sides have by canonical name."""
    theirs = {name.canonical: own for own, name in finetuned.items() if name.is_head == heads}
    return {
        own: theirs[name.canonical] for own, name in base.items() if name.is_head == heads and name.canonical in theirs
    }


def _of_equal_shapes(names: dict[str, str], base: Naming, finetuned: Naming) -> dict[str, str]:
    return {name: other for name, other in names.items() if base.shapes[name] == finetuned.shapes[other]}


def rivals(naming: Naming, other: Naming) -> list[tuple[str, int]]:
    """Return the prefixes of a model's encoders that fit another model, with the parameters that agree, best first.

    Several where a file holds a teacher and a student, say, of one architecture and perhaps of two depths; no two of
    them have a tensor in common.
    """
    mine, theirs = naming.by_prefix, other.by_prefix
    counterpart = max(((p, q) for p in mine for q in theirs), key=lambda pair: _agreement(pair, mine, theirs))[1]
    agreements = {prefix: _agreement((prefix, counterpart), mine, theirs)[0] for prefix in mine}
    found: list[tuple[str, int]] = []
    for prefix in sorted(agreements, key=lambda prefix: (-agreements[prefix], len(prefix))):
        if not found or (agreements[prefix] and all(_are_twins(one, prefix, mine) for one, _ in found)):
            found.append((prefix, agreements[prefix]))
    return found


def twins(naming: Naming) -> list[str]:
    """Return the prefixes of the encoders of one model that are of the same shapes, teacher and student; else none."""
    if len(naming.roots) > 1:
        return list(naming.roots)
    tensors = naming.by_prefix
    for prefix in sorted(tensors, key=lambda prefix: (-len(tensors[prefix]), len(prefix))):
        apart = [other for other in tensors if not other.startswith(prefix) and not prefix.startswith(other)]
        alike = [other for other in apart if _are_alike(tensors[prefix], tensors[other])]
        if alike and find_stacks(tensors[prefix]):
            return sorted([prefix, *alike])
    return []


def _are_twins(one: str, other: str, tensors: Mapping[str, Shapes]) -> bool:
    """Return whether two encoders are of one architecture; one may be in the module of the other, as its teacher."""
    outer, inner = sorted((one, other), key=len)
    if not inner.startswith(outer):
        return _are_alike(tensors[one], tensors[other])
    if len(tensors[inner]) < LEAST_LIKENESS * len(tensors[outer]) / 2:
        return False
    rest = {name: shape for name, shape in tensors[outer].items() if not (outer + name).startswith(inner)}
    return _are_alike(rest, tensors[inner])


def _are_alike(one: Shapes, other: Shapes) -> bool:
    """Return whether two sets of tensors are of one architecture, by names without numbers and by shapes."""
    a, b = ({(re.sub(r"\d+", "*", name), shape) for name, shape in shapes.items()} for shapes in (one, other))
    return len(a & b) >= LEAST_LIKENESS * len(a | b)


def _find_prefixes(base: Naming, finetuned: Naming) -> tuple[str, str]:
    """Return the pair of prefixes under which the most parameters agree; the shorter pair where several do."""
    ours, theirs = base.by_prefix, finetuned.by_prefix
    pair = max(((p, q) for p in ours for q in theirs), key=lambda pair: _agreement(pair, ours, theirs))
    return pair if base.roots or finetuned.roots else _lengthen(pair, base, finetuned)


def _agreement(pair: tuple[str, str], ours: dict[str, Shapes], theirs: dict[str, Shapes]) -> tuple[int, int]:
    """Return the parameters that agree under a pair of prefixes, and how short the pair is."""
    mine, other = ours[pair[0]], theirs[pair[1]]
    return sum(math.prod(shape) for name, shape in mine.items() if other.get(name) == shape), -len("".join(pair))


def _lengthen(pair: tuple[str, str], base: Naming, finetuned: Naming) -> tuple[str, str]:
    """Return both prefixes with the model prefixes that both share under them, which separate encoder and heads.

    None that leaves out a stack of the base, such as the text decoder beside SeamlessM4T's `speech_encoder`: that and
    what goes with it are no heads.
    """
    best = pair
    longer = (
        encoder_prefixes(side.full.values(), prefix) for side, prefix in zip((base, finetuned), pair, strict=True)
    )
    for ours, theirs in zip(*longer, strict=False):
        beside = (name for name in base.under(ours).values() if not name.inside)
        if ours[len(pair[0]) :] != theirs[len(pair[1]) :] or not all(name.is_head for name in beside):
            break
        best = ours, theirs
    return best
