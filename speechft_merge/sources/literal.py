"""Offers bytes that are at hand as if they were a file."""

from __future__ import annotations

from speechft_merge.errors import CheckpointError
from speechft_merge.sources.base import ByteSource


class Literal(ByteSource):
    """Some bytes in memory."""

    seeks_cheaply = True

    def __init__(self, name: str, content: bytes) -> None:
        self.name, self.content, self.size = name, content, len(content)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes that start at `offset`."""
        stop = offset + len(buffer)
        if stop > self.size:
            raise CheckpointError(f"{self.name} has {self.size} bytes; at least {stop} were expected")
        buffer[:] = memoryview(self.content)[offset:stop]
