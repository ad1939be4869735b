"""Cuts an output into shards, and lays each out as a safetensors file. Pure, and exact to the byte."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

from speechft_merge.output.files import OutputFile, OutputFiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechft_merge.plan.plan import PlannedTensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ALIGNMENT = 4096
"""Bytes; the header is padded to it with spaces, which the format allows, so that tensors start on a page."""


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
