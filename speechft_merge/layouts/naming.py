"""Detects a checkpoint's layout and names its tensors: canonical name, part, stack, block, head or not."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, NamedTuple, Protocol

from speechft_merge.layouts import fairseq, torchaudio
from speechft_merge.layouts.prefixes import encoder_prefix
from speechft_merge.layouts.structure import HEAD, Location, blocks_of, locate
from speechft_merge.layouts.weight_norm import canonical

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
    BESIDE: Table
    """Names of heads beside the encoder."""

    def table(self, names: Collection[str], /) -> Table:
        """Return the table of its names without prefix, against transformers'."""


LAYOUTS: tuple[Layout, ...] = (fairseq, torchaudio)


class TensorName(NamedTuple):
    """What one tensor of a checkpoint is."""

    canonical: str
    """transformers' name without the encoder's prefix, weight norm as `weight_g` and `weight_v`. Of a head beside the
    encoder: without the prefix before the encoder, unless that is the name of one of the encoder's tensors."""
    location: Location

    @property
    def is_head(self) -> bool:
        """Whether it belongs to a head and not to the encoder (or decoder)."""
        return self.location.is_head


@dataclass(frozen=True)
class Naming:
    """The names of one checkpoint, and what they mean; made once, see `read_naming`."""

    layout: str
    """`transformers`, `fairseq` or `torchaudio`."""
    roots: tuple[str, ...]
    """Prefix of each encoder's names (a file may have a teacher and a student); empty if the layout does not tell
    (transformers' own)."""
    shapes: Mapping[str, tuple[int, ...]]
    """Own name -> shape."""
    full: Mapping[str, str]
    """Own name -> transformers' name with the same prefix, weight norm as `weight_g` and `weight_v`."""
    _under: dict[str, dict[str, TensorName]] = field(default_factory=dict, repr=False)

    @cached_property
    def prefix(self) -> str:
        """Prefix of the (first) encoder's names, as far as one model alone shows it."""
        return self.roots[0] if self.roots else encoder_prefix(self.full.values())

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

    def parameters(self, prefix: str | None = None) -> int:
        """Return the number of parameters outside of heads if the encoder has this prefix (default: `self.prefix`)."""
        return sum(prod(self.shapes[own]) for own, name in self.under(prefix).items() if not name.is_head)

    def _name_under(self, prefix: str) -> dict[str, TensorName]:
        inside = {own: name[len(prefix) :] for own, name in self.full.items() if name.startswith(prefix)}
        locations = locate({name: self.shapes[own] for own, name in inside.items()})
        parent = prefix[: prefix.rstrip(".").rfind(".") + 1]
        named = {}
        for own, name in self.full.items():
            if own in inside:
                named[own] = TensorName(inside[own], locations[inside[own]])
            else:
                beside = name.removeprefix(parent)
                named[own] = TensorName(name if beside in locations else beside, HEAD)
        return named


def read_naming(shapes: Mapping[str, tuple[int, ...]]) -> Naming:
    """Detect the layout of a checkpoint or torch module from its names, and name its tensors.

    Args:
        shapes: by the checkpoint's own names.
    """
    for layout in LAYOUTS:
        roots = list(dict.fromkeys(found["root"] for found in map(layout.MARK.match, shapes) if found))
        if roots:
            full = _rename(layout, roots, shapes)
            if len(set(full.values())) == len(shapes):
                return Naming(layout.NAME, tuple(roots), shapes, full)
    return Naming(TRANSFORMERS, (), shapes, {name: canonical(name) for name in shapes})


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
