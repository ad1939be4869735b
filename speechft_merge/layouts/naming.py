"""Which naming scheme a checkpoint follows, told by its names, and what transformers would call each tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from speechft_merge.layouts import fairseq, torchaudio

if TYPE_CHECKING:
    import re
    from collections.abc import Collection, Iterable

    from speechft_merge.layouts.table import Table

TRANSFORMERS = "transformers"
"""Also what a checkpoint is taken for that follows no other scheme."""


class Layout(Protocol):
    """A module of this folder that describes one naming scheme."""

    NAME: str
    MARK: re.Pattern[str]
    HEADS: Table

    def table(self, names: Collection[str], /) -> Table:
        """Its names without prefix, against transformers'."""


LAYOUTS: tuple[Layout, ...] = (fairseq, torchaudio)


@dataclass(frozen=True, slots=True)
class Naming:
    """A checkpoint's names, and those that transformers would give."""

    layout: str
    roots: tuple[str, ...]
    """What stands before the encoder's names, of each encoder if the file has several (teacher and student); empty if
    the scheme does not tell (transformers' own)."""
    names: dict[str, str]
    """The file's own name -> transformers', with the same prefix."""


def read_naming(names: Iterable[str]) -> Naming:
    """Tell the scheme by the names."""
    names = list(names)
    for layout in LAYOUTS:
        roots = list(dict.fromkeys(found["root"] for found in map(layout.MARK.match, names) if found))
        if roots:
            renamed = _rename(layout, roots, names)
            if len(set(renamed.values())) == len(names):
                return Naming(layout.NAME, tuple(roots), renamed)
    return Naming(TRANSFORMERS, (), {name: name for name in names})


def _rename(layout: Layout, roots: list[str], names: list[str]) -> dict[str, str]:
    """Names under each root by the table of that model; those beside them by the table of heads."""
    owners: dict[str, list[str]] = {root: [] for root in sorted(roots, key=len, reverse=True)}
    renamed = {}
    for name in names:
        root = next((root for root in owners if name.startswith(root)), None)
        if root is None:
            renamed[name] = layout.HEADS.renamed(name)
        else:
            owners[root].append(name)
    for root, owned in owners.items():
        table = layout.table([name.removeprefix(root) for name in owned])
        renamed |= {name: root + table.renamed(name.removeprefix(root)) for name in owned}
    return {name: renamed[name] for name in names}
