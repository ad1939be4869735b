"""Writes one weights file."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from speechft_merge.errors import WriteError
from speechft_merge.output.checksums import Checksum, checksum_of
from speechft_merge.output.crc32 import Pieces
from speechft_merge.output.folder import explained
from speechft_merge.record.manifest import OutputEntry

if TYPE_CHECKING:
    from speechft_merge.output.files import OutputFile
    from speechft_merge.output.folder import Folder


class FileWriter:
    """Writes one file, in pieces of any order; `write` may be called from several threads.

    A context manager: left without `finish`, it removes the file.
    """

    def __init__(self, folder: Folder, planned: OutputFile) -> None:
        self._planned = planned
        self._folder = folder
        self._checksum = None if planned.records else Checksum(self._read)
        self._pieces = Pieces()
        self._temporary, self._fd = folder.create(planned.name)
        try:
            self._reserve()
            self.write(0, memoryview(planned.header))
        except BaseException:
            self.abandon()
            raise

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    def _reserve(self) -> None:
        """Reserve the space at once, if the system can: a full disk fails now, and later writes cost less."""
        with explained(self._folder.path / self._planned.name):
            if not _allocate(self._fd, self._planned.size):
                os.ftruncate(self._fd, self._planned.size)

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes at `offset`, each once."""
        if self._planned.records:
            self._pieces.add(offset, data)
        self._put(offset, data)
        if self._checksum is not None:
            self._checksum.add(offset, data)

    def _read(self, offset: int, length: int) -> bytes:
        with explained(self._folder.path / self._planned.name):
            return os.pread(self._fd, length, offset)

    def _put(self, offset: int, data: memoryview) -> None:
        with explained(self._folder.path / self._planned.name):
            while data:
                count = os.pwrite(self._fd, data, offset)
                data, offset = data[count:], offset + count

    def finish(self) -> OutputEntry:
        """Sync the file, give it its name and return its entry in the manifest."""
        for offset, crc in self._pieces.renewed(self._planned.records):
            self._put(offset, memoryview(crc))
        fd, self._fd = self._fd, -1
        self._folder.settle(self._temporary, fd, self._planned.name)
        return OutputEntry(self._planned.name, self._planned.size, self._digest())

    def _digest(self) -> str:
        """Return the checksum; of a file that is written twice in places, the zip of a lab, after reading it again."""
        if self._checksum is not None:
            return self._checksum.hexdigest()
        found = checksum_of(self._folder.path / self._planned.name)
        if found is None:
            raise WriteError(f"cannot read {self._planned.name} again", hint="run again")
        return found

    def abandon(self) -> None:
        """Remove the file; do nothing after `finish`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._folder.remove(self._temporary)


def _allocate(fd: int, size: int) -> bool:
    """Allocate the space of a file; return False where the system cannot: macOS, some file systems.

    Raises:
        OSError: it is not there.
    """
    allocate = getattr(os, "posix_fallocate", None)
    if allocate is None:
        return False
    try:
        allocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        return False
    return True
