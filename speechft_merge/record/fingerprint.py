"""Identifies the weights of an input without reading all of them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from speechft_merge.checkpoints.index import Checkpoint


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return a sha256 over every tensor's name, type and shape and over a little of its data.

    It differs between checkpoints that any training separates, at the cost of small reads; a checksum of the whole
    file would cost more than the merge. For files on the Hub, the Hub's own checksums are taken.
    """
    known = [source.identity for source in checkpoint.sources]
    if all(known):
        return hashlib.sha256("\n".join(map(str, known)).encode()).hexdigest()
    digest = hashlib.sha256()
    for name, span in sorted(checkpoint.tensors.items()):
        digest.update(f"{name}\0{span.dtype.name}\0{list(span.shape)}\0".encode())
        count = min(256, span.nbytes)
        for offset in (0, (span.nbytes - count) // 2, span.nbytes - count):
            digest.update(span.source.read(span.offset + offset, count))
    return digest.hexdigest()
