"""Manages the output of one merge: its path, which merge it is, what it may replace, what is finished."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

from speechft_merge.checkpoints.companions import MAX_SIZE
from speechft_merge.errors import OutputError, SpeechFTMergeError, WriteError
from speechft_merge.executor.executor import shifted
from speechft_merge.output.checksums import matches
from speechft_merge.output.path import require_space
from speechft_merge.output.staging import TEMPORARY, FinishedFile, Staging, restore, sweep
from speechft_merge.output.writer import FileWriter
from speechft_merge.record import card, manifest
from speechft_merge.record.manifest import Manifest, read_manifest, read_names
from speechft_merge.sources import LocalFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from speechft_merge.executor.executor import Execute
    from speechft_merge.output.files import OutputFile, OutputFiles
    from speechft_merge.progress import Count

_TRIES = 6
"""Commits that other processes may come before, with an output in the same place."""
_PAUSE = 0.05
"""Seconds between the first two of them; then more. An equal merge may be replacing the output in two steps."""


class Output:
    """A directory that appears whole by `commit`. A context manager: left without `commit`, nothing new appears.

    Args:
        path: the directory.
        identity: of the merge, see `record.identity`.
        overwrite: whether another output may be replaced.
        fsync: whether to wait until all is on the disk.
        temporary: whether `remove_temporary` is to remove it.
    """

    def __init__(
        self, path: Path, identity: str, *, overwrite: bool = False, fsync: bool = True, temporary: bool = False
    ) -> None:
        self.path = path
        self.identity = identity
        self._overwrite = overwrite
        self._fsync = fsync
        self._temporary = temporary
        self._staging: Staging | None = None

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        staging, self._staging = self._staging, None
        if staging is None:
            return
        if staging.committed and error is not None:
            error.add_note(f"the merge is complete: {self.path}")
        if staging.abandon() and error is not None:
            taken = isinstance(error, OutputError) and not isinstance(error, WriteError)
            again = "with --overwrite the same command goes" if taken else "run the same command to go"
            error.add_note(f"finished shards are kept; {again} on from there")

    def finished(self) -> Manifest | None:
        """Return the manifest if the output of this very merge already exists, with every file whole.

        The card is not checked: the user may edit it. From now on the output stays, also if it was made to be pushed.
        """
        restore(self.path)
        found = read_manifest(self.path)
        if found is None or found.merge_id != self.identity or not _is_whole(self.path, found):
            return None
        keep(self.path)
        if read_manifest(self.path) != found:  # it was removed just before
            return None
        if self._staging is not None:
            self._staging.discard()
            self._staging = None
        sweep(self.path)
        return found

    def begin(self, files: OutputFiles) -> Manifest | None:
        """Create the hidden folder in which the output grows; return the manifest instead if all is done already.

        Raises:
            OutputError: what already exists may not be replaced.
            WriteError: the file system has less room than the output needs.
        """
        earlier = self.finished()
        if earlier is None:
            sweep(self.path, keep=self.identity)
            try:
                require_replaceable(self.path, self._overwrite)
            except OutputError:
                earlier = self.finished()  # an equal merge may have finished just now
                if earlier is None:
                    raise
        if earlier is None:
            self._staging = Staging(self.path, self.identity, self._fsync)
            finished = self._staging.finished
            require_space(self.path, sum(file.size for file in files.files if file.name not in finished))
        return earlier

    def _require_replaceable(self, there: Path) -> None:
        require_replaceable(there, self._overwrite)

    @property
    def _begun(self) -> Staging:
        assert self._staging is not None
        return self._staging

    def write_weights(self, files: OutputFiles, execute: Execute, count: Count | None = None) -> list[FinishedFile]:
        """Write every weights file that an interrupted run of this merge did not finish.

        Args:
            files: what was begun. Of several, each is kept for a later run as soon as it is finished.
            execute: carries out segments.
            count: called from time to time with the bytes done and the total.
        """
        written: list[FinishedFile] = []
        for planned in files.files:
            finished = self._begun.earlier(planned)
            if finished is None:
                done = sum(found.entry.size for found in written)
                finished = self._write_file(planned, execute, count and shifted(count, done, files.size))
                if len(files.files) > 1:
                    self._begun.record(finished)
            written.append(finished)
            if count is not None:
                count(sum(found.entry.size for found in written), files.size)
        return written

    def _write_file(self, planned: OutputFile, execute: Execute, count: Count | None) -> FinishedFile:
        with FileWriter(self._begun.data, planned) as writer:
            drifts = execute([(segment, writer) for segment in planned.segments], count)
            return FinishedFile(writer.finish(), drifts)

    def put(self, files: Mapping[str, bytes]) -> None:
        """Write small files whole.

        Raises:
            OutputError: the file system does not tell the names of two files apart.
        """
        for name, content in files.items():
            if (self._begun.data.path / name).exists():
                raise OutputError(
                    f"{name} would replace another file of the output, whose name differs in upper and lower case only",
                    hint="choose an output on a file system that tells them apart (-o)",
                )
            self._begun.put(name, content)

    def commit(self) -> Manifest | None:
        """Make the output appear; return the manifest of an equal merge if one was faster.

        Raises:
            OutputError: what exists by now may not be replaced, or another process changed the output.
            WriteError: the disk failed.
        """
        if self._temporary:
            self.put({TEMPORARY: b""})
        for tries in range(_TRIES):
            earlier = self.finished()
            if earlier is not None:
                return earlier
            try:
                require_replaceable(self.path, self._overwrite)
                self._begun.commit(self._require_replaceable if self._overwrite else None)
                break
            except OutputError as error:
                if isinstance(error, WriteError) or self._begun.committed or tries == _TRIES - 1:
                    raise
                time.sleep(_PAUSE * tries)
        sweep(self.path)
        self._staging = None
        return None


def keep(output: Path) -> None:
    """Let an output stay that was made to be pushed."""
    (output / TEMPORARY).unlink(missing_ok=True)


def _is_whole(folder: Path, found: Manifest) -> bool:
    return all(matches(folder, entry) for entry in found.outputs) and all(
        has_digest(folder / entry.file, entry.sha256) for entry in found.companions
    )


def has_digest(path: Path, digest: str) -> bool:
    """Return whether a small file, no larger than those that a merge copies, is there and has this sha256."""
    try:
        with LocalFile(path) as file:
            return file.size <= MAX_SIZE and hashlib.sha256(file.read(0, file.size)).hexdigest() == digest
    except SpeechFTMergeError:
        return False


def require_replaceable(output: Path, overwrite: bool) -> None:
    """Refuse an output that exists, unless it is empty, or was made by a merge and may be replaced.

    Raises:
        OutputError: it may not be replaced, or it holds files that no merge wrote, which would be lost.
    """
    if not output.exists() and not output.is_symlink():
        return
    if not output.is_dir():
        raise OutputError(f"{output} already exists and is not a directory", hint="choose another output (-o)")
    try:
        paths = [path for path in output.rglob("*") if path.is_symlink() or not path.is_dir()]
    except FileNotFoundError:  # another process moved it
        return
    names = {path.relative_to(output).as_posix() for path in paths}
    foreign = sorted(names - _written(output)) if names else []
    if foreign:
        listed = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
        raise OutputError(
            f"{output} already exists and holds files that no merge wrote",
            found=listed,
            hint="move them, or choose another output (-o)",
        )
    if names and not overwrite:
        raise OutputError(
            f"{output} already exists and holds another merge",
            hint="pass --overwrite to replace it, or choose another output (-o)",
        )


def _written(folder: Path) -> set[str]:
    """Return the names of the files that a merge wrote into a folder, by its manifest, and a comparison after it."""
    found = read_names(folder)
    if not found:
        return found
    ours = found | {manifest.NAME, card.NAME, manifest.SIMILARITY, manifest.FIGURE, TEMPORARY}
    return ours | {".DS_Store", *(f"._{name}" for name in ours)}  # which macOS puts beside files
