"""Defines what a file and a folder offer to the rest of the program, on disk or on the Hub."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from speechft_merge.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import WriteableBuffer


class ByteSource(ABC):
    """A file of known size, read by ranges. Safe to use from several threads at once; closes itself on exit."""

    name: str
    """Its name in messages."""
    size: int
    """Bytes in the file."""
    identity: str | None = None
    """Checksum known without reading the file (the Hub's etag), or None."""
    seeks_cheaply: bool
    """Whether many small reads cost next to nothing; over a network each is a request."""
    parts: Sequence[ByteSource] = ()
    """What it is computed from; empty for a file."""

    @abstractmethod
    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes that start at `offset`.

        Raises:
            CheckpointError: the file ends before the buffer is full.
        """

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes that start at `offset`.

        Raises:
            CheckpointError: they lie outside the file; checked before memory is allocated.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise CheckpointError(
                f"{self.name}: bytes {offset} to {offset + length} lie outside the file ({self.size} bytes)"
            )
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def require_unchanged(self) -> None:
        """Check that it is still what was opened.

        Raises:
            TemporaryError: it is not.
        """
        for part in self.parts:
            part.require_unchanged()

    def close(self) -> None:  # noqa: B027
        """Release what the source holds; closing twice is allowed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class HubOrigin:
    """A repository on the Hub, pinned to a commit."""

    repo: str
    revision: str
    commit: str
    license: str | None
    """The licence that its card states."""


class Folder(Protocol):
    """A listing of files: a directory on disk, or a repository."""

    @property
    def name(self) -> str:
        """Its name in messages."""

    @property
    def hub(self) -> HubOrigin | None:
        """Where on the Hub it is; None for a local folder."""

    def names(self, inner: str = "") -> list[str]:
        """Return the names of the regular files in it, sorted; of one of its folders, with that before each name."""

    def folders(self, inner: str = "") -> list[str]:
        """Return the names of the folders in it, sorted; or of those in one of its folders."""

    def inside(self, name: str) -> str:
        """Return what a user types for one of its files or folders."""

    def leads_out(self, name: str) -> bool:
        """Return whether one of its files is a link to somewhere else."""

    def open(self, name: str) -> ByteSource:
        """Open one of its files."""


MAX_READ = 64 << 20
"""Bytes that a parser may ask for at once; no pickle or directory of a zip is larger."""


class SourceReader(io.BufferedReader):
    """A seekable file object over a `ByteSource`, for parsers that want one (zipfile, pickletools).

    It allocates no memory for what the file does not hold: a hostile file may claim a string of any length.
    """

    def __init__(self, source: ByteSource, most: int = MAX_READ) -> None:
        super().__init__(_RawReader(source), 1 << 16)
        self._size, self._most = source.size, most

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to `size` bytes.

        Raises:
            ValueError: `size` is more than was allowed at first.
        """
        left = max(0, self._size - self.tell())
        size = left if size is None or size < 0 else min(size, left)
        if size > self._most:
            raise ValueError(f"{size} bytes were requested at once, at most {self._most} are allowed")
        return super().read(size)

    def readline(self, size: int | None = -1, /) -> bytes:
        """Read a line; one above `MAX_READ` bytes is cut off."""
        return super().readline(MAX_READ)


class _RawReader(io.RawIOBase):
    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size}[whence]
        if origin + offset < 0:
            raise ValueError(f"negative seek position {origin + offset}")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._source.size - self._position))
        if count:
            self._source.read_into(self._position, view[:count])
            self._position += count
        return count
