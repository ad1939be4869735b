"""Computes a checksum of weight files that costs a tenth of sha256, in any order while they are written.

Every 256 KiB of the file give one sum, of their 64-bit words modulo 2^64; the checksum is the sha256 of these sums. It
detects damage (bytes lost, zeroed, flipped, blocks swapped), not forgery.
"""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING

from speechft_merge.errors import SpeechFTMergeError
from speechft_merge.sources import LocalFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from speechft_merge.record.manifest import OutputEntry

BLOCK = 256 << 10
"""Bytes of the file that share a sum."""

_READ = 4 * BLOCK
_MODULUS = 1 << 64


def block_sums(offset: int, data: memoryview) -> Iterator[tuple[int, int]]:
    """Yield what `data`, at `offset` of the file, adds to which block: (block, sum of little-endian words)."""
    while data:
        block, within = divmod(offset, BLOCK)
        piece = data[: BLOCK - within]
        yield block, _word_sum(offset % 8, piece)
        data, offset = data[len(piece) :], offset + len(piece)


def _word_sum(lead: int, data: memoryview) -> int:
    """Sum the words of bytes that begin at byte `lead` of a word; missing bytes of a word count as zeros."""
    import numpy as np

    head = data[: -lead % 8]
    words, rest = divmod(len(data) - len(head), 8)
    middle = int(np.add.reduce(np.frombuffer(data, "<u8", words, len(head)))) if words else 0
    tail = bytes(data[len(data) - rest :]) if rest else b""
    return middle + (int.from_bytes(bytes(head), "little") << 8 * lead) + int.from_bytes(tail, "little")


class Checksum:
    """The checksum of a file that is being written; several threads may add its bytes, in pieces of any order."""

    def __init__(self) -> None:
        self._sums: dict[int, int] = {}
        self._lock = threading.Lock()

    def add(self, offset: int, data: memoryview) -> None:
        """Add bytes at `offset` of the file, each exactly once."""
        self._change(offset, data, 1)

    def remove(self, offset: int, data: memoryview) -> None:
        """Remove bytes that are about to be overwritten."""
        self._change(offset, data, -1)

    def _change(self, offset: int, data: memoryview, sign: int) -> None:
        sums = list(block_sums(offset, data))
        with self._lock:
            for block, total in sums:
                self._sums[block] = (self._sums.get(block, 0) + sign * total) % _MODULUS

    def hexdigest(self) -> str:
        """Return the sha256 of the sums, in order of their blocks."""
        digest = hashlib.sha256()
        for block in range(max(self._sums, default=-1) + 1):
            digest.update(self._sums.get(block, 0).to_bytes(8, "little"))
        return digest.hexdigest()


def checksum_of(path: Path) -> str | None:
    """Return the checksum of a file on disk; None if it cannot be read."""
    checksum = Checksum()
    try:
        with LocalFile(path) as source:
            for offset in range(0, source.size, _READ):
                checksum.add(offset, memoryview(source.read(offset, min(_READ, source.size - offset))))
    except SpeechFTMergeError:
        return None
    return checksum.hexdigest()


def matches(folder: Path, entry: OutputEntry) -> bool:
    """Return whether a weights file in a folder has the size and the checksum of its entry in a manifest."""
    path = folder / entry.file
    try:
        return path.parent == folder and path.stat().st_size == entry.size and checksum_of(path) == entry.checksum
    except OSError:
        return False
