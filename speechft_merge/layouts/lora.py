"""Finds LoRA by the names of its tensors: which two make the change of which weight, in every spelling of it.

Sources: peft's tuners/lora/layer.py and utils/save_and_load.py, loralib's layers.py (which ESPnet, WeNet and FunASR use
or copy), SpeechBrain's nnet/adapters.py.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from speechft_merge.layouts.language_model import WORDS as LANGUAGE_MODELS
from speechft_merge.layouts.structure import is_decoder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

_FACTOR = re.compile(
    r"(?P<module>.+)\.(?:"
    r"lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.weight"  # peft
    # peft of embeddings, and loralib
    r"|lora_(?P<bare_embedding>embedding_)?(?P<bare_side>[AB])(?:\.(?P<bare_adapter>(?!bias$)[^.]+))?"
    r"|adapter_(?P<way>down|up)_proj\.weight)"  # SpeechBrain
)
"""A tensor of LoRA. peft puts the adapter's name after the side in memory, and leaves it out in an adapter's file."""

MAX_DEPTH = 32
"""Most words that an adapter may have before its model's names."""

_PEFT = "base_model.model."
"""What peft's model puts before all names."""
_AROUND = frozenset(["base_layer", "pretrained_module"])
"""Words of peft and SpeechBrain for the layer inside; `pretrained_linear` is that of an adapter which is no LoRA."""
_REPLACED = re.compile(r"(.+\.)original_module\.(.+)")
_REPLACING = re.compile(r"(.+\.)modules_to_save\.(?:[^.]+)\.(.+)")
"""peft keeps a module that is trained as a whole beside the one that it replaces."""


class Change(NamedTuple):
    """What LoRA adds to one weight: scale * left @ right."""

    module: str
    """The path of the layer, without the adapter's words."""
    left: str
    """Name of the tensor B, of shape (out, rank)."""
    right: str
    """Name of the tensor A, of shape (rank, in)."""
    embedding: bool
    """Whether it is peft's of an embedding, whose weight is (in, out)."""

    @property
    def weight(self) -> str:
        """What the weight is called without adapters."""
        return f"{self.module}.weight"


class LoraNames(NamedTuple):
    """The names of a checkpoint with LoRA in it."""

    changes: tuple[Change, ...]
    plain: dict[str, str]
    """Own name -> name without the adapter's words, of every other tensor that the model computes with."""
    adapters: frozenset[str]
    """The names of the adapters: peft may keep several."""


def read_lora(names: Iterable[str]) -> LoraNames:
    """Tell the tensors of LoRA from those of the model that it changes."""
    factors: dict[tuple[str, bool], dict[str, str]] = {}
    adapters: set[str] = set()
    plain: dict[str, str] = {}
    for name in names:
        if (found := _FACTOR.fullmatch(name)) is None:
            if not _REPLACED.fullmatch(name):
                plain[name] = _without_words(name)
            continue
        side = found["side"] or found["bare_side"] or {"down": "A", "up": "B"}[found["way"]]
        embedding = bool(found["embedding"] or found["bare_embedding"])
        adapters.add(found["adapter"] or found["bare_adapter"] or "")
        factors.setdefault((_without_words(f"{found['module']}."), embedding), {})[side] = name
    changes = []
    for (module, embedding), sides in factors.items():
        if sides.keys() == {"A", "B"}:
            changes.append(Change(module.rstrip("."), sides["B"], sides["A"], embedding))
        else:
            plain |= {name: name for name in sides.values()}
    return LoraNames(tuple(changes), plain, frozenset(adapters))


def _without_words(name: str) -> str:
    name = name.removeprefix(_PEFT)
    if found := _REPLACING.fullmatch(name):
        name = found[1] + found[2]
    return ".".join(word for word in name.split(".") if word not in _AROUND)


def is_own_adapter(name: str) -> bool:
    """Return whether a tensor belongs to an adapter that is a part of its model: MMS's, one for each language."""
    return "adapter_layer" in name.split(".")


def find_places(changed: Sequence[str], names: Mapping[str, Collection[str]]) -> list[tuple[str, str]]:
    """Return where an adapter's weights are in a model: pairs of the adapter's prefix and the model's.

    Those that leave out the fewest words of the adapter's names. No word is left out, or added, that tells a decoder or
    a language model from the encoder, whose layers have the same names.

    Args:
        changed: names of the weights that the adapter changes; one or more.
        names: prefix of the model's names -> the names under it.
    """
    words = changed[0].split(".")
    for begin in range(min(len(words) - 1, MAX_DEPTH)):
        prefix = "".join(f"{word}." for word in words[:begin])
        if not all(name.startswith(prefix) for name in changed):
            return []
        inner = [name[len(prefix) :] for name in changed]
        found = [
            (prefix, theirs)
            for theirs, there in names.items()
            if _other_stacks(prefix) == _other_stacks(theirs) and all(name in there for name in inner)
        ]
        if found:
            return found
    return []


def _other_stacks(prefix: str) -> set[str]:
    """Return the words in a prefix that are another stack's than the encoder's."""
    return {word for word in prefix.split(".") if is_decoder(word) or word in LANGUAGE_MODELS}


def placed(name: str, prefix: str, theirs: str) -> str:
    """Return a name of an adapter as the model has it, of what stands beside the encoder, too.

    Args:
        name: in the adapter.
        prefix: of the adapter's names, see `find_places`.
        theirs: of the model's.
    """
    if name.startswith(prefix):
        return theirs + name[len(prefix) :]
    ours, words = prefix.split(".")[:-1], name.split(".")
    common = next((i for i, (a, b) in enumerate(zip(ours, words, strict=False)) if a != b), len(ours))
    outer = theirs.split(".")[:-1]
    kept = outer[: max(0, len(outer) - (len(ours) - common))]
    return ".".join([*kept, *words[common:]])
