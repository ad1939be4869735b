"""A checksum of weight files that costs a tenth of sha256, and can be made in any order while they are written.

Every 256 KiB of a tensor's bytes give one sum, of their 64-bit words modulo 2^64; the checksum is the sha256 of the
file's header and these sums. It tells damage (bytes lost, zeroed, flipped, blocks swapped), not forgery.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from speechft_merge.checkpoints.safetensors import read_safetensors
from speechft_merge.errors import SpeechFTMergeError
from speechft_merge.sources import LocalFile

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 256 << 10
"""Bytes of a tensor that share a sum. The executor's chunks are multiples of it."""

_READ = 4 * BLOCK


def block_sums(data: memoryview) -> bytes:
    """The sums of each block of `data`, little-endian; the last block is filled up with zeros."""
    import numpy as np

    words, rest = divmod(len(data), 8)
    values = np.frombuffer(data, "<u8", words)
    whole = values[: words // (BLOCK // 8) * (BLOCK // 8)].reshape(-1, BLOCK // 8)
    sums = [np.add.reduce(whole, axis=1)]
    if len(data) % BLOCK:
        tail = np.add.reduce(values[whole.size :]) if words > whole.size else np.uint64(0)
        last = np.frombuffer(bytes(data[words * 8 :]).ljust(8, b"\0"), "<u8")[0] if rest else np.uint64(0)
        sums.append(np.add(np.atleast_1d(tail), last))
    return np.concatenate(sums).astype("<u8").tobytes()


class Checksum:
    """The checksum of a file in the making; `add` may be called by several threads, in any order of offsets."""

    def __init__(self, header: bytes) -> None:
        self._header = header
        self._sums: dict[int, bytes] = {}

    def add(self, offset: int, data: memoryview) -> None:
        """Count in bytes at `offset` of the file, which must begin a block of their tensor."""
        self._sums[offset] = block_sums(data)

    def hexdigest(self) -> str:
        """The checksum of header and sums."""
        digest = hashlib.sha256(self._header)
        for offset in sorted(self._sums):
            digest.update(self._sums[offset])
        return digest.hexdigest()


def checksum_of(path: Path) -> str | None:
    """The checksum of a file on disk; None if it is not a safetensors file, or cannot be read."""
    try:
        source = LocalFile(path)
        tensors, _ = read_safetensors(source)
        start = min((span.offset for span in tensors.values()), default=source.size)
        checksum = Checksum(source.read(0, start))
        for span in tensors.values():
            for done in range(0, span.nbytes, _READ):
                offset = span.offset + done
                checksum.add(offset, memoryview(source.read(offset, min(_READ, span.nbytes - done))))
    except SpeechFTMergeError:
        return None
    source.close()
    return checksum.hexdigest()
