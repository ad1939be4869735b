"""Writes whole files into a folder that is held open, and explains file system errors."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from typing import TYPE_CHECKING

from speechft_merge.errors import OutputError, WriteError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


_SHORT = 200
"""Bytes of a file's name that its temporary one has: a name may have 255 in all."""


class Folder:
    """A folder held open, so that it can be used even if it is renamed meanwhile. Created unless it exists."""

    def __init__(self, path: Path, fsync: bool) -> None:
        self.path = path
        self._fsync = fsync
        self._fd = -1
        with explained(path):
            path.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create(self, name: str) -> tuple[str, int]:
        """Create a file under a temporary name; return that name, and a descriptor to read and write it.

        Created with 0666 less the umask, unlike tempfile's and safetensors' 0600 (safetensors issue 782).
        """
        short = os.fsencode(name)[:_SHORT].decode(errors="ignore")
        temporary = f".{short}.{secrets.token_hex(4)}.tmp"
        with explained(self.path / name):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            return temporary, os.open(temporary, flags, 0o666, dir_fd=self._fd)

    def settle(self, temporary: str, fd: int, name: str) -> None:
        """Sync a file, close it and give it its name; it is removed if that fails."""
        with explained(self.path / name):
            try:
                try:
                    if self._fsync:
                        _flush(fd)
                finally:
                    os.close(fd)
                os.rename(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            except BaseException:
                self.remove(temporary)
                raise

    def put(self, name: str, content: bytes) -> None:
        """Write a small file whole."""
        temporary, fd = self.create(name)
        try:
            with explained(self.path / name):
                written = 0
                while written < len(content):
                    written += os.write(fd, content[written:])
        except BaseException:
            os.close(fd)
            self.remove(temporary)
            raise
        self.settle(temporary, fd, name)

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        with contextlib.suppress(FileNotFoundError):  # of a folder, nothing is left here
            os.unlink(name, dir_fd=self._fd)

    def names(self) -> list[str]:
        """List the folder that is held open, even if its path has changed."""
        return os.listdir(self._fd)  # noqa: PTH208

    def is_at(self, path: Path) -> bool:
        """Return whether this path leads to the folder."""
        try:
            return os.path.samestat(os.fstat(self._fd), path.stat())
        except OSError:
            return False

    def sync(self) -> None:
        """Wait until the names in the folder are on the disk."""
        if self._fsync:
            _flush(self._fd)

    def close(self) -> None:
        """Close the folder."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _flush(fd: int) -> None:
    """Wait until a file or folder is on the disk; macOS' fsync waits for the drive's memory only."""
    flush = getattr(fcntl, "F_FULLFSYNC", None)
    if flush is not None:
        with contextlib.suppress(OSError):  # a network file system need not have it
            fcntl.fcntl(fd, flush)
            return
    os.fsync(fd)


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file whole, or leave what exists.

    Raises:
        OutputError, WriteError: it cannot be written.
    """
    with Folder(path.parent, fsync=False) as folder:
        folder.put(path.name, content)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError into one of ours with a hint."""
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        check, choose = "check that the folder exists and is writable", "free some space, or choose another output (-o)"
        kind = WriteError if full or error.errno == errno.EIO else OutputError
        raise kind(f"cannot write {path}: {error.strerror}", hint=choose if full else check) from error
