"""Reads a tensor that is no range of a file, but made of others, as if it were one."""

from __future__ import annotations

import math
import threading
from abc import abstractmethod
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from speechft_merge.checkpoints.dtypes import DType
from speechft_merge.checkpoints.index import TensorSpan
from speechft_merge.errors import CheckpointError
from speechft_merge.sources import ByteSource

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

LIMIT = 56 << 20
"""Most bytes of such a tensor, and of all that are kept: unlike all others it is made as a whole, kernels with numbers
of 8 bytes on the way. The kernel of XLS-R 1B, the largest that we know of, has 50 MiB."""


class _Recent:
    """What was computed last, up to `LIMIT` bytes in all: most tensors are only looked into before the merge."""

    def __init__(self) -> None:
        self._made: WeakKeyDictionary[ByteSource, memoryview] = WeakKeyDictionary()  # the last one used at its end
        self._lock = threading.Lock()

    def get(self, source: ByteSource) -> memoryview | None:
        with self._lock:
            made = self._made.pop(source, None)
            if made is not None:
                self._made[source] = made
            return made

    def make_room(self, size: int) -> None:
        with self._lock:
            held = list(self._made.items())
            for source, made in held:
                if sum(map(len, self._made.values())) + size <= LIMIT:
                    return
                del self._made[source], made

    def put(self, source: ByteSource, made: memoryview) -> None:
        self.make_room(len(made))
        with self._lock:
            self._made[source] = made


RECENT = _Recent()
"""One for all tensors."""


class _Computed(ByteSource):
    """One tensor's elements, computed when they are read."""

    def __init__(self, name: str, size: int, parts: Sequence[ByteSource], function: Callable[[], memoryview]) -> None:
        self.name, self.size, self.parts = name, size, parts
        self.seeks_cheaply = all(part.seeks_cheaply for part in parts)
        self._function = function
        self._lock = threading.Lock()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > self.size:
            raise CheckpointError(f"{self.name}: bytes past the end of the tensor were requested")
        with self._lock:
            made = RECENT.get(self)
            if made is None:
                RECENT.make_room(self.size)
                made = self._function()
                RECENT.put(self, made)
        buffer[:] = made[offset : offset + len(buffer)]


class ByElement(ByteSource):
    """A tensor that is made element by element: a subclass need not look at the bytes that are asked for."""

    itemsize: int

    @abstractmethod
    def elements(self, first: int, count: int) -> NDArray[Any]:
        """Return elements of `itemsize` bytes: (count,)."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, which need not begin or end with an element."""
        if offset + len(buffer) > self.size:
            raise CheckpointError(f"{self.name}: bytes past the end of the tensor were requested")
        first, last = offset // self.itemsize, -(-(offset + len(buffer)) // self.itemsize)
        made = memoryview(self.elements(first, last - first).view("u1").data)
        buffer[:] = made[offset - first * self.itemsize :][: len(buffer)]


class Derived(ByElement):
    """A tensor of which each element is made of that of another: whoever has read the other need not read it again."""

    def __init__(self, name: str, parent: TensorSpan, others: Sequence[ByteSource]) -> None:
        self.name, self.parent, self.parts = name, parent, (parent.source, *others)
        self.dtype = DType.F64 if parent.dtype is DType.F64 else DType.F32
        self.itemsize = self.dtype.itemsize
        self.size = parent.elements * self.itemsize
        self.seeks_cheaply = parent.source.seeks_cheaply

    @property
    def span(self) -> TensorSpan:
        """The tensor, in float32, or float64 where the other is: nothing is rounded to a half type on the way."""
        return TensorSpan(self, 0, self.dtype, self.parent.shape)

    @abstractmethod
    def change(self, values: NDArray[np.float64], first: int) -> None:
        """Make elements, from number `first` on, of those of the parent, in place."""

    def derive(self, values: NDArray[np.float64], first: int) -> NDArray[Any]:
        """Return elements, from number `first` on, made of those of the parent, which are overwritten."""
        import numpy as np

        with np.errstate(all="ignore"):  # what is not finite is found later, with the tensor's name
            self.change(values, first)
            return values.astype(f"<f{self.itemsize}")

    def elements(self, first: int, count: int) -> NDArray[Any]:
        """Return elements: (count,), float32 or float64."""
        from speechft_merge.checkpoints.rounding import read_numbers

        return self.derive(read_numbers(self.parent, first, count), first)


class _Joined(ByteSource):
    def __init__(self, name: str, parts: Sequence[TensorSpan]) -> None:
        self.name, self.size = name, sum(part.nbytes for part in parts)
        self.parts = [part.source for part in parts]
        self.seeks_cheaply = all(source.seeks_cheaply for source in self.parts)
        self._spans = parts

    def read_into(self, offset: int, buffer: memoryview) -> None:
        start = 0
        for part in self._spans:
            begin, end = max(offset, start), min(offset + len(buffer), start + part.nbytes)
            if begin < end:
                part.source.read_into(part.offset + begin - start, buffer[begin - offset : end - offset])
            start += part.nbytes


def computed(
    name: str, dtype: DType, shape: tuple[int, ...], sources: Sequence[ByteSource], function: Callable[[], memoryview]
) -> TensorSpan:
    """Return a tensor that a function makes when it is read.

    Args:
        name: what to call it in messages.
        dtype: of the elements.
        shape: of the tensor.
        sources: what the function reads.
        function: returns all elements in row-major order, as bytes.

    Raises:
        CheckpointError: it is larger than `LIMIT`.
    """
    size = math.prod(shape) * dtype.itemsize
    if size > LIMIT:
        raise CheckpointError(f"{name}: {size} bytes, at most {LIMIT} can be computed at once")
    return TensorSpan(_Computed(name, size, sources, function), 0, dtype, shape)


class _Widened(ByElement):
    """The elements of a tensor of floats as float32 or float64, which changes no number."""

    def __init__(self, span: TensorSpan, dtype: DType) -> None:
        self.name, self.size = span.source.name, span.elements * dtype.itemsize
        self.seeks_cheaply, self.parts = span.source.seeks_cheaply, (span.source,)
        self._span, self.itemsize = span, dtype.itemsize

    def elements(self, first: int, count: int) -> NDArray[Any]:
        from speechft_merge.checkpoints.rounding import read_numbers

        return read_numbers(self._span, first, count).astype(f"<f{self.itemsize}")


def _widened(span: TensorSpan, dtype: DType) -> TensorSpan:
    return span if span.dtype is dtype else TensorSpan(_Widened(span, dtype), 0, dtype, span.shape)


def joined_rows(name: str, first: TensorSpan, rest: TensorSpan, rows: int) -> TensorSpan:
    """Return a tensor of the shape of `rest` whose first `rows` rows are those of `first`.

    Where their element types differ it has the wider one, and at least float32, which both fit into exactly.
    """
    if first.dtype is not rest.dtype:
        dtype = max(first.dtype, rest.dtype, DType.F32, key=lambda dtype: dtype.itemsize)
        first, rest = _widened(first, dtype), _widened(rest, dtype)
    shape = rest.shape
    head = TensorSpan(first.source, first.offset, first.dtype, (rows, *shape[1:]))
    tail = TensorSpan(rest.source, rest.offset + head.nbytes, rest.dtype, (shape[0] - rows, *shape[1:]))
    return TensorSpan(_Joined(name, (head, tail)), 0, rest.dtype, shape)
