"""Defines the index of a checkpoint: every tensor is a byte range, and no weight is read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from speechft_merge.layouts.naming import Naming, read_naming
from speechft_merge.layouts.structure import is_decoder
from speechft_merge.sources.reference import at_commit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    def storage_key(self) -> tuple[int, int, int]:
        """Equal for tied tensors (one storage under two names) and for nothing else that is not empty."""
        return id(self.source), self.offset, self.nbytes


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that stands for a fine-tune."""

    tensors: Mapping[str, TensorSpan]
    """What its file holds."""
    changes: Mapping[str, tuple[float, bool]]
    """Weight -> the factor of its change, and whether that is transposed."""


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint:
    """The index of one model: where every tensor is, and what else the files hold. Closes its files on exit.

    Args:
        reference: what it was opened by.
        container: how it is stored: `safetensors`, `torch zip`, `torch legacy`, these two also `... in tar` (NVIDIA's
            `.nemo`); `sharded ...` when in several files.
        tensors: name -> where its bytes are.
        sources: its files.
        file: the file, or the index of shards, that was opened.
        folder: the model directory, for config.json and its like; None for a single file without these.
        metadata: safetensors' own `__metadata__`.
        unreadable: tensors that are not a plain byte range, each with the reason: sparse, quantized, ...
        state_path: where in a pickled file the state dict was found; empty when it is the whole file.
        others: what else a pickled file holds, each described in a few words.
        modules: paths of whole pickled modules beside the state dict; they cannot be read without running their code.
        stale: path in a pickled file -> what is there that belongs to these weights: an optimizer's state, a copy.
        origin: the lab whose file it is; None for any other.
        picked: the encoder that the reference picks: `student` of `last.ckpt#student`; empty for the whole.
        alternatives: path of each other dictionary of tensors in a pickled file -> the model that it holds.
        adapter: what was made into a whole model, if its file holds an adapter; see `adapters`.
    """

    reference: str
    container: str
    tensors: Mapping[str, TensorSpan]
    sources: Sequence[ByteSource]
    file: str = ""
    folder: Folder | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    state_path: str = ""
    others: Mapping[str, str] = field(default_factory=dict)
    modules: Sequence[str] = ()
    stale: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    origin: Origin | None = None
    picked: str = ""
    alternatives: Mapping[str, Checkpoint] = field(default_factory=dict)
    adapter: Adapter | None = None

    def __repr__(self) -> str:
        name = self.reference if len(self.reference) < 50 else f"...{self.reference[-46:]}"
        return f"<Checkpoint {name!r}: {len(self.tensors)} tensors, {self.parameters:,} parameters>"

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of each tensor."""
        return {name: span.shape for name, span in self.tensors.items()}

    @cached_property
    def naming(self) -> Naming:
        """What each tensor is, by the names and shapes."""
        return read_naming(self.shapes)

    @property
    def held(self) -> Mapping[str, TensorSpan]:
        """What its own files hold: an adapter's tensors, not those of the model that it stands for."""
        return self.adapter.tensors if self.adapter is not None else self.tensors

    @property
    def parameters(self) -> int:
        """Elements of all tensors that its files hold, tied ones counted once."""
        return sum({span.storage_key: span.elements for span in self.held.values()}.values())

    @property
    def is_named_file(self) -> bool:
        """Whether its reference names the file of the weights, and not the folder that they are in."""
        return bool(self.file) and self.reference.removesuffix(f"#{self.picked}").endswith(self.file)

    @property
    def hub(self) -> HubOrigin | None:
        """Where on the Hub it is; None for a local model."""
        return self.folder.hub if self.folder is not None else None

    @property
    def encoder_spans(self) -> list[TensorSpan]:
        """The tensors of its encoder, without heads and decoders."""
        names = self.naming.under().items()
        return [
            self.tensors[own]
            for own, name in names
            if name.inside and not name.location.stays and not is_decoder(name.location.stack)
        ]

    @property
    def pinned(self) -> str:
        """Its reference, on the Hub with the commit that was opened."""
        return at_commit(self.reference, self.hub)

    def close(self) -> None:
        """Close every file; closing twice is allowed."""
        for source in self.sources:
            source.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
