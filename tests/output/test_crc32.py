"""CRC-32 of pieces, against zlib's of the whole."""

from __future__ import annotations

import zlib
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechft_merge.output.crc32 import Pieces, combine


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_the_crc_of_two_messages_is_that_of_both_in_one(first: bytes, second: bytes) -> None:
    assert combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


@pytest.mark.parametrize("length", [0, 1, 4095, 1 << 20, (1 << 20) + 3])
def test_lengths_of_any_size_are_joined(length: int) -> None:
    second = bytes(length)
    assert combine(zlib.crc32(b"head"), zlib.crc32(second), length) == zlib.crc32(b"head" + second)


def test_lengths_above_what_fits_in_memory_are_joined() -> None:
    """Six GiB of zeros, joined from halves in two ways."""
    crcs = {20: zlib.crc32(bytes(1 << 20))}
    for power in range(21, 34):
        crcs[power] = combine(crcs[power - 1], crcs[power - 1], 1 << (power - 1))
    assert combine(crcs[32], crcs[31], 1 << 31) == combine(crcs[31], crcs[32], 1 << 32)


@given(st.binary(min_size=1, max_size=200), st.lists(st.integers(0, 200), max_size=8), st.randoms())
def test_pieces_may_come_in_any_order(content: bytes, cuts: list[int], order: Random) -> None:
    edges = sorted({0, len(content), *(min(cut, len(content)) for cut in cuts)})
    spans = list(pairwise(edges))
    order.shuffle(spans)
    pieces = Pieces()
    pieces.add(0, memoryview(b"before"))
    for start, stop in spans:
        pieces.add(1000 + start, memoryview(content[start:stop]))
    pieces.add(1000 + len(content), memoryview(b"behind"))
    assert pieces.crc_of(1000, len(content)) == zlib.crc32(content)


def test_nothing_has_the_crc_of_nothing() -> None:
    assert Pieces().crc_of(5, 0) == zlib.crc32(b"") == 0
