"""Compares the content of a file with the checksum that the Hub has of it."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from speechft_merge.sources.base import ByteSource

_READ = 4 << 20


def has_checksum(identity: str | None) -> bool:
    """Return whether the content of a file can be compared with what identifies it."""
    return re.fullmatch("[0-9a-f]{64}|[0-9a-f]{40}", identity or "") is not None


def has_content(source: ByteSource) -> bool:
    """Read a file whole; return whether its content is what its identity says."""
    pieces = (source.read(start, min(_READ, source.size - start)) for start in range(0, source.size, _READ))
    return is_content(source.identity or "", source.size, pieces)


def is_content(identity: str, size: int, pieces: Iterable[bytes]) -> bool:
    """Return whether a content has a checksum: the sha256 of LFS, or git's own sha1 of a blob.

    Args:
        identity: the checksum, see `has_checksum`.
        size: bytes of the content.
        pieces: the content, one piece after the other.
    """
    digest = hashlib.sha256() if len(identity) == 64 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest() == identity
