"""Reads a part of a file as if it were a file of its own."""

from __future__ import annotations

from speechft_merge.errors import CheckpointError
from speechft_merge.sources.base import ByteSource


class Window(ByteSource):
    """The bytes of another source from `offset` on; it does not own that source."""

    def __init__(self, source: ByteSource, offset: int, size: int, label: str) -> None:
        self.source, self.offset, self.size = source, offset, size
        self.name = label
        self.seeks_cheaply, self.parts = source.seeks_cheaply, (source,)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes that start at `offset` of the window."""
        stop = offset + len(buffer)
        if offset < 0 or stop > self.size:
            raise CheckpointError(f"{self.name} has {self.size} bytes; bytes {offset} to {stop} were expected")
        self.source.read_into(self.offset + offset, buffer)
