"""A tensor is a byte range: what opening a checkpoint yields, without a weight being read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from speechft_merge.checkpoints.dtypes import DType
    from speechft_merge.checkpoints.labs import Origin
    from speechft_merge.sources import ByteSource, Folder, HubOrigin


@dataclass(frozen=True, slots=True)
class TensorSpan:
    """One tensor in row-major order: `elements * dtype.itemsize` bytes of `source` from `offset` on."""

    source: ByteSource
    offset: int
    dtype: DType
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a 0-dimensional tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes."""
        return self.elements * self.dtype.itemsize

    @property
    def place(self) -> tuple[int, int, int]:
        """Equal for tied tensors (one storage under two names) and for nothing else that is not empty."""
        return id(self.source), self.offset, self.nbytes


@dataclass(slots=True)
class Checkpoint:
    """The index of one model: every tensor's place, and what else the files hold."""

    reference: str
    container: str
    """How it is stored: `safetensors`, `torch zip`, `torch legacy`; `sharded ...` when in several files."""
    tensors: dict[str, TensorSpan]
    sources: list[ByteSource]
    metadata: dict[str, str] = field(default_factory=dict)
    """safetensors' own `__metadata__`."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Tensors that are no plain byte range, each with the reason: sparse, quantized, ..."""
    state_path: str = ""
    """Where in a pickled file the state dict was found; empty when it is the whole file."""
    others: dict[str, str] = field(default_factory=dict)
    """What else a pickled file holds, each described in a few words."""
    origin: Origin | None = None
    """The lab whose file it is; None for any other."""
    file: str = ""
    """The file, or the index of shards, that was opened."""
    folder: Folder | None = None
    """The model directory, for config.json and its like; None for a lone file that has no such company."""

    @property
    def parameters(self) -> int:
        """Elements of all tensors, tied ones counted once."""
        return sum({span.place: span.elements for span in self.tensors.values()}.values())

    @property
    def hub(self) -> HubOrigin | None:
        """Where on the Hub it lies; None for a local model."""
        return self.folder.hub if self.folder is not None else None

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every file."""
        for source in self.sources:
            source.close()
