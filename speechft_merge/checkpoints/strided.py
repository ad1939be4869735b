"""Reads a tensor that is not a contiguous range (transposed, sliced, expanded) as if it were one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from speechft_merge.checkpoints.computed import LIMIT, computed
from speechft_merge.errors import CheckpointError, quote

if TYPE_CHECKING:
    from speechft_merge.checkpoints.dtypes import DType
    from speechft_merge.checkpoints.index import TensorSpan
    from speechft_merge.sources import ByteSource


def strided(
    source: ByteSource, name: str, offset: int, extent: int, dtype: DType, shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> TensorSpan:  # fmt: skip
    """Return the tensor whose elements lie in `extent` bytes of a source from `offset` on, in row-major order.

    Raises:
        CheckpointError: it spans, or takes, more than `LIMIT` bytes.
    """
    if max(extent, math.prod(shape) * dtype.itemsize) > LIMIT:
        raise CheckpointError(
            f"{source.name}: tensor {quote(name)} is not contiguous (shape {quote(list(shape))}, strides "
            f"{quote(list(strides))}) and larger than {LIMIT >> 20} MiB",
            hint="load it with torch, call .contiguous() on it and save the file again",
        )

    def gather() -> memoryview:
        import numpy as np

        word = np.dtype(f"u{dtype.itemsize}")
        flat = np.frombuffer(source.read(offset, extent), word)
        steps = [step * word.itemsize if size > 1 else 0 for size, step in zip(shape, strides, strict=True)]
        view = np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)
        return memoryview(np.ascontiguousarray(view).reshape(-1).view(np.uint8).data)

    return computed(f"{source.name}: {name}", dtype, shape, (source,), gather)
