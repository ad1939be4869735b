"""Reads a tensor that is not a contiguous range (transposed, sliced, expanded) as if it were one."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

from speechft_merge.errors import CheckpointError, quote
from speechft_merge.sources import ByteSource

if TYPE_CHECKING:
    from speechft_merge.checkpoints.dtypes import DType

LIMIT = 64 << 20
"""Most bytes that such a tensor may span or take: unlike all others it is gathered in memory."""


class StridedTensor(ByteSource):
    """A `ByteSource` of one tensor's elements in row-major order.

    The elements are gathered at the first read and freed after the last of them is read.
    """

    def __init__(
        self, source: ByteSource, name: str, offset: int, extent: int, dtype: DType, shape: tuple[int, ...],
        strides: tuple[int, ...],
    ) -> None:  # fmt: skip
        self.size = math.prod(shape) * dtype.itemsize
        self.name = f"{source.name}: {name}"
        if max(extent, self.size) > LIMIT:
            raise CheckpointError(
                f"{source.name}: tensor {quote(name)} is not contiguous (shape {quote(list(shape))}, strides "
                f"{quote(list(strides))}) and larger than {LIMIT >> 20} MiB",
                hint="load it with torch, call .contiguous() on it and save the file again",
            )
        self.seeks_cheaply = source.seeks_cheaply
        self._source, self._offset, self._extent = source, offset, extent
        self._dtype, self._shape, self._strides = dtype, shape, strides
        self._lock = threading.Lock()
        self._gathered: memoryview | None = None
        self._unread = self.size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the gathered bytes that start at `offset`."""
        with self._lock:
            if self._gathered is None:
                self._gathered, self._unread = self._gather(), self.size
            if offset + len(buffer) > self.size:
                raise CheckpointError(f"{self.name}: bytes past the end of the tensor were requested")
            buffer[:] = self._gathered[offset : offset + len(buffer)]
            self._unread -= len(buffer)
            if self._unread <= 0:
                self._gathered = None

    def close(self) -> None:
        """Free the gathered elements; the file's owner closes it."""
        self._gathered = None

    def _gather(self) -> memoryview:
        import numpy as np

        word = np.dtype(f"u{self._dtype.itemsize}")
        flat = np.frombuffer(self._source.read(self._offset, self._extent), word)
        steps = [step * word.itemsize if size > 1 else 0 for size, step in zip(self._shape, self._strides, strict=True)]
        view = np.lib.stride_tricks.as_strided(flat, self._shape, steps, writeable=False)
        return memoryview(np.ascontiguousarray(view).reshape(-1).view(np.uint8).data)
