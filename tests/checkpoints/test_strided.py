"""Tensors that are no contiguous range are read as torch reads them, in pieces, and nothing of them is kept."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechft_merge.checkpoints import strided as module
from speechft_merge.checkpoints.computed import RECENT
from speechft_merge.checkpoints.dtypes import DType
from speechft_merge.checkpoints.strided import strided
from speechft_merge.sources import ByteSource, LocalFile


class Remote(ByteSource):
    """Bytes where each read is a request."""

    seeks_cheaply = False

    def __init__(self, content: bytes) -> None:
        self.name, self.size, self.content, self.requests = "remote", len(content), content, 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.requests += 1
        buffer[:] = self.content[offset : offset + len(buffer)]


class Counting(Remote):
    """Bytes on disk, of which those that are read are counted."""

    seeks_cheaply = True
    read_bytes = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.read_bytes += len(buffer)
        super().read_into(offset, buffer)


@st.composite
def views(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    strides = tuple(draw(st.integers(0, 9)) for _ in shape)
    return shape, strides, draw(st.integers(0, 5))


@given(views(), st.sampled_from([1 << 10, 64, 8]), st.data())
def test_any_part_of_any_view_is_what_torch_sees(
    view: tuple[tuple[int, ...], tuple[int, ...], int], block: int, data: st.DataObject
) -> None:
    shape, strides, offset = view
    extent = 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    storage = torch.arange(offset + extent + 3, dtype=torch.int32)
    source = Remote(storage.numpy().tobytes())
    source.seeks_cheaply = True
    span = strided(source, "x", 4 * offset, 4 * extent, DType.I32, shape, strides)
    expected = storage.as_strided(shape, strides, offset).contiguous().numpy().tobytes()
    start = data.draw(st.integers(0, len(expected) - 1))
    stop = data.draw(st.integers(start, len(expected)))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(module, "BLOCK", block)
        assert span.source.read(start, stop - start) == expected[start:stop]


def test_nothing_is_kept_of_what_lies_on_disk(tmp_path: Path) -> None:
    values = np.arange(1 << 18, dtype=np.float32).reshape(512, 512)
    (tmp_path / "file").write_bytes(values.tobytes())
    with LocalFile(tmp_path / "file") as source:
        span = strided(source, "x", 0, values.nbytes, DType.F32, (512, 512), (1, 512))
        assert span.source.read(0, span.nbytes) == values.T.tobytes()
        span.source.require_unchanged()
    assert not RECENT._made


def test_over_a_network_the_bytes_are_fetched_once_and_bounded_in_all() -> None:
    spans = []
    for number in range(10):
        source = Remote(np.full(1 << 22, number, np.float32).tobytes())
        span = strided(source, str(number), 0, source.size, DType.F32, (1 << 11, 1 << 11), (1, 1 << 11))
        for start in range(0, span.nbytes, 1 << 22):
            span.source.read(start, 1 << 22)
        assert source.requests == 1
        spans.append(span)
    assert sum(map(len, RECENT._made.values())) <= module.LIMIT
    del spans, span
    assert not RECENT._made


def test_a_sparse_view_does_not_read_its_whole_span_for_a_few_numbers() -> None:
    """Thirteen axes of two, megabytes apart: read block by block, a file of 58 MB took 75 s."""

    source = Counting(bytes(56 << 20))
    shape, strides = (100, *[2] * 13, 2), (0, *[2 << 20] * 13, (2 << 20) - 8)
    span = strided(source, "x", 0, source.size, DType.F16, shape, strides)
    span.source.read(0, 1 << 20)
    assert source.read_bytes < 64 << 20


def test_a_transposed_matrix_takes_few_reads_though_a_chunk_ends_within_a_row() -> None:
    """Rows that are read number by number cost twenty times the CPU time of a merge."""
    size = 1100
    source = Counting(bytes(4 * size * size))
    span = strided(source, "x", 0, source.size, DType.F32, (size, size), (1, size))
    for start in range(0, span.nbytes, 1 << 20):
        span.source.read(start, min(1 << 20, span.nbytes - start))
    assert source.requests < 50


def test_bytes_past_the_end_are_refused() -> None:
    span = strided(Remote(bytes(64)), "x", 0, 64, DType.F32, (4, 2), (1, 8))
    with pytest.raises(ValueError, match=r"outside the file|past the end"):
        span.source.read_into(math.prod(span.shape) * 4 - 4, memoryview(bytearray(8)))
