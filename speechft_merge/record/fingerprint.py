"""What identifies the weights of an input, without reading all of them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from speechft_merge.checkpoints.index import Checkpoint


def fingerprint(checkpoint: Checkpoint) -> str:
    """sha256 over every tensor's name, type and shape and over a little of its data.

    It tells checkpoints apart that any training separates, at the cost of some small reads. It is no checksum of the
    whole file: that would cost more than the merge. Of files on the Hub, the checksums that the Hub has are taken.
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
