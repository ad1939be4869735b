"""All or nothing: the output grows in a hidden folder beside its place and appears by one rename.

The folder's name comes from the digest of the plan, so that a later run of the same merge finds the shards that an
earlier one finished. Nothing relies on locks, which cannot be trusted on network file systems: files in the making have
names of their own (host, process, random part), finished ones are renamed into place, and two runs of one merge write
the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechft_merge.errors import OutputError, UsageError, WriteError
from speechft_merge.output.checksums import Checksum, checksum_of
from speechft_merge.output.crc32 import Pieces
from speechft_merge.sources.reference import WEIGHT_SUFFIXES, local_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from speechft_merge.output.files import OutputFile

JOURNAL = "finished.json"
"""In the hidden folder: size and checksum of each finished weight file."""


class OutputWriter:
    """One file in the making; `write` may be called from several threads."""

    def __init__(self, folder: _Folder, planned: OutputFile) -> None:
        self._planned = planned
        self._folder = folder
        self._checksum = Checksum()
        self._pieces = Pieces()
        self._temporary, self._fd = folder.create(planned.name)
        try:
            self._reserve()
            self.write(0, memoryview(planned.header))
        except BaseException:
            self.abandon()
            raise

    def _reserve(self) -> None:
        """Take the space at once: a full disk fails now, and later writes cost less."""
        with explained(self._folder.path / self._planned.name):
            try:
                os.posix_fallocate(self._fd, 0, self._planned.size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise
                os.ftruncate(self._fd, self._planned.size)

    def write(self, offset: int, data: memoryview) -> None:
        """Put bytes at `offset`, each once."""
        self._checksum.add(offset, data)
        if self._planned.records:
            self._pieces.add(offset, data)
        self._put(offset, data)

    def _put(self, offset: int, data: memoryview) -> None:
        with explained(self._folder.path / self._planned.name):
            while data:
                count = os.pwrite(self._fd, data, offset)
                data, offset = data[count:], offset + count

    def finish(self) -> dict[str, Any]:
        """Make the file durable and give it its name; returns its entry in the manifest."""
        for offset, crc in self._pieces.renewed(self._planned.records):
            self._overwrite(offset, memoryview(crc))
        fd, self._fd = self._fd, -1
        self._folder.settle(self._temporary, fd, self._planned.name)
        return {"file": self._planned.name, "size": self._planned.size, "checksum": self._checksum.hexdigest()}

    def _overwrite(self, offset: int, data: memoryview) -> None:
        with explained(self._folder.path / self._planned.name):
            self._checksum.remove(offset, memoryview(os.pread(self._fd, len(data), offset)))
        self._checksum.add(offset, data)
        self._put(offset, data)

    def abandon(self) -> None:
        """Remove what there is; after `finish` this does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._folder.remove(self._temporary)


class _Folder:
    """A folder held open: what is done in it stays right if another run of the same merge renames it meanwhile."""

    def __init__(self, path: Path, durable: bool) -> None:
        self.path = path
        self._durable = durable
        self._owner = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        self._fd = -1

    def make(self) -> None:
        """Make it, unless it is there, and take hold of it."""
        with explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def create(self, name: str) -> tuple[str, int]:
        """A new file under a name that no other process on any host uses; that name, and its descriptor.

        Created with 0666 less the umask, unlike tempfile's and safetensors' 0600 (safetensors issue 782).
        """
        temporary = f".{name}.{self._owner}.tmp"
        with explained(self.path / name):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            return temporary, os.open(temporary, flags, 0o666, dir_fd=self._fd)

    def settle(self, temporary: str, fd: int, name: str) -> None:
        """Make a file durable, close it and give it its name; it is removed if that fails."""
        with explained(self.path / name):
            try:
                try:
                    if self._durable:
                        os.fsync(fd)
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
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            if self._fd >= 0:
                os.unlink(name, dir_fd=self._fd)

    def remove_own(self) -> None:
        """Remove every unfinished file, also one that a signal cut off between its making and the note of it."""
        if self._fd >= 0:
            for name in os.listdir(self._fd):  # noqa: PTH208  (of the folder held open, whatever its path is by now)
                if name.endswith(f".{self._owner}.tmp"):
                    self.remove(name)

    def is_at(self, path: Path) -> bool:
        """Whether the folder still stands under this path."""
        try:
            return os.path.samestat(os.fstat(self._fd), path.stat())
        except OSError:
            return False

    def sync(self) -> None:
        """Make the names in the folder durable."""
        if self._durable:
            os.fsync(self._fd)

    def close(self) -> None:
        """Let go of the folder."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Staging:
    """The hidden folder of one merge."""

    def __init__(self, output: Path, digest: str, durable: bool = True) -> None:
        self.output = output
        self.path = output.parent / f".{output.name}.{digest[:16]}.partial"
        self._durable = durable
        self._new_parents = [parent for parent in output.parents if not parent.exists()]
        self._folder = _Folder(self.path, durable)
        try:
            self._folder.make()
            self._remove_stale()
            self.finished = self._read_journal()
            _, sign = self._folder.create("run")  # tells other runs of the same merge that this one is at work
            os.close(sign)
        except BaseException:
            self.abandon()
            raise

    def open(self, planned: OutputFile) -> OutputWriter:
        """Begin one weight file."""
        return OutputWriter(self._folder, planned)

    def is_finished(self, planned: OutputFile) -> bool:
        """Whether an earlier run of the same merge finished this file, by size and checksum."""
        entry = self.finished.get(planned.name)
        if entry is None or entry.get("size") != planned.size or not isinstance(entry.get("drifts"), dict):
            return False
        return matches(self.path, entry)

    def record(self, entry: dict[str, Any]) -> None:
        """Note a finished file, so that a later run need not make it again."""
        self.finished[entry["file"]] = entry
        self._write_journal()

    def _write_journal(self) -> None:
        self.put(JOURNAL, json.dumps(list(self.finished.values())).encode())

    def put(self, name: str, content: bytes) -> None:
        """Write a small file whole."""
        self._folder.put(name, content)

    def commit(self, allow: Callable[[], None] = lambda: None) -> None:
        """Let the output appear. An earlier one is moved aside first and removed afterwards.

        Args:
            allow: raises if what stands in the output's place by now may not be replaced.

        Raises:
            OutputError: it may not, or another run of the same merge was faster.
        """
        if not self._folder.is_at(self.path):
            raise OutputError(f"{self.path} was moved or removed meanwhile; run again")
        allow()
        for path in self.path.glob(".*.tmp"):
            path.unlink(missing_ok=True)
        self._folder.remove(JOURNAL)
        self._folder.sync()
        aside = None
        with explained(self.output):
            try:
                if self.output.is_dir() and any(self.output.iterdir()):
                    aside = self.output.with_name(f".{self.output.name}.{secrets.token_hex(4)}.replaced")
                    self.output.rename(aside)
                self.path.rename(self.output)  # also over an empty folder
            except BaseException:
                if aside is not None and aside.exists() and not self.output.exists():
                    aside.rename(self.output)
                if self.finished and self.path.exists():
                    self._write_journal()
                raise
        if self._durable:
            for path in (self.output.parent, *(parent.parent for parent in self._new_parents)):
                parent = _Folder(path, durable=True)
                parent.make()
                parent.sync()
                parent.close()
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        self._folder.close()

    def yield_to(self) -> None:
        """Another run of the same merge was faster, and the folder is the output now: leave nothing of ours in it."""
        self._folder.remove(JOURNAL)
        self._folder.remove_own()
        self._folder.close()

    def abandon(self) -> bool:
        """Remove the folder, unless a later run can use finished shards in it, or another run is at work in it.

        Returns:
            Whether finished shards were kept.
        """
        self._folder.remove_own()
        self._folder.close()
        if (self.path / JOURNAL).exists():
            return True
        if not any(self.path.glob(".*.tmp")):
            shutil.rmtree(self.path, ignore_errors=True)
        for parent in self._new_parents:
            with contextlib.suppress(OSError):  # another run has something in it
                parent.rmdir()
        return False

    def _read_journal(self) -> dict[str, dict[str, Any]]:
        try:
            entries = json.loads((self.path / JOURNAL).read_text())
            return {str(entry["file"]): dict(entry) for entry in entries}
        except (OSError, ValueError, TypeError, KeyError):
            return {}

    def _remove_stale(self) -> None:
        """Temporary files of processes of this host that are gone (killed with SIGKILL)."""
        for path in self.path.glob(".*.tmp"):
            owner, _, unique = path.name.removesuffix(".tmp").rpartition(".")
            owner, _, pid = owner.rpartition(".")
            ours = unique and owner.endswith(f".{socket.gethostname()}") and pid.isdecimal()
            if ours and not _is_alive(int(pid)):
                path.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file whole, or leave what was there.

    Raises:
        OutputError, WriteError: it cannot be written.
    """
    folder = _Folder(path.parent, durable=False)
    folder.make()
    try:
        folder.put(path.name, content)
    finally:
        folder.close()


def require_place(output: str | Path, references: Iterable[str]) -> Path:
    """The path to write to, links resolved.

    Raises:
        UsageError: it is, holds or lies in an input, or is the current folder: it would destroy or mix with these.
    """
    if Path(output).suffix in WEIGHT_SUFFIXES:
        raise UsageError(f"the output {output} must be a directory: it gets the weights, the config and a manifest")
    try:
        target = Path(output).expanduser().resolve()
        target.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise OutputError(f"the output {str(output)[:200]} cannot be: {getattr(error, 'strerror', error)}") from error
    if target == Path.cwd() or target in Path.cwd().parents:
        raise UsageError(f"the output {output} is the current directory, or above it; name a new directory")
    for path in filter(None, map(local_path, references)):
        source = path.resolve()
        if target == source or target in source.parents or (source.is_dir() and source in target.parents):
            raise UsageError(f"the output {output} and the input {path} overlap; choose another output directory")
    return target


def existing_parent(output: Path) -> Path:
    """The nearest folder above an output, or itself, that is there."""
    return next(path for path in (output.absolute(), *output.absolute().parents) if path.is_dir())


def require_space(output: Path, needed: int) -> None:
    """Refuse a merge that cannot fit.

    Raises:
        WriteError: the file system has less room than the output needs.
    """
    parent = existing_parent(output)
    try:
        free = shutil.disk_usage(parent).free
    except OSError:
        return
    if free < needed:
        raise WriteError(
            f"the output needs {needed:,} bytes, {parent} has {free:,} free; make room or choose another place (-o)"
        )


def matches(folder: Path, entry: dict[str, Any]) -> bool:
    """Whether a weights file has the size and the checksum of its entry in a manifest."""
    path = folder / str(entry.get("file"))
    try:
        if path.parent != folder or path.stat().st_size != entry.get("size"):
            return False
        return checksum_of(path) == str(entry.get("checksum"))
    except OSError:
        return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError into one of ours that says what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "make room or choose another place (-o)" if full else "check that the folder exists and may be written"
        kind = WriteError if full or error.errno == errno.EIO else OutputError
        raise kind(f"cannot write {path}: {error.strerror}; {advice}") from error
