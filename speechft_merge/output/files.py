"""Describes the weight files of an output, to the byte."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from speechft_merge.output.crc32 import Record
    from speechft_merge.plan.operations import Segment


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
