"""Carries out an operation on one chunk of its inputs, in a worker's own buffers; here on the CPU, with numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from speechft_merge.checkpoints.dtypes import DType
from speechft_merge.checkpoints.rounding import NUMPY, narrow, widen
from speechft_merge.executor.arithmetic import mix
from speechft_merge.executor.drift import NO_DRIFT, Drift
from speechft_merge.executor.finite import all_finite, fits, is_finite
from speechft_merge.plan.operations import Copy
from speechft_merge.plan.stock import BLOCK, dots

if TYPE_CHECKING:
    from speechft_merge.checkpoints.rounding import Bytes
    from speechft_merge.executor.arithmetic import Array
    from speechft_merge.plan.operations import Interpolate, Operation, Segment
    from speechft_merge.plan.stock import Dots

CHUNK = 1 << 20
"""Bytes of an input read at once: enough to hide the system call, few enough to stay in a core's cache. Smaller chunks
of half types would stay there when widened, too, but cost more than that saves in calls, each of which releases the
interpreter's lock and takes it back."""


def most_elements(segment: Segment, size: int) -> int:
    """Return how many elements of a segment a chunk of `size` bytes can have."""
    return size // max(segment.dtype.itemsize, *(span.dtype.itemsize for span in segment.operation.inputs))


def widened_size(size: int) -> int:
    """Return the bytes that a chunk takes as numbers: a half type's in float64 are the most, in float32 it is half."""
    return 4 * size


class Result(NamedTuple):
    """What became of a chunk."""

    out: memoryview
    """The output bytes, valid until the buffers are used again."""
    drift: Drift
    """Zeros for a copy."""
    finite: bool
    """Whether inputs, output and drift all are; the drift of large inputs may not be."""


class Buffers:
    """A worker's memory, used again for every chunk: fresh memory costs a page fault every 4 KiB."""

    xp: Any = np
    """What computes, see `arithmetic`."""

    def __init__(self, inputs: int, size: int) -> None:
        self.size = size
        """Most bytes of a chunk of an input, and of the output."""
        self._raw = [self._allocate(size) for _ in range(inputs)]
        self._out = self._allocate(size)
        self._widened = [self._room(widened_size(size)) for _ in range(inputs)]
        self.inputs = [memoryview(raw.data) for raw in self._raw]
        """Where to read the elements of each input to."""

    def _allocate(self, size: int) -> Bytes:
        """Return memory that files are read to and written from."""
        return np.empty(size, np.uint8)

    def _room(self, size: int) -> Array:
        """Return memory to compute in."""
        return np.empty(size, np.uint8)

    def run(self, operation: Operation, dtype: DType, count: int) -> Result:
        """Make `count` output elements of type `dtype` from the input elements in the buffers."""
        if isinstance(operation, Copy) and operation.span.dtype is dtype:
            return self._copy(dtype, count)
        with np.errstate(all="ignore"):
            if isinstance(operation, Copy):
                return self._convert(operation.span.dtype, dtype, count)
            return self._mix(operation, dtype, count)

    def dots(self, operation: Interpolate, count: int) -> list[Dots]:
        """Return the dot products of the differences in the buffers, block by block, computed here on every device."""
        found = []
        for start in range(0, count, BLOCK):
            numbers = [np.empty(min(BLOCK, count - start), np.float64) for _ in operation.inputs]
            for raw, span, values in zip(self._raw, operation.inputs, numbers, strict=False):
                size = span.dtype.itemsize
                widen(raw[start * size : (start + len(values)) * size], span.dtype, values)
            with np.errstate(all="ignore"):
                found.append(dots(numbers[0], numbers[1:]))
        return found

    def _copy(self, dtype: DType, count: int) -> Result:
        raw = self._raw[0][: count * dtype.itemsize]
        return Result(memoryview(raw.data), NO_DRIFT, not dtype.interpolated or all_finite(raw, dtype))

    def _convert(self, read: DType, dtype: DType, count: int) -> Result:
        values = self._numbers(0, read, count, _real((read,)))
        finite = fits(values, dtype)
        return Result(self._bytes(values, dtype), NO_DRIFT, finite)

    def _mix(self, operation: Interpolate, dtype: DType, count: int) -> Result:
        dtypes = tuple(span.dtype for span in operation.inputs)
        real = _real(dtypes)
        numbers = [self._numbers(i, read, count, real) for i, read in enumerate(dtypes)]
        values, drift = mix(self.xp, operation, numbers)
        finite = is_finite(operation, dtype, values, drift)
        return Result(self._bytes(values, dtype), drift, finite)

    def _numbers(self, i: int, dtype: DType, count: int, real: DType) -> Array:
        """Return elements of input `i` as numbers of type `real`: in the buffer itself if it holds that type."""
        raw = self._raw[i][: count * dtype.itemsize]
        if dtype is real:
            return raw.view(NUMPY[real])
        values = self._widened[i][: count * real.itemsize].view(NUMPY[real])
        widen(raw, dtype, values)
        return values

    def _bytes(self, values: Array, dtype: DType) -> memoryview:
        """Return numbers as elements of `dtype`: in their own memory if they are of that type."""
        if values.dtype.type is NUMPY.get(dtype):
            return memoryview(values.view(np.uint8).data)
        out = self._out[: len(values) * dtype.itemsize]
        narrow(values, dtype, out)
        return memoryview(out.data)


def _real(dtypes: tuple[DType, ...]) -> DType:
    """Return the type of the arithmetic."""
    return DType.F64 if DType.F64 in dtypes else DType.F32
