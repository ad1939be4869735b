"""One worker's buffers, and what it does to one chunk of a tensor once the chunk has been read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from speechft_merge.checkpoints.dtypes import DType
from speechft_merge.checkpoints.elements import OVERFLOW, all_finite, narrow, widen
from speechft_merge.executor.arithmetic import Sums, interpolate, squares

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from speechft_merge.plan.plan import PlannedTensor

CHUNK = 1 << 20
"""Bytes of an input read at once: enough to hide the system call, few enough to stay in a core's cache."""

BLOCK = 1 << 19
"""Elements worked on at once, a whole chunk of half types: smaller blocks would stay in the cache, but cost more than
that saves in calls, each of which lets the interpreter's lock go and takes it back."""


class Lane:
    """Buffers of one thread, used again for every chunk: fresh memory costs a page fault every 4 KiB."""

    def __init__(self, inputs: int) -> None:
        self._raw = [np.empty(CHUNK, np.uint8) for _ in range(inputs)]
        self._out = np.empty(CHUNK, np.uint8)
        self._work = [np.empty(BLOCK * 8, np.uint8) for _ in range(inputs + 1)]
        self.buffers = [memoryview(raw.data) for raw in self._raw]

    def run(self, tensor: PlannedTensor, count: int) -> tuple[memoryview, Sums]:
        """Make `count` output elements of the input elements that stand in the buffers.

        Returns:
            The output bytes, valid until the next call, and the sums of squares; these are not finite where an input or
            the output is not, or where squaring overflowed.
        """
        if tensor.single is not None:
            return self._copy(tensor, count)
        with np.errstate(all="ignore"):
            return self._mix(tensor, count)

    def _copy(self, tensor: PlannedTensor, count: int) -> tuple[memoryview, Sums]:
        assert tensor.single is not None
        dtype = tensor.single.dtype
        raw = self._raw[0][: count * dtype.itemsize]
        if not dtype.interpolated:
            return memoryview(raw.data), Sums(0.0, 0.0, False)
        sums = Sums(0.0 if all_finite(raw, dtype) else math.nan, 0.0, False)
        if dtype is tensor.dtype:
            return memoryview(raw.data), sums
        out = self._out[: count * tensor.dtype.itemsize]
        with np.errstate(all="ignore"):
            for start in range(0, count, BLOCK):
                stop = min(start + BLOCK, count)
                values = self._numbers(0, dtype, start, stop, _real((dtype,)))
                sums = Sums(sums.base + self._narrow(values, tensor.dtype, start, stop, risky=True), 0.0, False)
        return memoryview(out.data), sums

    def _mix(self, tensor: PlannedTensor, count: int) -> tuple[memoryview, Sums]:
        dtypes = tuple(span.dtype for span in tensor.inputs)
        real = _real(dtypes)
        in_place = {*dtypes, tensor.dtype} == {DType.F32 if real is np.float32 else DType.F64}
        alpha = tensor.alpha
        assert alpha is not None
        risky = not (0 <= alpha <= 1 and {*dtypes} == {tensor.dtype})  # else the result lies between the inputs
        base_squares = delta_squares = overflow = 0.0
        changed = False
        for start in range(0, count, BLOCK):
            stop = min(start + BLOCK, count)
            base, *finetuned = (self._numbers(i, dtype, start, stop, real) for i, dtype in enumerate(dtypes))
            sums = interpolate(base, finetuned, tensor.weights, alpha)
            base_squares += sums.base
            delta_squares += sums.delta
            changed |= sums.changed
            if not in_place:
                overflow += self._narrow(finetuned[0], tensor.dtype, start, stop, risky)
        out = (self._raw[1] if in_place else self._out)[: count * tensor.dtype.itemsize]
        return memoryview(out.data), Sums(base_squares + overflow, delta_squares, changed)

    def _numbers(self, i: int, dtype: DType, start: int, stop: int, real: type[Any]) -> NDArray[Any]:
        """Elements of input `i` as numbers: the buffer itself if it holds that type, else a work array."""
        raw = self._raw[i][start * dtype.itemsize : stop * dtype.itemsize]
        if dtype is (DType.F32 if real is np.float32 else DType.F64):
            numbers: NDArray[Any] = raw.view(real)
            return numbers
        values: NDArray[Any] = self._work[i].view(real)[: stop - start]
        widen(raw, dtype, values)
        return values

    def _narrow(self, values: NDArray[Any], dtype: DType, start: int, stop: int, risky: bool) -> float:
        """Into the output buffer; nan if the numbers do not fit the type, else 0."""
        overflow = 0.0
        if (
            risky and dtype in OVERFLOW and not squares(values) < OVERFLOW[DType.F16] ** 2
        ):  # one cheap pass rules out most cases
            overflow = 0.0 if float(np.abs(values).max(initial=0)) < OVERFLOW[dtype] else math.nan
        out = self._out[start * dtype.itemsize : stop * dtype.itemsize]
        narrow(values, dtype, out, self._work[-1].view(values.dtype)[: stop - start])
        return overflow


def _real(dtypes: tuple[DType, ...]) -> type[Any]:
    """The type of the arithmetic."""
    return np.float64 if DType.F64 in dtypes else np.float32
