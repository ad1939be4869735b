"""Locates each tensor in a speech encoder: stacks and blocks by the structure of the names, other parts by name.

A stack is an outermost numbered list whose members hold two or more matrices (attention, feed-forward): a list of
convolutions holds none. Its words name it, and decide alone where they say that it is a list of blocks.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from speechft_merge.layouts.front_end import find_front_ends, in_modules
from speechft_merge.layouts.heads import is_head
from speechft_merge.layouts.language_model import NAME, belongs_to, find_language_models, is_language_model

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    Shapes = Mapping[str, tuple[int, ...]]

PARTS = ("cnn", "projection", "pos_conv", "layers", "final_norm", "other", "head")
"""From the waveform up: the convolutional feature extractor, the projection to the model's width, the positional
convolution, the transformer blocks, the norm after them, anything else, and heads (of a task, or of
pre-training)."""

STACKS = ("encoder", "decoder")
"""The usual names of stacks."""
_TOWER = "audio_tower"
"""The encoder beside a language model, by transformers' name."""

PLURALS = {"encoders": "encoder", "decoders": "decoder"}
BLOCK_LISTS = frozenset("layers layer blocks block h transformer".split())
"""Words for a list of blocks that do not say which list it is."""
_BESIDE = frozenset(["adapter", "quantizer"])
"""Words for lists of layers that follow the encoder and are not its blocks."""
_FINAL_NORMS = tuple(f"{name}." for name in "layer_norm layernorm norm ln_post ln_f after_norm".split())

MAX_DEPTH = 8
"""Most words before a list of blocks for modules beside the list to count to its stack."""

_PROJECTIONS = frozenset("feature_projection post_extract_layer_norm model_dim_proj".split())
_POSITION = re.compile(r"pos_conv|(pos_encoder|encode_positions|relative_positional_encoder)$")
_PROJECTION = re.compile(r"((?:.*\.)?)feature_projection\.")

_NUMBERED = re.compile(r"((?:[0-9]{1,9}\.)*[^.0-9][^.]*(?:\.[^.0-9][^.]*)*)\.([0-9]{1,9})\.")
"""The path of the outermost numbered list in a name, and the number; numbers before any word belong to the path."""


class Location(NamedTuple):
    """Where in the model a tensor is."""

    part: str
    stack: str
    """`encoder`, `decoder` or the words before the list of blocks; empty for what is before, beside or after."""
    block: int | None = None
    """Index in its stack, from 0; None outside of the blocks."""

    @property
    def is_head(self) -> bool:
        """Whether it belongs to a head and not to the encoder (or decoder)."""
        return self.part == "head"

    @property
    def stays(self) -> bool:
        """Whether it is mixed only if a rule names it: a head, or a language model beside the encoder."""
        return self.is_head or is_language_model(self.stack)


HEAD = Location("head", "")


def locate(shapes: Shapes) -> dict[str, Location]:
    """Return where each tensor is; `shapes` are by canonical names without the model's prefix."""
    stacks = find_stacks(shapes)
    owners = {_owner(path): stack for path, stack in stacks.items()}
    no_heads = _no_heads(shapes, stacks)
    located = {
        name: HEAD
        if is_head(name) and name.partition(".")[0] not in no_heads and _language_model(name, owners) is None
        else _locate(name, stacks, owners)
        for name in shapes
    }
    outside = {
        name: shapes[name]
        for name, location in located.items()
        if location.block is None and not location.stays and not is_decoder(location.stack)
    }
    encoders = [owner for owner, stack in owners.items() if not is_decoder(stack) and not is_language_model(stack)]
    front_ends = find_front_ends(outside, stacks, encoders)
    for part, modules in (("cnn", front_ends), ("projection", _norms_of_projections(outside))):
        located |= {name: located[name]._replace(part=part) for name in outside if in_modules(name, modules)}
    return located


def _no_heads(names: Iterable[str], stacks: Iterable[str]) -> set[str]:
    """Return the modules that are no heads whatever they are called: those that hold blocks.

    And a projector without a classifier: such a one leads from an encoder to a language model.
    """
    modules = {path.partition(".")[0] for path in stacks}
    return modules if any(name.partition(".")[0] == "classifier" for name in names) else modules | {"projector"}


def _norms_of_projections(names: Iterable[str]) -> set[str]:
    """Return the norms that stand beside a projection, as SEW's does, and not in it."""
    return {f"{found[1]}layer_norm." for found in map(_PROJECTION.match, names) if found}


def blocks_of(locations: Iterable[Location]) -> dict[str, list[int]]:
    """Return stack -> the indexes of its blocks, in order."""
    found: dict[str, set[int]] = {}
    for location in locations:
        if location.block is not None:
            found.setdefault(location.stack, set()).add(location.block)
    return {stack: sorted(blocks) for stack, blocks in found.items()}


def is_decoder(stack: str) -> bool:
    """Return whether a stack, or a module, is a decoder by its name."""
    return stack.rpartition(".")[2].endswith("decoder")


def main_stack(stacks: Collection[str]) -> str:
    """Return the stack that a range of blocks without the name of one is of: the encoder, whatever it is called."""
    known = [stack for stack in ("encoder", _TOWER) if stack in stacks]
    others = [stack for stack in stacks if not is_decoder(stack) and not is_language_model(stack)]
    return known[0] if known else others[0] if len(others) == 1 else "encoder"


def is_block(name: str) -> bool:
    """Return whether a name alone says that its tensor belongs to a block: `encoder.layers.3.`, `blocks.0.`."""
    found = _NUMBERED.match(name)
    return found is not None and _says_so(found[1])


def find_stacks(shapes: Shapes) -> dict[str, str]:
    """Return the path of each list of blocks (`encoder.layers`) -> the name of the stack."""
    members: dict[str, set[str]] = {}
    matrices: Counter[str] = Counter()
    for name, shape in shapes.items():
        found = _NUMBERED.match(name)
        if found and _BESIDE.isdisjoint(found[1].split(".")):
            members.setdefault(found[1], set()).add(found[2])
            matrices[found[1]] += len(shape) == 2
    lists = (path for path in members if not is_head(f"{path}.") or _is_list_of_blocks(path))
    paths = [path for path in lists if _says_so(path) or matrices[path] >= 2 * len(members[path])]
    return _name_stacks(paths, find_language_models(shapes.keys(), {path: _owner(path) for path in paths}))


def _says_so(path: str) -> bool:
    """Return whether a list is one of blocks by its name alone."""
    return _is_list_of_blocks(path) and {*path.split(".")[:-1]} <= {*STACKS, *BLOCK_LISTS}


def _is_list_of_blocks(path: str) -> bool:
    last = path.rpartition(".")[2]
    return last in BLOCK_LISTS or last in PLURALS


def _name_stacks(paths: Collection[str], language_models: Collection[str]) -> dict[str, str]:
    """Give each list of blocks the shortest of its spellings that is still free, the plainest paths first."""
    plainness = {path: (not _says_so(path), path.partition(".")[0] not in STACKS, path.count(".")) for path in paths}
    stacks: dict[str, str] = {}
    taken: set[str] = set()
    for path in sorted(plainness, key=lambda path: (plainness[path], path)):
        spellings = (NAME, f"{path}.{NAME}") if path in language_models else _spellings(path)
        stacks[path] = next((name for name in spellings if name not in taken), path)
        taken.add(stacks[path])
    return stacks


def _spellings(path: str) -> tuple[str, str]:
    """Return what a stack may be called: the usual word where that is among its words, or all of them."""
    singular = [PLURALS.get(word, word) for word in path.split(".")]
    words = list(dict.fromkeys(word for word in singular if word not in BLOCK_LISTS))
    whole = ".".join(words) or "encoder"
    return next((word for word in words if word in (*STACKS, _TOWER)), whole), whole


def _owner(path: str) -> str:
    """Return the module that holds a list of blocks: its path without the words for a list."""
    words = path.split(".")
    while words and (words[-1] in BLOCK_LISTS or words[-1] in PLURALS):
        words.pop()
    return "".join(f"{word}." for word in words)


def _locate(name: str, stacks: Mapping[str, str], owners: Mapping[str, str]) -> Location:
    found = _NUMBERED.match(name)
    if found and found[1] in stacks:
        return Location("layers", stacks[found[1]], int(found[2]))
    language = _language_model(name, owners)
    words = name.split(".")
    modules = ("".join(f"{word}." for word in words[:depth]) for depth in range(min(len(words), MAX_DEPTH), -1, -1))
    owner = next((module for module in modules if _may_own(module, owners)), None) if language is None else language
    stack = owners[owner] if owner is not None else next((word for word in words[:-1] if word in STACKS), "")
    return Location(_part(words, name.removeprefix(owner or f"{stack}."), stack), stack)


def _language_model(name: str, owners: Mapping[str, str]) -> str | None:
    """Return the module of the language model that a tensor outside of the blocks belongs to; None if it does not."""
    return next((own for own, stack in owners.items() if is_language_model(stack) and belongs_to(name, own)), None)


def _may_own(module: str, owners: Mapping[str, str]) -> bool:
    """Return whether what is in a module and outside of its blocks goes with these."""
    return module in owners and not is_language_model(owners[module])


def _part(words: list[str], inner: str, stack: str) -> str:
    """Return the part of a tensor outside of the blocks, by its words and its name within its stack."""
    if not is_decoder(stack) and not _PROJECTIONS.isdisjoint(words):
        return "projection"
    if not is_decoder(stack) and any(map(_POSITION.match, words[:-1])):
        return "pos_conv"
    if inner.startswith(_FINAL_NORMS):
        return "final_norm"
    return "other"
