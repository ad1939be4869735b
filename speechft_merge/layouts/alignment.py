"""Which tensor of a fine-tune is which of the base: by rules and by the evidence of names and shapes.

Both sides are compared under transformers' names, whatever naming scheme each follows. A task class puts a prefix
before the encoder's names (`hubert.`, `model.`, `module.` ...) and a head beside it. Nothing here knows the classes:
the pair of prefixes under which most parameters agree in name and shape is the right one.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from speechft_merge.layouts.naming import Naming, read_naming
from speechft_merge.layouts.structure import STACKS, canonical, is_head

if TYPE_CHECKING:
    from collections.abc import Mapping

Shapes = dict[str, tuple[int, ...]]

MODEL_PREFIXES = frozenset(
    [
        "hubert",
        "wav2vec2",
        "wavlm",
        "wav2vec2_bert",
        "wav2vec2_conformer",
        "data2vec_audio",
        "unispeech",
        "unispeech_sat",
        "sew",
        "sew_d",
        "whisper",
        "model",
        "module",
        "base_model",
        "backbone",
        "upstream",
        "speech_encoder",
        "_orig_mod",
    ]
)
"""Words that stand before a backbone's names; needed only where both sides have the same one, and so nothing tells."""

_LEAST_SHARE = 0.1
"""Of all parameters or of all tensors: what must lie under a prefix for it to be tried. Whisper tiny's encoder has 22 %
of the parameters; a small encoder under a large head may have few, but it has most tensors."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """The outcome; names are the files' own."""

    base_prefix: str
    finetuned_prefix: str
    pairs: dict[str, str]
    """Base name -> fine-tuned name, for the backbone: equal names and shapes."""
    heads: dict[str, str]
    """The same for heads that both sides have in the same shape."""
    mismatched: dict[str, str]
    """Backbone tensors of equal names and different shapes."""
    relative: dict[str, str]
    """Base name -> canonical name within the model (transformers'), for every tensor of the base's backbone."""
    finetuned_relative: dict[str, str]
    """The same for the fine-tune's."""


def align(base: Shapes, finetuned: Shapes) -> Alignment:
    """Match the tensors of two models by their names and shapes, in whatever naming scheme each is."""
    ours, theirs = read_naming(base), read_naming(finetuned)
    found = _align(_translated(base, ours), _translated(finetuned, theirs), ours.roots, theirs.roots)
    return _in_own_names(found, ours, theirs)


def _translated(shapes: Shapes, naming: Naming) -> Shapes:
    return {naming.names[name]: shape for name, shape in shapes.items()}


def _in_own_names(found: Alignment, base: Naming, finetuned: Naming) -> Alignment:
    """An alignment of transformers' names, told in the files' own."""
    ours = {theirs: own for own, theirs in base.names.items()}
    others = {theirs: own for own, theirs in finetuned.names.items()}
    return replace(
        found,
        pairs={ours[name]: others[other] for name, other in found.pairs.items()},
        heads={ours[name]: others[other] for name, other in found.heads.items()},
        mismatched={ours[name]: others[other] for name, other in found.mismatched.items()},
        relative={ours[name]: relative for name, relative in found.relative.items()},
        finetuned_relative={others[name]: relative for name, relative in found.finetuned_relative.items()},
    )


def _align(base: Shapes, finetuned: Shapes, base_roots: tuple[str, ...], finetuned_roots: tuple[str, ...]) -> Alignment:
    """The same for names of transformers; roots are the prefixes of encoders where they are known beforehand."""
    base_prefix, finetuned_prefix = _common_ground(base, finetuned, base_roots, finetuned_roots)
    of_base, of_finetuned = _backbone(base, base_prefix), _backbone(finetuned, finetuned_prefix)
    theirs = {relative: name for name, relative in of_finetuned.items()}
    common = {name: theirs[relative] for name, relative in of_base.items() if relative in theirs}
    agree = {name: other for name, other in common.items() if base[name] == finetuned[other]}
    return Alignment(
        base_prefix=base_prefix,
        finetuned_prefix=finetuned_prefix,
        pairs=agree,
        heads=_common_heads(base, finetuned, base_prefix, finetuned_prefix, of_base, of_finetuned),
        mismatched={name: other for name, other in common.items() if name not in agree},
        relative=of_base,
        finetuned_relative=of_finetuned,
    )


def backbone_prefix(shapes: Shapes, prefix: str = "") -> str:
    """`prefix`, lengthened by model prefixes that stand before more than half of the names, and by words before all."""
    while True:
        words = Counter(name[len(prefix) :].partition(".")[0] for name in shapes if name.startswith(prefix))
        most, count = words.most_common(1)[0] if words else ("", 0)
        wraps = count == words.total() and most not in (*STACKS, "") and not _is_list(shapes, f"{prefix}{most}.")
        if not wraps and (most not in MODEL_PREFIXES or 2 * count <= words.total()):
            return prefix
        prefix += most + "."


def _is_list(shapes: Shapes, prefix: str) -> bool:
    """Whether numbers follow, or names end: then the prefix is a list of layers, or a module, and no wrapper."""
    return any(name[len(prefix) :].partition(".")[0].isdigit() or "." not in name[len(prefix) :] for name in shapes)


def _common_ground(
    base: Shapes, finetuned: Shapes, base_roots: tuple[str, ...], finetuned_roots: tuple[str, ...]
) -> tuple[str, str]:
    """The pair of prefixes under which the most parameters agree; the shorter pair where several do."""
    ours = {prefix: _under(base, prefix) for prefix in base_roots or _candidates(base)}
    theirs = {prefix: _under(finetuned, prefix) for prefix in finetuned_roots or _candidates(finetuned)}

    def agreement(pair: tuple[str, str]) -> tuple[int, int]:
        mine, other = ours[pair[0]], theirs[pair[1]]
        return sum(math.prod(shape) for name, shape in mine.items() if other.get(name) == shape), -len("".join(pair))

    base_prefix, finetuned_prefix = max(((p, q) for p in ours for q in theirs), key=agreement)
    if base_roots or finetuned_roots:
        return base_prefix, finetuned_prefix
    return _lengthen(base, base_prefix, finetuned, finetuned_prefix)


def _lengthen(base: Shapes, base_prefix: str, finetuned: Shapes, finetuned_prefix: str) -> tuple[str, str]:
    """Both prefixes, with the model prefix that both sides share under them: it parts the backbone from the heads."""
    ours, theirs = backbone_prefix(base, base_prefix), backbone_prefix(finetuned, finetuned_prefix)
    if ours[len(base_prefix) :] == theirs[len(finetuned_prefix) :]:
        return ours, theirs
    return base_prefix, finetuned_prefix


def _candidates(shapes: Shapes) -> list[str]:
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for name, shape in shapes.items():
        words = name.split(".")[:-1]
        for depth in range(len(words) + 1):
            if depth and words[depth - 1].isdigit():
                break
            prefix = "".join(word + "." for word in words[:depth])
            sizes[prefix] += math.prod(shape)
            counts[prefix] += 1
    return [
        prefix
        for prefix in counts
        if sizes[prefix] >= _LEAST_SHARE * sizes[""] or counts[prefix] >= _LEAST_SHARE * counts[""]
    ]


def _under(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> Shapes:
    return {canonical(name[len(prefix) :]): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _backbone(shapes: Shapes, prefix: str) -> dict[str, str]:
    """Name -> canonical name without the prefix, heads left out."""
    relative = {name: canonical(name[len(prefix) :]) for name in shapes if name.startswith(prefix)}
    return {name: short for name, short in relative.items() if not is_head(short)}


def _common_heads(
    base: Shapes, finetuned: Shapes, base_prefix: str, finetuned_prefix: str, of_base: dict[str, str],
    of_finetuned: dict[str, str],
) -> dict[str, str]:  # fmt: skip
    """Heads stand beside the backbone's prefix (or, in a bare model, under it)."""
    ours = {_beside(name, base_prefix): name for name in base if name not in of_base}
    theirs = {_beside(name, finetuned_prefix): name for name in finetuned if name not in of_finetuned}
    return {
        name: theirs[short]
        for short, name in ours.items()
        if short in theirs and base[name] == finetuned[theirs[short]]
    }


def _beside(name: str, prefix: str) -> str:
    """A head's name without what stands before the backbone's own last prefix word."""
    parent = prefix[: prefix.rstrip(".").rfind(".") + 1]
    return canonical(name.removeprefix(prefix).removeprefix(parent))
