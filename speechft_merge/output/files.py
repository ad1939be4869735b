"""Which files the output consists of, and where in them each tensor stands: pure, and exact to the byte."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechft_merge.checkpoints.torch_zip import Record
    from speechft_merge.plan.plan import PlannedTensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ALIGNMENT = 4096
"""Bytes; the header is padded to it with spaces, which the format allows, so that tensors start on a page."""


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file of weights."""

    name: str
    header: bytes
    tensors: tuple[tuple[PlannedTensor, int], ...]
    """Each with its offset in the file."""
    size: int
    records: tuple[Record, ...] = ()
    """Of a zip: those whose CRC-32 has to be made anew."""
    pattern: str = ""
    """sha256 that stands for what the file has beside its header and tensors; empty if that is nothing."""


@dataclass(frozen=True, slots=True)
class Outline:
    """The weights of the output, down to the byte."""

    files: tuple[OutputFile, ...]
    index: bytes | None
    """The index of shards; None for a single file."""

    @property
    def size(self) -> int:
        """Bytes of all weight files."""
        return sum(file.size for file in self.files)

    @property
    def read_bytes(self) -> int:
        """Bytes that must be read for them."""
        return sum(span.nbytes for file in self.files for tensor, _ in file.tensors for span in tensor.inputs)

    @property
    def digest(self) -> str:
        """sha256 over names, headers and patterns."""
        told = (file.name.encode() + b"\0" + file.header + file.pattern.encode() for file in self.files)
        return hashlib.sha256(b"".join(told)).hexdigest()


def make_outline(tensors: Sequence[PlannedTensor], max_shard_size: int | None = None) -> Outline:
    """Cut the tensors into files in their order, each at most `max_shard_size` bytes of tensors.

    As huggingface_hub cuts them: a tensor that is larger than that has a file to itself.
    """
    groups: list[list[PlannedTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if max_shard_size is not None and groups[-1] and filled + tensor.nbytes > max_shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    if len(groups) == 1:
        return Outline((_make_file(SINGLE, groups[0]),), None)
    names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    files = tuple(_make_file(name, group) for name, group in zip(names, groups, strict=True))
    weight_map = {tensor.name: file.name for file in files for tensor, _ in file.tensors}
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors)}, "weight_map": dict(sorted(weight_map.items()))}
    return Outline(files, (json.dumps(index, indent=2) + "\n").encode())


def _make_file(name: str, tensors: Sequence[PlannedTensor]) -> OutputFile:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file that lacks it
    starts = []
    position = 0
    for tensor in tensors:
        starts.append(position)
        entries[tensor.name] = {
            "dtype": tensor.dtype.name,
            "shape": tensor.shape,
            "data_offsets": [position, position + tensor.nbytes],
        }
        position += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    header = struct.pack("<Q", len(text)) + text
    placed = tuple((tensor, len(header) + start) for tensor, start in zip(tensors, starts, strict=True))
    return OutputFile(name, header, placed, len(header) + position)
