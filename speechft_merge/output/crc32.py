"""Updates the CRC-32s of a zip whose records change: where they are, which change, and the CRC of joined pieces.

A merge writes a record in pieces of any order, and zlib has no way to join the CRCs of two pieces. A CRC is the
remainder of a polynomial over GF(2); to put n zero bytes behind a message is to multiply it by x^(8n). Source of the
arithmetic: zlib's crc32_combine.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_left, bisect_right
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from speechft_merge.checkpoints.torch_zip import locate_records, open_archive

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from speechft_merge.sources import ByteSource

_DESCRIPTORS = {12: 0, 16: 4, 20: 0, 24: 4}
"""Bytes of a data descriptor -> bytes in it before the CRC."""
_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31  # bits run from x^0 at the top to x^31


class Record(NamedTuple):
    """A stored record, and where the archive keeps its CRC-32."""

    offset: int
    size: int
    crc_offsets: tuple[int, ...]
    """Offsets of the CRCs: 4 bytes each, little-endian."""

    @property
    def end(self) -> int:
        """Offset after its last byte."""
        return self.offset + self.size

    def moved(self, by: int) -> Record:
        """Return it in a file that has the archive at offset `by`."""
        return Record(self.offset + by, self.size, tuple(offset + by for offset in self.crc_offsets))


def read_records(source: ByteSource) -> tuple[tuple[Record, ...], bytes]:
    """Read the directory of a file that `read_torch_zip` has read.

    Returns:
        The records in the directory's order, and the directory's bytes: these hold the names, sizes and CRCs of all
        records, and so identify their content.
    """
    archive = open_archive(source)
    entries, directory = archive.infolist(), archive.start_dir
    located = locate_records(source, entries, directory)
    starts = sorted([directory, *(entry.header_offset for entry in entries)])
    content = source.read(directory, source.size - directory)
    records, position = [], 0
    for entry in entries:
        name_length, extra_length, comment_length = struct.unpack_from("<3H", content, position + 28)
        offset, size = located[entry.filename.partition("/")[2]]
        gap = starts[bisect_right(starts, entry.header_offset)] - (offset + size)
        if entry.flag_bits & 8:  # then it is in a descriptor after the data, which may begin with a signature
            inner = [offset + size + lead for length, lead in _DESCRIPTORS.items() if length == gap]
        else:
            inner = [entry.header_offset + 14]
        records.append(Record(offset, size, (*inner, directory + position + 16)))
        position += 46 + name_length + extra_length + comment_length
    return tuple(records), content


def changed_records(records: Iterable[Record], offsets: Sequence[int]) -> tuple[Record, ...]:
    """Return the records that hold one of the offsets, which must be sorted, at which other bytes are written."""
    return tuple(r for r in records if bisect_left(offsets, r.offset) < bisect_left(offsets, r.end))


class Pieces:
    """The CRCs of the pieces of a file, by their offsets. `add` may be called by several threads."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[int, int]] = {}

    def add(self, offset: int, data: memoryview) -> None:
        """Add bytes at `offset`."""
        self._found[offset] = zlib.crc32(data), len(data)

    def crc_of(self, offset: int, length: int) -> int:
        """Return the CRC of `length` bytes at `offset`, which pieces must fill without a gap."""
        crc, position = 0, offset
        while position < offset + length:
            piece, size = self._found[position]
            crc, position = combine(crc, piece, size), position + size
        assert position == offset + length
        return crc

    def renewed(self, records: Iterable[Record]) -> Iterator[tuple[int, bytes]]:
        """Yield the bytes of the CRCs of records, each at its offset in the file."""
        for record in records:
            crc = self.crc_of(record.offset, record.size).to_bytes(4, "little")
            yield from ((offset, crc) for offset in record.crc_offsets)


def combine(first: int, second: int, length: int) -> int:
    """Return the CRC of two messages in a row, from that of each and the length of the second in bytes."""
    return _product(_shift(length), first) ^ second


def _product(a: int, b: int) -> int:
    """Multiply two polynomials, modulo that of CRC-32."""
    product, bit = 0, _ONE
    while bit:
        if a & bit:
            product ^= b
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
        bit >>= 1
    return product


@lru_cache(maxsize=256)
def _shift(length: int) -> int:
    """Return x^(8 * length)."""
    power, square, exponent = _ONE, _ONE >> 1, 8 * length
    while exponent:
        if exponent & 1:
            power = _product(square, power)
        square, exponent = _product(square, square), exponent >> 1
    return power
