"""Manages the output of one merge: its path, which merge it is, what it may replace, what is finished."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from speechft_merge.errors import OutputError
from speechft_merge.output.checksums import matches
from speechft_merge.output.place import require_space
from speechft_merge.output.staging import FinishedFile, Staging, sweep
from speechft_merge.record import card, manifest
from speechft_merge.record.manifest import Manifest, read_manifest, read_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from speechft_merge.executor.drift import Drift
    from speechft_merge.output.files import OutputFile, OutputFiles
    from speechft_merge.output.writer import FileWriter

    Fill = Callable[[FileWriter], dict[str, Drift]]


class Output:
    """A directory that appears whole by `commit`. A context manager: left without `commit`, nothing new appears.

    Args:
        path: the directory.
        identity: of the merge, see `record.identity`.
        overwrite: whether another output may be replaced.
        fsync: whether to wait until all is on the disk.
    """

    def __init__(self, path: Path, identity: str, *, overwrite: bool = False, fsync: bool = True) -> None:
        self.path = path
        self.identity = identity
        self._overwrite = overwrite
        self._fsync = fsync
        self._staging: Staging | None = None

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        staging, self._staging = self._staging, None
        if staging is not None and staging.abandon() and error is not None:
            error.add_note("finished shards are kept; run the same command to go on from there")

    def finished(self) -> Manifest | None:
        """Return the manifest if the output of this very merge already exists, with every file whole.

        The card is not checked: the user may edit it.
        """
        found = read_manifest(self.path)
        if found is None or found.merge_id != self.identity or not _is_whole(self.path, found):
            return None
        if self._staging is not None:
            self._staging.discard()
            self._staging = None
        sweep(self.path, self.identity)
        return found

    def begin(self, files: OutputFiles) -> None:
        """Create the hidden folder in which the output grows.

        Raises:
            OutputError: what already exists may not be replaced.
            WriteError: the file system has less room than the output needs.
        """
        require_replaceable(self.path, self._overwrite)
        self._staging = Staging(self.path, self.identity, self._fsync)
        finished = self._staging.finished
        require_space(self.path, sum(file.size for file in files.files if file.name not in finished))

    @property
    def staging(self) -> Staging:
        """The hidden folder, once the output has begun."""
        assert self._staging is not None
        return self._staging

    def write_file(self, planned: OutputFile, fill: Fill, keep: bool) -> FinishedFile:
        """Write one weights file, unless an earlier run of this merge finished it.

        Args:
            planned: the file.
            fill: writes its tensors; returns what was measured.
            keep: whether a later run may go on from the file if this one is interrupted.
        """
        finished = self.staging.earlier(planned)
        if finished is None:
            with self.staging.open(planned) as writer:
                drifts = fill(writer)
                finished = FinishedFile(writer.finish(), drifts)
            if keep:
                self.staging.record(finished)
        return finished

    def put(self, files: Mapping[str, bytes]) -> None:
        """Write small files whole."""
        for name, content in files.items():
            self.staging.data.put(name, content)

    def commit(self) -> None:
        """Make the output appear.

        Raises:
            OutputError: what exists by now may not be replaced, or another process was faster.
        """
        require_replaceable(self.path, self._overwrite)
        self.staging.commit()
        self._staging = None
        sweep(self.path, self.identity)


def _is_whole(folder: Path, found: Manifest) -> bool:
    return all(matches(folder, entry) for entry in found.outputs) and all(
        _has_digest(folder / entry.file, entry.sha256) for entry in found.companions
    )


def _has_digest(path: Path, digest: str) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == digest
    except OSError:
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
    names = {path.name for path in output.iterdir()}
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
    return found | {manifest.NAME, card.NAME, manifest.SIMILARITY, manifest.FIGURE} if found else found
