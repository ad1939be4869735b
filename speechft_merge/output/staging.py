"""Writes all or nothing: the output grows in a hidden folder beside its path and appears by one rename.

Every process has a hidden folder of its own and touches no other that may be in use, so any number of equal merges may
run at once. Its name holds the identity of the merge, so that a later run finds the shards that an interrupted one
finished: whole files that nobody changes any more. A lock tells a folder in use from one whose process is gone, which
the next run removes, whatever it merges; where a file system has no locks, leftover folders are left alone. No output
depends on a lock, since network file systems do not always keep them.

An output that is replaced changes places with the new one in one step. Where the file system cannot do that, it moves
into the hidden folder first, and whoever finds it there puts it back.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from speechft_merge.checkpoints.json_text import read_json
from speechft_merge.errors import OutputError, SpeechFTMergeError
from speechft_merge.executor.drift import Drift
from speechft_merge.output.checksums import matches
from speechft_merge.output.exchange import exchange
from speechft_merge.output.folder import Folder, explained
from speechft_merge.record.codec import from_json
from speechft_merge.record.manifest import OutputEntry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from speechft_merge.output.files import OutputFile

LOCK = "lock"
"""In the hidden folder: locked as long as its process lives."""
JOURNAL = "finished.json"
"""In the hidden folder: the weight files that are finished."""
DATA = "data"
"""In the hidden folder: what becomes the output."""
REPLACED = "replaced"
"""In the hidden folder: the output that is being replaced, where it cannot change places with the new one."""

TEMPORARY = ".temporary"
"""In an output that is made to be pushed: it goes afterwards, unless another process has found it and removed this."""

_SUFFIX = ".partial"
_LABEL = 200
"""Most bytes of an output's name in that of its hidden folders: a name may have 255 in all."""
_NO_LOCKS = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)
_WITHOUT_LOCK = -1
_TRIES = 20
"""New folders that may be taken for leftovers by another process, one after the other."""


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
            for _ in range(_TRIES):
                if self._make():
                    break
            else:
                raise OutputError(f"other processes take every hidden folder beside {output}", hint="run again")
            self._data = Folder(self.path / DATA, fsync)
            self._take_over()
        except BaseException:
            self.abandon()
            raise

    def _make(self) -> bool:
        """Make and lock a folder; return whether no other process took it for a leftover before it was locked."""
        self.path, self._aside = (_new_name(self.output, self._identity) for _ in range(2))
        with explained(self.path):
            try:
                self.path.mkdir(parents=True)
                self._lock = _lock(self.path)
            except FileExistsError:  # somebody else's, by a chance of one in four billion
                raise
            except BaseException as error:
                if not isinstance(error, OSError) or error.errno not in _NO_LOCKS:
                    _remove(self.path, self._aside)
                    raise
                self._lock = _WITHOUT_LOCK
        return self._lock is not None

    def _take_over(self) -> None:
        """Take the finished files of other runs of this merge, and remove the folders of those that are gone."""
        for other, same in _folders(self.output, self._identity):
            if same and other != self.path:
                with _held(other, self.output) as gone:
                    for name, found in _read_journal(other).items():
                        self._take(other / DATA / name, found, gone)
        if self.finished:
            self._write_journal()

    def _take(self, path: Path, found: FinishedFile, gone: bool) -> None:
        if path.name not in self.finished:
            with contextlib.suppress(OSError):  # no hard links here, or its process was faster
                (os.rename if gone else os.link)(path, self.path / DATA / path.name)
                self.finished[path.name] = found

    @property
    def data(self) -> Folder:
        """The folder that becomes the output."""
        assert self._data is not None
        return self._data

    def put(self, name: str, content: bytes) -> None:
        """Write a small file whole; its name may have a folder before it."""
        inner, _, last = name.rpartition("/")
        if not inner:
            self.data.put(last, content)
            return
        with Folder(self.path / DATA / inner, self._fsync) as folder:
            folder.put(last, content)
            folder.sync()

    @property
    def committed(self) -> bool:
        """Whether the folder is the output by now; asked of the file system, since a signal may come at any time."""
        return self._data is not None and self._data.is_at(self.output)

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
            folder.put(JOURNAL, json.dumps([asdict(found) for found in self.finished.values()]).encode())

    def commit(self, require_replaceable: Callable[[Path], None] | None = None) -> None:
        """Make the output appear. An earlier one that is replaced goes with the hidden folder.

        Args:
            require_replaceable: raises OutputError if a folder that stood at the output's path may not go; None if
                nothing may.

        Raises:
            OutputError: another process was faster, or changed the output.
        """
        if not self.data.is_at(self.data.path):  # committed by an earlier call, and replaced since
            raise self._overtaken()
        names = set(self.data.names()) - {TEMPORARY}
        self.data.sync()
        with explained(self.output):
            if require_replaceable is None or not _holds_something(self.output):
                self.data.path.rename(self.output)  # also over an empty folder
            elif exchange(self.data.path, self.output):
                self._require_replaceable(require_replaceable)
            else:
                self._replace(require_replaceable)
        for path in {self.output.parent, *(parent.parent for parent in self._new_parents)} if self._fsync else ():
            with explained(path), Folder(path, fsync=True) as parent:
                parent.sync()
        if not (self.committed and names <= set(os.listdir(self.output))):  # noqa: PTH208
            raise self._overtaken()
        self.discard()

    def _require_replaceable(self, require_replaceable: Callable[[Path], None]) -> None:
        """Look once more at what the output was, now that nobody finds it any more; put it back if it may not go."""
        try:
            require_replaceable(self.data.path)
        except OutputError:
            if self.committed:
                exchange(self.data.path, self.output)
            raise

    def _replace(self, require_replaceable: Callable[[Path], None]) -> None:
        """Replace the output in two steps; if that fails between them, put it back."""
        shutil.rmtree(self.path / REPLACED, ignore_errors=True)
        try:
            with contextlib.suppress(FileNotFoundError):  # another process moves it, too
                self.output.rename(self.path / REPLACED)
                require_replaceable(self.path / REPLACED)
            self.data.path.rename(self.output)
        except BaseException:
            _put_back(self.path, self.output)
            raise

    def _overtaken(self) -> OutputError:
        return OutputError(f"another process changed {self.output} as soon as it was complete", hint="run again")

    def abandon(self) -> bool:
        """Remove the folder, unless a later run can use finished files in it; return whether these were kept."""
        if self._data is not None and not self._data.is_at(self._data.path):  # it is the output, or somebody moved it
            self.discard()
            return False
        if not self.finished:
            self.discard()
            for parent in self._new_parents:
                with contextlib.suppress(OSError):  # another process has something in it
                    parent.rmdir()
            return False
        _put_back(self.path, self.output)
        for name in self.data.names():
            if name not in self.finished:
                shutil.rmtree(self.path / DATA / name, ignore_errors=True)
                self.data.remove(name)
        self._release()
        return True

    def discard(self) -> None:
        """Remove the folder."""
        if self._lock is not None:
            _put_back(self.path, self.output)
            _remove(self.path, self._aside)
        self._release()

    def _release(self) -> None:
        if self._data is not None:
            self._data.close()
        if self._lock is not None and self._lock != _WITHOUT_LOCK:
            os.close(self._lock)
        self._lock = None


def remove_temporary(output: Path, identity: str) -> None:
    """Remove an output that was made to be pushed, unless another process has found it meanwhile.

    It leaves its place first, so that whoever comes then makes it anew.
    """
    if not (output / TEMPORARY).exists():
        return
    aside = _new_name(output, identity)
    with contextlib.suppress(OSError):  # another process moves it, too
        output.rename(aside)
        with _locked(aside):
            if (aside / TEMPORARY).exists():
                _remove(aside, _new_name(output, identity))
            else:
                (aside / LOCK).unlink(missing_ok=True)
                aside.rename(output)


def sweep(output: Path, keep: str | None = None) -> None:
    """Remove the hidden folders of an output whose processes are gone, but for those of one merge."""
    for folder, same in _folders(output, keep):
        if not same:
            with _held(folder, output):
                pass


def restore(output: Path) -> None:
    """Put back an output that a process was replacing when it was killed."""
    for folder, _ in _folders(output):
        if (folder / REPLACED).is_dir() and not output.exists():
            with _locked(folder) as gone:
                if gone:
                    _put_back(folder, output)


@contextlib.contextmanager
def _held(folder: Path, output: Path) -> Iterator[bool]:
    """Lock the folder of a process that is gone, and remove it at the end; yield whether it was locked."""
    with _locked(folder) as gone:
        try:
            yield gone
        finally:
            if gone:
                _put_back(folder, output)
                _remove(folder, _new_name(output, folder.name.split(".")[-3]))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Try to lock a folder; yield whether it was possible: no process has it, and the file system has locks."""
    try:
        lock = _lock(folder)
    except OSError:
        lock = None
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)


def _put_back(folder: Path, output: Path) -> None:
    """Put back an output that was about to be replaced, if nothing is at its path."""
    if (folder / REPLACED).is_dir() and not output.exists():
        with contextlib.suppress(OSError):
            (folder / REPLACED).rename(output)


def _remove(folder: Path, aside: Path) -> None:
    """Remove a hidden folder; can be called again if a signal interrupted it.

    Args:
        folder: what to remove.
        aside: the name that it gets first, which no other process knows: one may just be making this folder.
    """
    with contextlib.suppress(OSError):
        folder.rename(aside)
    for path in (aside, folder):
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # without a free descriptor rmtree removes nothing
            (path / LOCK).unlink(missing_ok=True)
            path.rmdir()


def _new_name(output: Path, identity: str) -> Path:
    """Return a name that no other hidden folder has."""
    return _hidden(output, identity[:16], secrets.token_hex(4))


def _hidden(output: Path, identity: str, number: str) -> Path:
    return output.with_name(f".{_label(output)}.{identity}.{number}{_SUFFIX}")


def _label(output: Path) -> str:
    """Return an output's name as its hidden folders have it: of a long one the beginning and a digest."""
    name = os.fsencode(output.name)
    if len(name) <= _LABEL:
        return output.name
    return f"{name[: _LABEL - 17].decode(errors='ignore')}~{hashlib.sha256(name).hexdigest()[:16]}"


def _folders(output: Path, identity: str | None = None) -> list[tuple[Path, bool]]:
    """Return the hidden folders of an output, and whether each is of this merge."""
    try:
        names = os.listdir(output.parent)  # noqa: PTH208
    except OSError:
        return []
    pattern = re.compile(rf"\..+\.([0-9a-f]{{16}})\.([0-9a-f]{{8}}){re.escape(_SUFFIX)}", re.DOTALL)
    found = [match.groups() for match in map(pattern.fullmatch, names) if match]
    of_merge = identity[:16] if identity else None
    # under this output's name those of others lead nowhere, and its own are found where `a` is listed as `A`
    return [(_hidden(output, *parts), parts[0] == of_merge) for parts in found]


def _holds_something(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except FileNotFoundError:
        return False


def _lock(folder: Path) -> int | None:
    """Lock a hidden folder; None if a process has it, or it is gone.

    Raises:
        OSError: for any other reason, such as a file system without locks.
    """
    try:
        fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), (folder / LOCK).stat()):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _read_journal(folder: Path) -> dict[str, FinishedFile]:
    try:
        entries = from_json(tuple[FinishedFile, ...], read_json(folder / JOURNAL))
    except (SpeechFTMergeError, ValueError):
        return {}
    return {found.entry.file: found for found in entries}
