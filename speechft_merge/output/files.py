"""Lays out the files of the output: which there are, and what is where in them. Pure, and exact to the byte."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechft_merge.output.crc32 import Record
    from speechft_merge.plan.operations import Segment
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
    segments: tuple[Segment, ...]
    """Segments in the order of the file, which they fill from the header to the end."""
    size: int
    records: tuple[Record, ...] = ()
    """Records of a zip whose CRC-32 must be renewed."""
    rest_digest: str = ""
    """sha256 that identifies what the file holds beside header and tensors; empty if it holds nothing else."""


@dataclass(frozen=True, slots=True)
class OutputFiles:
    """The weights of the output, down to the byte."""

    files: tuple[OutputFile, ...]
    index: bytes | None = None
    """The index of shards; None for a single file."""

    @property
    def size(self) -> int:
        """Bytes of all weight files."""
        return sum(file.size for file in self.files)

    @property
    def read_bytes(self) -> int:
        """Bytes that must be read for them."""
        return sum(span.nbytes for file in self.files for segment in file.segments for span in segment.operation.inputs)

    @property
    def digest(self) -> str:
        """sha256 that identifies their layout, and what they hold beside tensors."""
        parts = (file.name.encode() + b"\0" + file.header + file.rest_digest.encode() for file in self.files)
        return hashlib.sha256(b"".join(parts)).hexdigest()


def lay_out_safetensors(tensors: Sequence[PlannedTensor], max_shard_size: int | None = None) -> OutputFiles:
    """Cut the tensors into safetensors files in their order, each at most `max_shard_size` bytes of tensors.

    As huggingface_hub cuts them: a tensor larger than that has a file to itself.
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
        return OutputFiles((_lay_out(SINGLE, groups[0]),))
    names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    files = tuple(_lay_out(name, group) for name, group in zip(names, groups, strict=True))
    weight_map = {segment.name: file.name for file in files for segment in file.segments}
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors)}, "weight_map": dict(sorted(weight_map.items()))}
    return OutputFiles(files, (json.dumps(index, indent=2) + "\n").encode())


def _lay_out(name: str, tensors: Sequence[PlannedTensor]) -> OutputFile:
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
    segments = tuple(tensor.at(len(header) + start) for tensor, start in zip(tensors, starts, strict=True))
    return OutputFile(name, header, segments, len(header) + position)
