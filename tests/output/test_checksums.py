"""Checksums of weight files: XXH3 of the whole file, made while it is written in whatever pieces."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save, save_file
from xxhash import xxh3_128

from speechft_merge.output.checksums import Checksum, checksum_of

if TYPE_CHECKING:
    from random import Random


BLOCK = 256 << 10


class Written:
    """A file in memory, with the checksum that is made of it."""

    def __init__(self, size: int) -> None:
        self.content = bytearray(size)
        self.checksum = Checksum(lambda offset, length: bytes(self.content[offset : offset + length]))

    def write(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data
        self.checksum.add(offset, memoryview(data))


@pytest.mark.parametrize("size", [0, 1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 3])
def test_a_checksum_made_while_writing_is_that_of_the_file(size: int, tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    path = tmp_path / "model.safetensors"
    path.write_bytes(save({"odd": data[:5], "weight": data}))
    content = path.read_bytes()
    start = len(content) - size - len(data[:5])
    made = Written(len(content))
    made.write(0, content[:start])
    order = [name for name in json.loads(content[8:start]) if name != "__metadata__"]
    for name in reversed(order):
        begin, end = (start + offset for offset in json.loads(content[8:start])[name]["data_offsets"])
        for offset in range(begin, end, BLOCK):
            made.write(offset, content[offset : min(offset + BLOCK, end)])
    assert made.checksum.hexdigest() == checksum_of(path) == xxh3_128(content).hexdigest()


@pytest.mark.parametrize("place", [0, 8, 30, 200, BLOCK // 2, BLOCK + 500, -9, -1])
def test_a_checksum_tells_a_changed_byte_wherever_it_is(place: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": np.ones(BLOCK // 3, np.float32), "b": np.zeros(3, np.uint8)}, path)
    before, content = checksum_of(path), bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert checksum_of(path) != before


def test_a_checksum_tells_swapped_blocks_and_zeroed_pages(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    values = np.random.default_rng(0).standard_normal(BLOCK).astype(np.float32)
    swapped, zeroed = values.copy(), values.copy()
    swapped[: BLOCK // 4], swapped[BLOCK // 4 : BLOCK // 2] = values[BLOCK // 4 : BLOCK // 2], values[: BLOCK // 4]
    zeroed[1024:2048] = 0
    found = set()
    for version in (values, swapped, zeroed):
        save_file({"weight": version}, path)
        found.add(checksum_of(path))
    assert len(found) == 3


@given(st.binary(min_size=40, max_size=60), st.lists(st.integers(0, 60), max_size=6), st.randoms())
def test_a_checksum_is_the_same_in_whatever_pieces_and_order(content: bytes, cuts: list[int], random: Random) -> None:
    """Also where a piece is empty."""
    edges = sorted([0, len(content), *(min(cut, len(content)) for cut in cuts)])
    spans = list(itertools.pairwise(edges))
    random.shuffle(spans)
    made = Written(len(content))
    for start, stop in spans:
        made.write(start, content[start:stop])
    assert made.checksum.hexdigest() == xxh3_128(content).hexdigest()


def test_the_standard_tool_prints_the_same_checksum(tmp_path: Path) -> None:
    tool = shutil.which("xxhsum")
    if tool is None:
        pytest.skip("xxhsum is not installed")
    (tmp_path / "file").write_bytes(bytes(range(256)) * 5000)
    ran = subprocess.run([tool, "-H2", "file"], cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True)
    assert ran.stdout.split()[0] == checksum_of(tmp_path / "file")


def test_any_file_has_a_checksum_and_none_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    assert checksum_of(tmp_path / "file") is not None
    assert checksum_of(tmp_path / "missing") is None
