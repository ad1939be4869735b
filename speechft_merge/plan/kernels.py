"""Brings together a kernel that one side has in two parts (weight norm) and the other folded into one.

The kernel is `v * g / ||v||` (torch.nn.utils.parametrizations.weight_norm), the norm over every axis but that of g.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from speechft_merge.checkpoints.computed import computed
from speechft_merge.layouts.weight_norm import WeightNorm, find_weight_norms
from speechft_merge.plan.operations import Copy, Interpolate
from speechft_merge.plan.stock import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speechft_merge.checkpoints.index import Checkpoint, TensorSpan
    from speechft_merge.layouts.alignment import Alignment
    from speechft_merge.plan.operations import Operation

_PIECE = 1 << 20
"""Numbers that are rounded at once."""

Kernels = dict[str, WeightNorm]
"""Name of a folded kernel -> the parts that it stands for."""


def split_kernels(alignment: Alignment) -> set[str]:
    """Return the canonical names of the kernels that one of two models has in parts and the other folded."""
    ours = {name.canonical for name in alignment.base_names.values()}
    theirs = {name.canonical for name in alignment.finetuned_names.values()}
    return {
        name[:-2]
        for mine, other in ((ours, theirs), (theirs, ours))
        for name in mine
        if name.endswith("_g") and f"{name[:-2]}_v" in mine and name[:-2] in other and name[:-2] not in mine
    }


def fold(checkpoint: Checkpoint, canonical: Mapping[str, str], wanted: set[str]) -> tuple[Checkpoint, Kernels]:
    """Return a checkpoint with the wanted kernels folded, and which these are.

    Args:
        checkpoint: the model.
        canonical: own -> canonical names.
        wanted: canonical names of kernels.
    """
    parts = {
        name: found
        for name, found in find_weight_norms(canonical).items()
        if name in wanted and _fits(checkpoint.tensors[found.g], checkpoint.tensors[found.v])
    }
    if not parts:
        return checkpoint, {}
    kernels = {found.kernel: found for found in parts.values()}
    lost = {name for found in parts.values() for name in (found.g, found.v)}
    tensors = {name: span for name, span in checkpoint.tensors.items() if name not in lost}
    tensors |= {name: _folded(checkpoint.tensors[p.g], checkpoint.tensors[p.v], name) for name, p in kernels.items()}
    return replace(checkpoint, tensors=tensors), kernels


def unfold(operation: Operation, g: TensorSpan, v: TensorSpan, name: str) -> tuple[Operation, Operation]:
    """Return what makes the two parts of a kernel: its norms as g, and the kernel itself as v.

    Args:
        operation: what makes the kernel; where it is not mixed, the parts stay as they are.
        g: the norms of the model that has them.
        v: likewise its directions.
        name: what g is called.
    """
    if isinstance(operation, Interpolate):
        return Copy(_norms(operation, g, name)), operation
    return Copy(g), Copy(v)


def _fits(g: TensorSpan, v: TensorSpan) -> bool:
    """Return whether two tensors can be the parts of one kernel."""
    sizes = len(g.shape) == len(v.shape) and all(a in (1, b) for a, b in zip(g.shape, v.shape, strict=True))
    return sizes and g.dtype.interpolated and v.dtype.interpolated


def _folded(g: TensorSpan, v: TensorSpan, name: str) -> TensorSpan:
    def make() -> memoryview:
        kernel = _numbers(v)
        kernel *= _numbers(g) / _norm(kernel, g.shape)
        return _encode(kernel, v)

    return computed(f"{v.source.name}: {name}", v.dtype, v.shape, (g.source, v.source), make)


def _norms(mixed: Interpolate, g: TensorSpan, name: str) -> TensorSpan:
    """Return the norms of a mixed kernel, in the shape and type of g."""

    def make() -> memoryview:
        kernel = _numbers(mixed.base)
        mean: Any = None
        operation = resolve(mixed)
        for term in operation.terms:
            delta = _numbers(term.span)
            delta -= kernel
            delta *= term.weight
            mean = delta if mean is None else mean + delta
        mean *= operation.alpha
        kernel += mean
        return _encode(_norm(kernel, g.shape), g)

    sources = [span.source for span in mixed.inputs]
    return computed(f"{g.source.name}: {name}", g.dtype, g.shape, sources, make)


def _norm(kernel: Any, shape: tuple[int, ...]) -> Any:
    """Return the norm over every axis in which g has one element."""
    import numpy as np

    axes = list(range(kernel.ndim))
    kept = [axis for axis, size in zip(axes, shape, strict=True) if size != 1]
    return np.sqrt(np.einsum(kernel, axes, kernel, axes, kept)).reshape(shape)


def _numbers(span: TensorSpan) -> Any:
    from speechft_merge.checkpoints.rounding import read_numbers

    return read_numbers(span, 0, span.elements).reshape(span.shape)


def _encode(values: Any, like: TensorSpan) -> memoryview:
    import numpy as np

    from speechft_merge.checkpoints.rounding import narrow

    out = np.empty((values.size, like.dtype.itemsize), np.uint8)
    flat = values.reshape(-1)
    for start in range(0, values.size, _PIECE):
        piece = flat[start : start + _PIECE]
        narrow(piece, like.dtype, out[start : start + _PIECE].reshape(-1))
    return memoryview(out.reshape(-1).data)
