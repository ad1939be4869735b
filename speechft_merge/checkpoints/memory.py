"""Indexes a model that is loaded: the tensors of torch, on any device, are read like those of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from speechft_merge.checkpoints.dtypes import DType
from speechft_merge.checkpoints.index import Checkpoint, TensorSpan
from speechft_merge.errors import CheckpointError, quote
from speechft_merge.sources import ByteSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

DTYPES: dict[torch.dtype, DType] = {getattr(torch, dtype.torch_name): dtype for dtype in DType}


class TensorSource(ByteSource):
    """The elements of a tensor in row-major order."""

    seeks_cheaply = True

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name, self.tensor = name, tensor.detach()
        self.size = tensor.nbytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes that start at `offset`."""
        if offset + len(buffer) > self.size:
            raise CheckpointError(f"{self.name}: bytes past the end of the tensor were requested")
        raw = self.tensor.reshape(-1).view(torch.uint8)[offset : offset + len(buffer)]
        buffer[:] = raw.cpu().numpy().data


def index_tensors(reference: str, tensors: Mapping[str, Tensor]) -> Checkpoint:
    """Index a state dict; views of the same elements count as tied.

    Raises:
        CheckpointError: a tensor has no elements in memory, or they are of a type or in an order that is not known.
    """
    spans: dict[object, TensorSpan] = {}
    indexed = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(
                f"{reference}: {quote(name)} is of type {type(tensor).__name__}",
                hint="give the state dict itself, all of whose values are tensors of torch",
            )
        dtype = DTYPES.get(tensor.dtype)
        if dtype is None or tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
            kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise CheckpointError(f"{reference}: tensor {name!r} cannot be read ({kind})")
        place = tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
        key = place if tensor.numel() else name
        if key not in spans:
            spans[key] = TensorSpan(TensorSource(f"{reference}: {name}", tensor), 0, dtype, tuple(tensor.shape))
        indexed[name] = spans[key]
    if not indexed:
        raise CheckpointError(f"{reference} holds no tensors")
    return Checkpoint(reference, "memory", indexed, [span.source for span in spans.values()])
