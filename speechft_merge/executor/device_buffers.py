"""Carries out an operation on one chunk on a device of torch: the same steps, and the same bytes, as on the CPU.

A worker has a stream of its own. While one waits for the disk, another's chunk goes up, and a third's comes down.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from speechft_merge.executor.chunk import Buffers, Result
from speechft_merge.executor.device import unusable

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor

    from speechft_merge.checkpoints.dtypes import DType
    from speechft_merge.checkpoints.rounding import Bytes
    from speechft_merge.plan.operations import Operation

DEVICE_CHUNK = 8 << 20
"""Bytes of an input that go up at once: enough to hide the launches. A worker takes 24 MiB of pinned memory for two
inputs, and 88 MiB on the device."""


class DeviceBuffers(Buffers):
    """A worker's memory: pinned on the host, where the files are read to, and its like on the device."""

    xp = torch

    def __init__(self, inputs: int, size: int, device: torch.device) -> None:
        self._device = device
        self._is_cuda = device.type == "cuda"
        try:
            super().__init__(inputs, size)
            self._there = [self._room(size) for _ in range(inputs)]
            self._narrow = self._room(size)
            self._stream = torch.cuda.Stream(device) if self._is_cuda else None  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise unusable(str(device), error) from error

    def _allocate(self, size: int) -> Bytes:
        pinned: Bytes = torch.empty(size, dtype=torch.uint8, pin_memory=self._is_cuda).numpy()
        return pinned

    def _room(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, device=self._device)

    def run(self, operation: Operation, dtype: DType, count: int) -> Result:
        """Make `count` output elements of type `dtype` from the input elements in the buffers.

        Raises:
            DeviceError: the device failed, or has no memory left.
        """
        stream: AbstractContextManager[Any] = contextlib.nullcontext()
        if self._stream is not None:
            stream = torch.cuda.stream(self._stream)
        try:
            with stream:
                return super().run(operation, dtype, count)
        except RuntimeError as error:
            raise unusable(str(self._device), error) from error

    def _numbers(self, i: int, dtype: DType, count: int, real: DType) -> Tensor:
        """Copy elements of input `i` up, and return them as numbers of type `real`."""
        size = count * dtype.itemsize
        there = self._there[i][:size].copy_(torch.from_numpy(self._raw[i][:size]), non_blocking=self._is_cuda)
        values = there.view(torch_type(dtype))
        if dtype is real:
            return values
        widened: Tensor = self._widened[i][: count * real.itemsize].view(torch_type(real))
        return widened.copy_(values)

    def _bytes(self, values: Tensor, dtype: DType) -> memoryview:
        """Copy numbers down as elements of `dtype`."""
        size = len(values) * dtype.itemsize
        if values.dtype is not torch_type(dtype):
            narrowed = self._narrow[:size].view(torch_type(dtype))
            narrow(values, narrowed)
            values = narrowed
        out = self._out[:size]
        torch.from_numpy(out).copy_(values.view(torch.uint8), non_blocking=self._is_cuda)
        if self._stream is not None:
            self._stream.synchronize()
        return memoryview(out.data)


def torch_type(dtype: DType) -> torch.dtype:
    """Return torch's name of an element type."""
    found: torch.dtype = getattr(torch, dtype.torch_name)
    return found


def narrow(values: Tensor, out: Tensor) -> None:
    """Write numbers into `out`, of a type as wide or narrower, rounded once to nearest even.

    torch itself goes from float64 to a half type by way of float32 and rounds twice; rounded to odd first, the second
    rounding errs nowhere, see `rounding`.
    """
    if values.dtype is torch.float64 and out.dtype in (torch.float16, torch.bfloat16):
        values = _round_to_odd(values)
    out.copy_(values)


def _round_to_odd(values: Tensor) -> Tensor:
    single = values.float()
    back = single.double()
    zero = torch.zeros((), dtype=single.dtype, device=single.device)
    toward_zero = torch.where(back.abs() > values.abs(), torch.nextafter(single, zero), single)
    inexact = toward_zero.double() != values
    return (toward_zero.view(torch.int32) | inexact.int()).view(torch.float32)
