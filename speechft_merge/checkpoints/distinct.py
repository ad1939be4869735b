"""Tells whether two checkpoints are one and the same, however they were called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speechft_merge.errors import UsageError
from speechft_merge.sources.local import LocalFile

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from speechft_merge.checkpoints.index import Checkpoint
    from speechft_merge.sources import ByteSource


def require_distinct(models: Sequence[Checkpoint]) -> None:
    """Refuse the same model twice: nothing would be mixed, or one fine-tune would count for two.

    Two models in one file are distinct, as are two copies of one.

    Args:
        models: base and fine-tunes.

    Raises:
        UsageError: the tensors of two are the same bytes of the same files.
    """
    seen: dict[Hashable, str] = {}
    for checkpoint in models:
        files = frozenset(map(_identity, checkpoint.sources))  # a tensor need not be a range of one
        spans = frozenset((_identity(span.source), span.offset) for span in checkpoint.tensors.values())
        place = files, checkpoint.state_path, spans
        if place in seen:
            first, again = seen[place], checkpoint.reference
            raise UsageError(
                f"{first} and {again} are the same model" if first != again else f"{first} is given twice",
                hint="give the base first, then one or more fine-tunes of it, each once",
            )
        seen[place] = checkpoint.reference


def _identity(source: ByteSource) -> Hashable:
    """Return what is equal for two openings of one file: links and relative paths lead to the same one."""
    return (source.status.st_dev, source.status.st_ino) if isinstance(source, LocalFile) else source.name
