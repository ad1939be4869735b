"""Reads the safetensors container: 8 bytes of header length, a JSON header, the tensors without gaps.

Format: https://huggingface.co/docs/safetensors. Parsed here, since the safetensors library gives no offsets; it is the
oracle of the tests.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any, TypeGuard

from speechft_merge.checkpoints.dtypes import DType
from speechft_merge.checkpoints.index import TensorSpan
from speechft_merge.checkpoints.json_text import MAX_TEXT, parse_json
from speechft_merge.errors import CheckpointError, quote

if TYPE_CHECKING:
    from speechft_merge.sources import ByteSource

MAX_RANK = 64
"""Dimensions of a tensor: numpy's bound. Without one a hostile shape makes a product of any length."""


def read_safetensors(source: ByteSource) -> tuple[dict[str, TensorSpan], dict[str, str]]:
    """Index one file.

    Returns:
        The tensors in the order of their bytes, and the file's `__metadata__`.

    Raises:
        CheckpointError: the header does not describe the file.
    """
    header, start = _read_header(source)
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not _is_string_table(metadata):
        raise CheckpointError(f"{source.name}: __metadata__ of a safetensors file must map strings to strings")
    ranges = [_parse_entry(source, name, entry) for name, entry in header.items()]
    ranges.sort(key=lambda r: (r[1], r[2]))
    tensors: dict[str, TensorSpan] = {}
    end = 0
    for name, begin, stop, dtype, shape in ranges:
        if begin != end:
            kind = "overlaps the tensor before it" if begin < end else "leaves a gap before it"
            raise CheckpointError(
                f"{source.name}: {quote(name)} {kind} (bytes {begin} to {stop}, expected to start at {end})"
            )
        tensors[name] = TensorSpan(source, start + begin, dtype, shape)
        end = stop
    if start + end != source.size:
        raise CheckpointError(
            f"{source.name} is {source.size} bytes long but its header describes {start + end}: "
            f"{'cut short' if source.size < start + end else 'bytes after the last tensor'}",
            hint="copy or download it again" if source.size < start + end else None,
        )
    return tensors, metadata


def _read_header(source: ByteSource) -> tuple[dict[str, Any], int]:
    """Read the header; return it with the offset at which the tensors start."""
    if source.size < 8:
        raise CheckpointError(f"{source.name} has {source.size} bytes: too short for a safetensors file")
    (length,) = struct.unpack("<Q", source.read(0, 8))
    if length > min(source.size - 8, MAX_TEXT):
        raise CheckpointError(
            f"{source.name}: a header of {length} bytes in a file of {source.size} (at most {MAX_TEXT} are allowed): "
            "not a safetensors file, or cut short"
        )
    header = parse_json(source.read(8, length), f"{source.name}: the safetensors header", strict=True)
    if not isinstance(header, dict):
        raise CheckpointError(f"{source.name}: the safetensors header is a {type(header).__name__}, expected an object")
    return header, 8 + length


def _is_string_table(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def is_size(value: object) -> TypeGuard[int]:
    """Return whether it is a whole number that a file can count to."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _parse_entry(source: ByteSource, name: str, entry: Any) -> tuple[str, int, int, DType, tuple[int, ...]]:
    """Parse name, begin, end, dtype and shape of a header entry; begin and end count from the first tensor byte."""
    where = f"{source.name}: tensor {quote(name)}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(f"{where} has no dtype, shape and data_offsets")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DType.__members__:
        raise CheckpointError(
            f"{where} has the unknown dtype {quote(entry['dtype'])}",
            hint=f"use one of {', '.join(DType.__members__)}",
        )
    dtype = DType[entry["dtype"]]
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(map(is_size, shape)):
        raise CheckpointError(f"{where} has the shape {quote(shape)}, expected a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_size, offsets)):
        raise CheckpointError(f"{where} has the data_offsets {quote(offsets)}, expected [begin, end]")
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(
            f"{where}: {dtype.name} of shape {quote(shape)} takes {math.prod(shape) * dtype.itemsize} bytes, "
            f"its data_offsets {offsets} give {end - begin}"
        )
    return name, begin, end, dtype, tuple(shape)
