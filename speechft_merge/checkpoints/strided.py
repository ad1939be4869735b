"""Reads a tensor that is not a contiguous range (transposed, sliced, expanded) as if it were one, in pieces."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from speechft_merge.checkpoints.computed import LIMIT, ByElement, computed
from speechft_merge.checkpoints.dtypes import DType
from speechft_merge.checkpoints.index import TensorSpan
from speechft_merge.errors import CheckpointError, quote

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from speechft_merge.sources import ByteSource

BLOCK = 4 << 20
"""Bytes of a file that are read at once to gather elements out of them."""
SEEK = 64 << 10
"""Bytes that are read in the time that one more read takes: where each wanted element costs more, it is read alone."""


def strided(
    source: ByteSource, name: str, offset: int, extent: int, dtype: DType, shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> TensorSpan:  # fmt: skip
    """Return the tensor whose elements lie in `extent` bytes of a source from `offset` on, in row-major order.

    Nothing of it is kept: a few bytes may be views of any size (expanded), and a merge also reads samples of tensors.
    Over a network the bytes are fetched as a whole, since every piece of a transposed matrix needs most of them.

    Raises:
        CheckpointError: it spans, or takes, more than `LIMIT` bytes.
    """
    if max(extent, math.prod(shape) * dtype.itemsize) > LIMIT:
        raise CheckpointError(
            f"{source.name}: tensor {quote(name)} is not contiguous (shape {quote(list(shape))}, strides "
            f"{quote(list(strides))}) and larger than {LIMIT >> 20} MiB",
            hint="load it with torch, call .contiguous() on it and save the file again",
        )
    label = f"{source.name}: {name}"
    order = tuple(sorted(range(len(shape)), key=lambda axis: -strides[axis]))
    held = TensorSpan(source, offset, dtype, tuple(shape[axis] for axis in order))
    is_permuted = tuple(strides[axis] for axis in order) == _row_major(held.shape)
    if not source.seeks_cheaply:
        whole, start = source, offset
        fetched = computed(label, DType.U8, (extent,), (source,), lambda: memoryview(whole.read(start, extent)))
        source, offset = fetched.source, 0
    made = _Strided(label, source, offset, dtype.itemsize, shape, strides)
    made.held = (held, order) if is_permuted else None
    return TensorSpan(made, 0, dtype, shape)


def as_held(span: TensorSpan) -> tuple[TensorSpan, tuple[int, ...]] | None:
    """Return a transposed tensor as its file holds it, and the order of its axes there; None for any other tensor."""
    return span.source.held if isinstance(span.source, _Strided) and span.nbytes == span.source.size else None


def in_order(span: TensorSpan, order: tuple[int, ...]) -> TensorSpan:
    """Return a tensor with its axes in another order."""
    held = as_held(span)
    if held is not None and held[1] == order:
        return held[0]
    steps, shape = _row_major(span.shape), tuple(span.shape[axis] for axis in order)
    strides = tuple(steps[axis] for axis in order)
    return strided(span.source, "transposed", span.offset, span.nbytes, span.dtype, shape, strides)


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


class _Strided(ByElement):
    held: tuple[TensorSpan, tuple[int, ...]] | None = None
    """The same elements as the file holds them, and the order of the axes there, if they are a range of it."""

    def __init__(
        self, name: str, source: ByteSource, start: int, itemsize: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> None:
        self.name, self.size = name, math.prod(shape) * itemsize
        self.seeks_cheaply, self.parts = source.seeks_cheaply, (source,)
        self._source, self._start, self.itemsize = source, start, itemsize
        self._shape, self._strides = shape, strides

    def elements(self, first: int, count: int) -> NDArray[Any]:
        import numpy as np

        out = np.empty(count, f"u{self.itemsize}")
        self._fill(out, first, self._shape, self._strides, 0)
        return out

    def _fill(
        self, out: NDArray[Any], first: int, shape: tuple[int, ...], strides: tuple[int, ...], element: int
    ) -> None:
        """Write the elements from `first` on of the tensor that begins at an element of the storage."""
        inner = math.prod(shape[1:])
        while len(out):
            row, within = divmod(first, inner)
            begin, rows = element + row * strides[0], len(out) // inner
            if within or not rows:
                count = min(inner - within, len(out))
                self._fill(out[:count], within, shape[1:], strides[1:], begin)
            else:
                count = rows * inner
                self._gather(out[:count].reshape(rows, *shape[1:]), strides, begin)
            out, first = out[count:], first + count

    def _gather(self, out: NDArray[Any], strides: tuple[int, ...], element: int) -> None:
        """Write the elements of a box, which is halved until what it spans can be read at once."""
        import numpy as np

        reach = [(size - 1) * step for size, step in zip(out.shape, strides, strict=True)]
        extent = sum(reach) + 1
        distinct = math.prod(size for size, step in zip(out.shape, strides, strict=True) if step)
        if extent * self.itemsize > min(BLOCK, SEEK * distinct):
            axis = reach.index(max(reach))
            half = out.shape[axis] // 2
            front, back = np.split(out, [half], axis)
            self._gather(front, strides, element)
            self._gather(back, strides, element + half * strides[axis])
            return
        flat = np.empty(extent, out.dtype)
        self._source.read_into(self._start + element * self.itemsize, memoryview(flat.view(np.uint8).data))
        steps = [step * self.itemsize if size > 1 else 0 for size, step in zip(out.shape, strides, strict=True)]
        out[...] = np.lib.stride_tricks.as_strided(flat, out.shape, steps, writeable=False)
