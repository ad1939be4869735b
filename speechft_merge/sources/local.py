"""Reads files and folders on a local or network file system."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from speechft_merge.errors import CheckpointError, NotFoundError, SpeechFTMergeError, TemporaryError
from speechft_merge.sources.base import ByteSource, HubOrigin

_PIECE = 1 << 20
"""Bytes that are read at once where they are copied."""


class LocalFile(ByteSource):
    """A regular file, read with `preadv` where Python has it.

    Not mapped: a page that vanishes from a mapping (a file cut short on a network file system) kills the process with
    SIGBUS, mapped pages count as memory used, and mapping is slow on Lustre and NFS (safetensors issue 562).
    """

    seeks_cheaply = True

    def __init__(self, path: Path, label: str | None = None, identity: str | None = None) -> None:
        self.path = path
        self.name = label or str(path)
        self.identity = identity
        self._fd = -1
        try:
            # O_NONBLOCK: opening a FIFO must fail the test below rather than wait for a writer
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            self.status = os.fstat(self._fd)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise SpeechFTMergeError(
                    f"cannot open {path}: too many files are open", hint="raise the limit of open files (ulimit -n)"
                ) from error
            raise NotFoundError(f"cannot read {path}: {error.strerror}") from error
        if not stat.S_ISREG(self.status.st_mode):
            self.close()
            raise NotFoundError(f"{path} is not a regular file")
        self.size = self.status.st_size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes that start at `offset`."""
        while buffer:
            try:
                count = _read(self._fd, buffer, offset)
            except OSError as error:
                raise CheckpointError(f"reading {self.name} failed at byte {offset}: {error.strerror}") from error
            if not count:
                raise CheckpointError(
                    f"{self.name} ended at byte {offset}; it had {self.size} bytes when it was opened"
                )
            buffer, offset = buffer[count:], offset + count

    def require_unchanged(self) -> None:
        """Check that nobody wrote to it since it was opened: a trainer that saves its next step, for one.

        A file that was replaced or deleted is still read as it was opened.

        Raises:
            TemporaryError: somebody did.
        """
        now = os.fstat(self._fd)
        if (now.st_size, now.st_mtime_ns) != (self.status.st_size, self.status.st_mtime_ns):
            raise TemporaryError(
                f"{self.name} was written to while it was read", hint="run again when nothing writes to it"
            )

    def close(self) -> None:
        """Close the file descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


def _read(fd: int, buffer: memoryview, offset: int) -> int:
    """Read into a buffer; return how many bytes."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [buffer], offset)
    data = os.pread(fd, min(len(buffer), _PIECE), offset)  # a Python that was built for macOS before 11
    buffer[: len(data)] = data
    return len(data)


class LocalFolder:
    """A directory on disk; with `hub`, the cached files of a repository."""

    def __init__(self, path: Path, name: str | None = None, hub: HubOrigin | None = None) -> None:
        self.path = path
        self.name = name or str(path)
        self.hub = hub

    def names(self, inner: str = "") -> list[str]:
        """Return the names of the regular files in it (and links to such files, as in a Hub cache), sorted.

        Of one of its folders, which need not exist, with that before each name. But for `._x`, in which macOS keeps
        what other file systems have no place for beside x.
        """
        if inner and not (self.path / inner).is_dir():
            return []
        before = f"{inner}/" if inner else ""
        try:
            entries = [entry for entry in (self.path / inner).iterdir() if not entry.name.startswith("._")]
            return sorted(before + entry.name for entry in entries if entry.is_file())
        except OSError as error:
            raise NotFoundError(f"cannot list {self.path}: {error.strerror}") from error

    def folders(self, inner: str = "") -> list[str]:
        """Return the names of the folders in it, sorted; or of those in one of its folders."""
        try:
            return sorted(entry.name for entry in (self.path / inner).iterdir() if entry.is_dir())
        except OSError as error:
            raise NotFoundError(f"cannot list {self.path / inner}: {error.strerror}") from error

    def inside(self, name: str) -> str:
        """Return what a user types for one of its files or folders."""
        return str(self.path / name)

    def leads_out(self, name: str) -> bool:
        """Return whether one of its files is a link to somewhere else, but for the blobs of the Hub's cache."""
        if self.hub is not None:
            return False
        folder, file = self.path.resolve(), (self.path / name).resolve()
        blobs = [outer.parent / "blobs" for outer in folder.parents if outer.name == "snapshots"]
        return file.parent not in blobs and not file.is_relative_to(folder)

    def open(self, name: str) -> LocalFile:
        """Open one of its files; the name of a blob in the cache is the Hub's checksum."""
        path = self.path / name
        return LocalFile(path, identity=path.resolve().name if self.hub is not None else None)
