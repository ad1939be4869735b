"""Carries out an operation of a plan on torch, into a tensor that is there: to the bytes that a file would get."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from speechft_merge.checkpoints.memory import TensorSource
from speechft_merge.executor.arithmetic import add_share, choose_side, mix
from speechft_merge.executor.device_buffers import narrow, torch_type
from speechft_merge.plan.operations import Copy, Interpolate
from speechft_merge.plan.stock import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from speechft_merge.checkpoints.index import TensorSpan
    from speechft_merge.plan.operations import Operation


def write_into(target: Tensor, operation: Operation, load: Callable[[TensorSpan], Tensor]) -> None:
    """Write what an operation makes, rounded to the target's type.

    Where all is of one type it takes no other memory, and half of the time.

    Args:
        target: of as many elements as the operation has.
        operation: of a plan.
        load: returns the elements of a span as a tensor.
    """
    if isinstance(operation, Interpolate):
        operation = resolve(operation)
    inputs = [load(span).to(target.device).reshape(target.shape) for span in operation.inputs]
    types, real = {tensor.dtype for tensor in inputs}, _real(inputs)
    if isinstance(operation, Copy):
        narrow(inputs[0], target)
    elif len(inputs) == 2 and operation.terms[0].weight == 1 and types == {real} == {target.dtype}:
        from_finetuned, factor = choose_side([1.0], operation.alpha)
        start, other = reversed(inputs) if from_finetuned else inputs
        torch.subtract(start, other, out=target)
        add_share(torch, start, target, factor, target)
    else:
        values, _ = mix(torch, operation, [tensor.to(real, copy=True).reshape(-1) for tensor in inputs])
        narrow(values.reshape(target.shape), target)


def _real(inputs: Sequence[Tensor]) -> torch.dtype:
    """Return the type of the arithmetic."""
    return torch.float64 if any(tensor.dtype is torch.float64 for tensor in inputs) else torch.float32


def load_tensor(span: TensorSpan) -> Tensor:
    """Return the elements of a span: the very tensor of a loaded model, or what is read, or computed of several."""
    source = span.source
    if isinstance(source, TensorSource) and (span.offset, span.nbytes) == (0, source.size):
        return source.tensor
    raw = torch.frombuffer(bytearray(source.read(span.offset, span.nbytes)), dtype=torch_type(span.dtype))
    return raw.reshape(span.shape).to(device_of(span))


def device_of(span: TensorSpan) -> torch.device:
    """Return where the elements of a span are, or the first of what they are computed of; of a file the CPU."""
    source = span.source
    while not isinstance(source, TensorSource) and source.parts:
        source = source.parts[0]
    return source.tensor.device if isinstance(source, TensorSource) else torch.device("cpu")
