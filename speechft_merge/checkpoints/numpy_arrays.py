"""Reads a numpy array that a pickle describes, without numpy's unpickling: its bytes lie in the pickle itself.

Source of the calls: numpy's `_core/src/multiarray/methods.c` (array_reduce) and `descriptor.c` (arraydescr_reduce).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from speechft_merge.checkpoints.dtypes import DType
from speechft_merge.checkpoints.pickle_data import Inert, Symbol, encode, raw_of
from speechft_merge.checkpoints.safetensors import MAX_RANK, is_size

_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")

_DTYPES = {
    "f8": DType.F64, "f4": DType.F32, "f2": DType.F16, "i8": DType.I64, "i4": DType.I32, "i2": DType.I16,
    "i1": DType.I8, "u1": DType.U8, "b1": DType.BOOL,
}  # fmt: skip
"""numpy's codes of element types."""


@dataclass(frozen=True, slots=True)
class ArrayTensor:
    """A numpy array: its elements in memory."""

    dtype: DType
    shape: tuple[int, ...]
    data: bytes | str
    """As numpy pickled them: arrays of one file may share them."""
    fortran: bool
    """Whether the first axis varies fastest; else the last."""
    swapped: bool
    """Whether the bytes of an element stand in reverse."""

    def elements(self) -> memoryview:
        """Return the elements in row-major order, little-endian."""
        data = encode(self.data)
        if not self.fortran and not self.swapped:
            return memoryview(data)
        import numpy as np

        words = np.frombuffer(data, f"u{self.dtype.itemsize}")
        words = words.byteswap() if self.swapped else words
        order = np.ascontiguousarray(words.reshape(self.shape, order="F" if self.fortran else "C"))
        return memoryview(order.reshape(-1).view(np.uint8).data)


def read_array(value: object) -> ArrayTensor | None:
    """Return the array that an object of a pickle is; None if it is none, or one of other elements than numbers."""
    match value:
        case Inert(symbol=Symbol(module, "_reconstruct"), state=(_, shape, dtype, fortran, data)) if module in _MODULES:
            return _array(shape, dtype, bool(fortran), data)
        case Inert(symbol=Symbol(module, "_frombuffer"), arguments=(data, dtype, shape, order)) if module in _MODULES:
            return _array(shape, dtype, order == "F", data)
    return None


def _array(shape: object, dtype: object, fortran: bool, data: object) -> ArrayTensor | None:
    if not isinstance(shape, tuple) or len(shape) > MAX_RANK or not all(map(is_size, shape)):
        return None
    match dtype:
        case Inert(symbol=Symbol("numpy", "dtype"), arguments=(str(code), *_), state=(_, order, *_)):
            kind, swapped = _DTYPES.get(code), order == ">"
        case _:
            return None
    raw = raw_of(data)
    if kind is None or raw is None or len(raw) != math.prod(shape) * kind.itemsize:
        return None
    return ArrayTensor(kind, shape, raw, fortran and len(shape) > 1, swapped)
