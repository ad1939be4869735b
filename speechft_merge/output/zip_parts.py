"""Makes the parts of a zip of stored records that are not content: the header before each, and the directory.

Source of the format: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3 (zip64). Records are aligned as torch does.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from speechft_merge.checkpoints.torch_zip import ALIGNMENT

CRC_IN_HEADER = 14
CRC_IN_ENTRY = 16
"""Bytes before the CRC-32 in a header, and in an entry of the directory."""

_HEADER = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_VERSION, _VERSION_64 = 20, 45
_UTF8 = 0x800
_NEW_YEAR_1980 = 33
_LARGE, _MANY = 0xFFFFFFFF, 0xFFFF
_ZIP64, _PADDING = 1, int.from_bytes(b"FB", "little")
"""Kinds of extra fields: large sizes, and torch's bytes for alignment."""


class Entry(NamedTuple):
    """A stored record."""

    name: str
    size: int
    crc: int
    start: int
    """Offset of its header."""

    @property
    def _named(self) -> tuple[int, bytes]:
        return (0 if self.name.isascii() else _UTF8), self.name.encode()

    def header(self) -> bytes:
        """Return its header, of a length that puts the content at a multiple of torch's alignment."""
        flags, name = self._named
        large = self.size >= _LARGE
        extra = struct.pack("<2H2Q", _ZIP64, 16, self.size, self.size) if large else b""
        padding = -(self.start + _HEADER.size + len(name) + len(extra) + 4) % ALIGNMENT
        extra += struct.pack("<2H", _PADDING, padding) + b"Z" * padding
        size, version = (_LARGE, _VERSION_64) if large else (self.size, _VERSION)
        fields = version, flags, 0, 0, _NEW_YEAR_1980, self.crc, size, size, len(name), len(extra)
        return _HEADER.pack(b"PK\3\4", *fields) + name + extra

    def entry(self) -> bytes:
        """Return its entry in the directory."""
        flags, name = self._named
        numbers = [self.size, self.size, self.start]
        large = [number for number in numbers if number >= _LARGE]
        extra = struct.pack(f"<2H{len(large)}Q", _ZIP64, 8 * len(large), *large) if large else b""
        size, _, start = (min(number, _LARGE) for number in numbers)
        version = _VERSION_64 if large else _VERSION
        fields = (version, version, flags, 0, 0, _NEW_YEAR_1980, self.crc, size, size, len(name), len(extra))
        return _ENTRY.pack(b"PK\1\2", *fields, 0, 0, 0, 0, start) + name + extra


def end_of_directory(count: int, start: int, size: int) -> bytes:
    """Return what ends a zip.

    Args:
        count: entries of the directory.
        start: offset of the directory.
        size: bytes of the directory.
    """
    numbers = count, count, size, start
    end_64 = _END_64.pack(b"PK\6\6", _END_64.size - 12, _VERSION_64, _VERSION_64, 0, 0, *numbers)
    locator = _LOCATOR.pack(b"PK\6\7", 0, start + size, 1)
    capped = min(count, _MANY), min(count, _MANY), min(size, _LARGE), min(start, _LARGE)
    return end_64 + locator + _END.pack(b"PK\5\6", 0, 0, *capped, 0)
