"""What the rest of the program may ask of a file or a folder, wherever it lies."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class ByteSource(Protocol):
    """A file of known size, read by ranges. Safe to use from several threads at once."""

    @property
    def name(self) -> str:
        """What to call it in messages."""

    @property
    def size(self) -> int:
        """Bytes in the file."""

    @property
    def identity(self) -> str | None:
        """What the place it lies in knows as its checksum; None where nothing is known without reading it."""

    @property
    def seeks_cheaply(self) -> bool:
        """Whether many small reads cost next to nothing; over a network each is a request."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes that start at `offset`.

        Raises:
            CheckpointError: the file ends before the buffer is full.
        """

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes that start at `offset`."""

    def close(self) -> None:
        """Release what the source holds; closing twice is no error."""


class Folder(Protocol):
    """A flat listing of files: a directory on disk, or a repository."""

    @property
    def name(self) -> str:
        """What to call it in messages."""

    @property
    def origin(self) -> dict[str, str]:
        """For the manifest: repository, revision and commit; empty for a local folder."""

    def names(self) -> list[str]:
        """Names of the regular files in it, sorted; sub-folders are not listed."""

    def open(self, name: str) -> ByteSource:
        """One of its files."""


class SourceReader(io.RawIOBase):
    """A seekable file object over a `ByteSource`, for parsers that want one (zipfile, pickletools)."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Offset of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; positions before the start are refused as a file would."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size}[whence]
        if origin + offset < 0:
            raise ValueError(f"negative seek position {origin + offset}")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill as much of `buffer` as the file still holds."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._source.size - self._position))
        if count:
            self._source.read_into(self._position, view[:count])
            self._position += count
        return count
