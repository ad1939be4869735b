"""The CRC-32 of a range of a file that is written in pieces of any order: zlib has no way to join those of two pieces.

A CRC is the remainder of a polynomial over GF(2); to put n zero bytes behind a message is to multiply it by x^(8n).
Source of the arithmetic: zlib's crc32_combine.
"""

from __future__ import annotations

import zlib
from functools import lru_cache

_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31  # bits run from x^0 at the top to x^31


def combine(first: int, second: int, length: int) -> int:
    """The CRC of two messages one after the other, from theirs and the bytes of the second."""
    return _product(_shift(length), first) ^ second


class Pieces:
    """The CRCs of pieces, by their place in the file. `add` may be called by several threads."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[int, int]] = {}

    def add(self, offset: int, data: memoryview) -> None:
        """Count in bytes at `offset`."""
        self._found[offset] = zlib.crc32(data), len(data)

    def crc_of(self, offset: int, length: int) -> int:
        """The CRC of `length` bytes at `offset`, which pieces must fill without a gap."""
        crc, position = 0, offset
        while position < offset + length:
            piece, size = self._found[position]
            crc, position = combine(crc, piece, size), position + size
        assert position == offset + length
        return crc


def _product(a: int, b: int) -> int:
    """Of two polynomials, modulo that of CRC-32."""
    product, bit = 0, _ONE
    while bit:
        if a & bit:
            product ^= b
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
        bit >>= 1
    return product


@lru_cache(maxsize=256)
def _shift(length: int) -> int:
    """x^(8 * length)."""
    power, square, exponent = _ONE, _ONE >> 1, 8 * length
    while exponent:
        if exponent & 1:
            power = _product(square, power)
        square, exponent = _product(square, square), exponent >> 1
    return power
