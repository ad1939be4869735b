"""Detects a checkpoint's layout and names its tensors: canonical name, part, stack, block, head or not."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, NamedTuple, Protocol

from speechft_merge.layouts import fairseq, fairseq2, openai_whisper, saved, torchaudio
from speechft_merge.layouts.prefixes import candidate_prefixes, encoder_prefix
from speechft_merge.layouts.structure import HEAD, Location, blocks_of, locate
from speechft_merge.layouts.weight_norm import canonical
from speechft_merge.layouts.wrappers import unwrap, wrappers_of

if TYPE_CHECKING:
    import re
    from collections.abc import Collection, Mapping

    from speechft_merge.layouts.table import Table

TRANSFORMERS = "transformers"
"""Also assumed of a checkpoint that follows no other layout."""


class Layout(Protocol):
    """A module of this folder that describes one naming scheme."""

    NAME: str
    MARK: re.Pattern[str]
    """A name that shows the scheme; group `root` is what stands before the model's names."""
    IS_ENCODER: bool
    """Whether the root is the encoder's prefix; else only that of a model in which the encoder is."""
    BESIDE: Table
    """Names of heads beside the encoder."""

    def table(self, names: Collection[str], /) -> Table:
        """Return the table of its names without prefix, against transformers'."""


LAYOUTS: tuple[Layout, ...] = (fairseq, fairseq2, torchaudio, openai_whisper, saved)


class TensorName(NamedTuple):
    """What one tensor of a checkpoint is."""

    canonical: str
    """transformers' name without the encoder's prefix, weight norm as `weight_g` and `weight_v`. Of a head beside the
    encoder: without the prefix before the encoder, unless that is the name of one of the encoder's tensors."""
    location: Location
    inside: bool = True
    """Whether its name has the encoder's prefix. What has not is a head, or belongs to another stack beside it."""

    @property
    def is_head(self) -> bool:
        """Whether it belongs to a head and not to the encoder (or decoder)."""
        return self.location.is_head


@dataclass(frozen=True)
class Naming:
    """The names of one checkpoint, and what they mean; made once, see `read_naming`."""

    layout: str
    """`transformers`, `fairseq`, `fairseq2`, `torchaudio` or `openai-whisper`."""
    roots: tuple[str, ...]
    """Prefix of each encoder's names (a file may have a teacher and a student); empty if the layout does not tell
    (transformers' own)."""
    shapes: Mapping[str, tuple[int, ...]]
    """Own name -> shape."""
    unwrapped: Mapping[str, str]
    """Own name -> the same without the words of wrappers."""
    full: Mapping[str, str]
    """Own name -> transformers' name with the same prefix, weight norm as `weight_g` and `weight_v`, no wrappers."""
    wrappers: frozenset[str] = frozenset()
    """The words of wrappers in the own names."""
    _under: dict[str, dict[str, TensorName]] = field(default_factory=dict, repr=False)

    @cached_property
    def prefix(self) -> str:
        """Prefix of the (first) encoder's names, as far as one model alone shows it."""
        return self.roots[0] if self.roots else encoder_prefix(self.full.values())

    @cached_property
    def by_prefix(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Each prefix that may be the encoder's -> the shapes by canonical names under it."""
        shapes = {self.full[own]: shape for own, shape in self.shapes.items()}
        return {
            prefix: {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}
            for prefix in self.roots or candidate_prefixes(shapes)
        }

    @cached_property
    def stacks(self) -> dict[str, list[int]]:
        """Stack -> the indexes of its blocks."""
        return blocks_of(name.location for name in self.under().values())

    def under(self, prefix: str | None = None) -> Mapping[str, TensorName]:
        """Return own name -> what the tensor is if the encoder has this prefix (default: `self.prefix`)."""
        prefix = self.prefix if prefix is None else prefix
        if prefix not in self._under:
            self._under[prefix] = self._name_under(prefix)
        return self._under[prefix]

    def module(self, prefix: str) -> str:
        """Return the module whose names have this prefix, by the own names: with wrappers, the innermost of these."""
        under = [own.split(".")[:-1] for own, name in self.full.items() if name.startswith(prefix)]
        path: list[str] = []
        for word, *others in zip(*under, strict=False):
            inside = len(unwrap(".".join([*path, ""]), self.wrappers)) >= len(prefix)
            if {*others} - {word} or (inside and word not in self.wrappers):
                break
            path.append(word)
        return ".".join(path)

    def parameters(self, prefix: str | None = None) -> int:
        """Return the number of parameters that are mixed unasked, if the encoder has this prefix (default: the own)."""
        return sum(prod(self.shapes[own]) for own, name in self.under(prefix).items() if not name.location.stays)

    def _name_under(self, prefix: str) -> dict[str, TensorName]:
        """Locate all tensors together, so that no two stacks have one name."""
        inside = {own: name[len(prefix) :] for own, name in self.full.items() if name.startswith(prefix)}
        parent = prefix[: prefix.rstrip(".").rfind(".") + 1]
        taken = set(inside.values())
        beside = {own: name.removeprefix(parent) for own, name in self.full.items() if own not in inside}
        beside = {own: self.full[own] if name in taken else name for own, name in beside.items()}
        located = locate({name: self.shapes[own] for own, name in (inside | beside).items()})
        branches = {own: _branch(self.full[own], prefix) for own in beside}
        stacks = {branches[own] for own, name in beside.items() if located[name].block is not None}
        kept = {own for own, name in beside.items() if branches[own] in stacks or located[name].stays}
        return {
            own: TensorName(inside[own], located[inside[own]])
            if own in inside
            else TensorName(beside[own], located[beside[own]] if own in kept else HEAD, inside=False)
            for own in self.full
        }


def _branch(name: str, prefix: str) -> str:
    """Return the outermost module that holds a tensor and not the encoder of that prefix."""
    common = 0
    for word in prefix.split("."):
        if not name.startswith(f"{word}.", common):
            break
        common += len(word) + 1
    return name[: name.find(".", common) + 1]


def read_naming(shapes: Mapping[str, tuple[int, ...]]) -> Naming:
    """Detect the layout of a checkpoint or torch module from its names, and name its tensors.

    Args:
        shapes: by the checkpoint's own names.
    """
    wrappers = wrappers_of(shapes)
    unwrapped = {own: unwrap(own, wrappers) for own in shapes}
    for layout in LAYOUTS:
        found = map(layout.MARK.match, unwrapped.values())
        roots = list(dict.fromkeys(mark["root"] for mark in found if mark))
        if roots:
            renamed = _rename(layout, roots, unwrapped.values())
            if len(set(renamed.values())) == len(shapes):
                full = {own: renamed[name] for own, name in unwrapped.items()}
                encoders = tuple(roots) if layout.IS_ENCODER else ()
                return Naming(layout.NAME, encoders, shapes, unwrapped, full, wrappers)
    full = {own: canonical(name) for own, name in unwrapped.items()}
    return Naming(TRANSFORMERS, (), shapes, unwrapped, full, wrappers)


def _rename(layout: Layout, roots: list[str], names: Collection[str]) -> dict[str, str]:
    """Rename what is under each root by the table of that model, and what is beside them by that of heads."""
    owners: dict[str, list[str]] = {root: [] for root in sorted(roots, key=len, reverse=True)}
    renamed = {}
    for name in names:
        root = next((root for root in owners if name.startswith(root)), None)
        if root is None:
            renamed[name] = layout.BESIDE.renamed(name)
        else:
            owners[root].append(name)
    for root, owned in owners.items():
        table = layout.table([name.removeprefix(root) for name in owned])
        renamed |= {name: root + table.renamed(name.removeprefix(root)) for name in owned}
    return {name: canonical(renamed[name]) for name in names}
