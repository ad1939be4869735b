"""Writes all or nothing: the output grows in a hidden folder beside its path and appears by one rename.

Every process has a hidden folder of its own and touches no other that may be in use, so any number of equal merges may
run at once. Its name begins with the identity of the merge, so that a later run finds the shards that an interrupted
one finished: whole files that nobody changes any more, which it takes over as hard links. A lock tells a folder in use
from one whose process is gone; where a file system has no locks, leftover folders are left alone. No output
depends on a lock, since network file systems do not always keep them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speechft_merge.errors import OutputError
from speechft_merge.executor.drift import Drift
from speechft_merge.output.checksums import matches
from speechft_merge.output.folder import Folder, explained
from speechft_merge.output.writer import FileWriter
from speechft_merge.record.codec import from_json, to_json
from speechft_merge.record.manifest import OutputEntry

if TYPE_CHECKING:
    from pathlib import Path

    from speechft_merge.output.files import OutputFile

LOCK = "lock"
"""In the hidden folder: locked as long as its process lives."""
JOURNAL = "finished.json"
"""In the hidden folder: the weight files that are finished."""
DATA = "data"
"""In the hidden folder: what becomes the output."""

_SUFFIX = ".partial"
_NO_LOCKS = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)


@dataclass(frozen=True, slots=True)
class FinishedFile:
    """A weights file of the journal: its entry in the manifest, and what was measured while it was written."""

    entry: OutputEntry
    drifts: dict[str, Drift]


class Staging:
    """The hidden folder of one process that makes one output."""

    def __init__(self, output: Path, identity: str, fsync: bool = True) -> None:
        self.output = output
        self._identity = identity
        self._fsync = fsync
        self._new_parents = [parent for parent in output.parents if not parent.exists()]
        self.finished: dict[str, FinishedFile] = {}
        self._lock: int | None = None
        self._data: Folder | None = None
        try:
            self._make()
            self._take_over()
        except BaseException:
            self.abandon()
            raise

    def _make(self) -> None:
        while self._lock is None:  # else another process took the new folder for a leftover
            self.path = self.output.with_name(_stem(self.output, self._identity) + secrets.token_hex(4) + _SUFFIX)
            with explained(self.path):
                self.path.mkdir(parents=True)
            self._lock = _lock(self.path, new=True)
        self._data = Folder(self.path / DATA, self._fsync)

    def _take_over(self) -> None:
        """Link the finished files of other runs of this merge, and remove the folders of those that are gone."""
        for other in _folders(self.output, self._identity):
            for name, found in _read_journal(other).items() if other != self.path else ():
                if name not in self.finished:
                    with contextlib.suppress(OSError):  # no hard links here, or its process was faster
                        os.link(other / DATA / name, self.path / DATA / name)
                        self.finished[name] = found
        if self.finished:
            self._write_journal()
        sweep(self.output, self._identity)

    @property
    def data(self) -> Folder:
        """The folder that becomes the output."""
        assert self._data is not None
        return self._data

    def open(self, planned: OutputFile) -> FileWriter:
        """Begin one weights file."""
        return FileWriter(self.data, planned)

    def earlier(self, planned: OutputFile) -> FinishedFile | None:
        """Return a file that an interrupted run of this merge finished, if it is whole."""
        found = self.finished.get(planned.name)
        whole = found is not None and found.entry.size == planned.size and matches(self.data.path, found.entry)
        return found if whole else None

    def record(self, finished: FinishedFile) -> None:
        """Record a finished file, so that a later run need not make it again."""
        self.finished[finished.entry.file] = finished
        self._write_journal()

    def _write_journal(self) -> None:
        with Folder(self.path, fsync=False) as folder:
            folder.put(JOURNAL, json.dumps(to_json(list(self.finished.values()))).encode())

    def commit(self) -> None:
        """Make the output appear. An earlier one is moved aside first and removed afterwards.

        Raises:
            OutputError: another process was faster, or changed the output.
        """
        names = set(self.data.names())
        self.data.sync()
        aside = None
        with explained(self.output):
            try:
                if self.output.is_dir() and any(self.output.iterdir()):
                    aside = self.output.with_name(f".{self.output.name}.{secrets.token_hex(4)}.replaced")
                    self.output.rename(aside)
                self.data.path.rename(self.output)  # also over an empty folder
            except BaseException:
                if aside is not None and aside.exists() and not self.output.exists():
                    aside.rename(self.output)
                raise
        for path in {self.output.parent, *(parent.parent for parent in self._new_parents)} if self._fsync else ():
            with Folder(path, fsync=True) as parent:
                parent.sync()
        if not (self.data.is_at(self.output) and names <= set(os.listdir(self.output))):  # noqa: PTH208
            raise OutputError(f"another process changed {self.output} as soon as it was complete", hint="run again")
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        self.discard()

    def abandon(self) -> bool:
        """Remove the folder, unless a later run can use finished files in it; return whether these were kept."""
        if not self.finished:
            self.discard()
            for parent in self._new_parents:
                with contextlib.suppress(OSError):  # another process has something in it
                    parent.rmdir()
            return False
        for name in self.data.names():
            if name not in self.finished:
                self.data.remove(name)
        self._release()
        return True

    def discard(self) -> None:
        """Remove the folder."""
        if self._lock is not None:
            shutil.rmtree(self.path, ignore_errors=True)
        self._release()

    def _release(self) -> None:
        if self._data is not None:
            self._data.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def sweep(output: Path, identity: str) -> None:
    """Remove the hidden folders of a merge whose processes are gone."""
    for folder in _folders(output, identity):
        lock = _lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _stem(output: Path, identity: str) -> str:
    return f".{output.name}.{identity[:16]}."


def _folders(output: Path, identity: str) -> list[Path]:
    try:
        names = os.listdir(output.parent)  # noqa: PTH208  (no glob: a name may hold its special characters)
    except OSError:
        return []
    stem = _stem(output, identity)
    return [output.with_name(name) for name in names if name.startswith(stem) and name.endswith(_SUFFIX)]


def _lock(folder: Path, new: bool = False) -> int | None:
    """Lock a hidden folder; None if a process has it or it is gone. A `new` one needs no lock where there are none."""
    fd = -1
    try:
        fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), (folder / LOCK).stat()):
            return fd
    except OSError as error:
        if new and fd >= 0 and error.errno in _NO_LOCKS:
            return fd
    if fd >= 0:
        os.close(fd)
    return None


def _read_journal(folder: Path) -> dict[str, FinishedFile]:
    try:
        entries = from_json(tuple[FinishedFile, ...], json.loads((folder / JOURNAL).read_text()))
    except (OSError, ValueError, RecursionError):
        return {}
    return {found.entry.file: found for found in entries}
