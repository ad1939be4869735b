"""An output that has appeared is on the disk: every file, its name, and the name of the folder.

Watched from outside: which inodes were flushed, when, and what the output became by which rename.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lab_files import s3prl_base, s3prl_finetune
from lab_pairs import HUBERT, save
from lab_pairs import pair as lab_pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Pair, Run

Inode = tuple[int, int]


@dataclass(frozen=True)
class Flush:
    """An fsync: of what, and what it held then."""

    inode: Inode
    content: str
    """Checksum of a file."""
    names: frozenset[str] = frozenset()
    """In a folder."""


@dataclass(frozen=True)
class Rename:
    """A rename: of what, and the folder that it is in from then on."""

    inode: Inode
    parent: Inode


class Disk:
    """Every fsync and rename of this process, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[Flush | Rename] = []
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._noting_flush(getattr(os, name)))
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, self._noting_rename(getattr(os, name)))

    def _noting_flush(self, flush: Callable[[int], None]) -> Callable[[int], None]:
        def noting(fd: int) -> None:
            self.events.append(as_it_is(Path(f"/dev/fd/{fd}")))
            flush(fd)

        return noting

    def _noting_rename(self, rename: Callable[..., None]) -> Callable[..., None]:
        def noting(source: Any, target: Any, *, src_dir_fd: Any = None, dst_dir_fd: Any = None) -> None:
            rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            parent = os.path.dirname(os.fspath(target)) or os.curdir  # noqa: PTH120  (may be relative to a descriptor)
            moved = os.stat(target, dir_fd=dst_dir_fd, follow_symlinks=False)
            self.events.append(Rename(identity(moved), identity(os.stat(parent, dir_fd=dst_dir_fd))))

        return noting

    @property
    def flushed(self) -> list[Flush]:
        return [event for event in self.events if isinstance(event, Flush)]

    def appearance(self, output: Path) -> int:
        """When the output got its name."""
        inode = identity(output.stat())
        return max(i for i, event in enumerate(self.events) if isinstance(event, Rename) and event.inode == inode)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def identity(status: os.stat_result) -> Inode:
    return status.st_dev, status.st_ino


def as_it_is(path: Path) -> Flush:
    """What flushing a file or folder now would put on the disk."""
    inode = identity(path.stat())
    if path.is_dir():
        return Flush(inode, "", frozenset(os.listdir(path)))  # noqa: PTH208
    return Flush(inode, hashlib.sha256(path.read_bytes()).hexdigest())


def assert_durable(disk: Disk, output: Path, parents: int = 1) -> None:
    """All of the output was flushed as it is now before it appeared, and the folders above it afterwards."""
    appeared = disk.appearance(output)
    before = [event for event in disk.events[:appeared] if isinstance(event, Flush)]
    after = [event for event in disk.events[appeared:] if isinstance(event, Flush)]
    assert [path.name for path in sorted(output.iterdir()) if as_it_is(path) not in before] == []
    folder = as_it_is(output)
    assert [event for event in before if event.inode == folder.inode and event.names >= folder.names] != []
    assert {event.inode for event in after} >= {identity(above.stat()) for above in output.parents[:parents]}


def lab_files(folder: Path) -> list[str]:
    base, finetuned = lab_pair(HUBERT)
    return [
        save(s3prl_base(HUBERT, base), folder / "base.pt"),
        save(s3prl_finetune(HUBERT, finetuned), folder / "ft.ckpt"),
    ]


def test_weights_companions_and_names_are_on_the_disk_before_the_output_appears(
    pair: Pair, run: Run, disk: Disk, tmp_path: Path
) -> None:
    assert run(*pair.args, "-o", "out").code == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"model.safetensors", "config.json", "preprocessor_config.json", "speechft_merge.json", "README.md"}
    assert_durable(disk, tmp_path / "out")


@pytest.mark.parametrize("supported", [True, False])
def test_where_fsync_does_not_reach_the_drive_the_call_that_does_comes_first(
    supported: bool, pair: Pair, run: Run, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On macOS; a network file system there need not have it."""
    flushed: list[Flush] = []

    def control(fd: int, command: int) -> int:
        assert command == 51
        flushed.append(as_it_is(Path(f"/dev/fd/{fd}")))
        if not supported:
            raise OSError(errno.ENOTSUP, "Operation not supported")
        disk.events.append(flushed[-1])
        return 0

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", control)
    assert run(*pair.args, "-o", "out").code == 0
    assert disk.flushed == flushed
    assert_durable(disk, tmp_path / "out")


def test_every_shard_and_the_index_are(pair: Pair, run: Run, disk: Disk, tmp_path: Path) -> None:
    assert run(*pair.args, "-o", "out", "--max-shard-size", "50KB").code == 0
    assert (tmp_path / "out/model.safetensors.index.json").exists()
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    assert_durable(disk, tmp_path / "out")


def test_a_labs_file_is_with_its_checksums_renewed(run: Run, disk: Disk, tmp_path: Path) -> None:
    assert run(*lab_files(tmp_path), "-o", "out").code == 0
    assert_durable(disk, tmp_path / "out")


def test_folders_made_for_the_output_are_too(pair: Pair, run: Run, disk: Disk, tmp_path: Path) -> None:
    assert run(*pair.args, "-o", "new/newer/out").code == 0
    assert_durable(disk, tmp_path / "new/newer/out", parents=3)


def test_an_empty_folder_in_its_place_changes_nothing(pair: Pair, run: Run, disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert run(*pair.args, "-o", "out").code == 0
    assert_durable(disk, tmp_path / "out")


@pytest.mark.parametrize("options", [[], ["--max-shard-size", "50KB"]])
def test_without_fsync_nothing_is_waited_for(
    options: list[str], pair: Pair, run: Run, disk: Disk, tmp_path: Path
) -> None:
    assert run(*pair.args, "-o", "new/out", "--no-fsync", *options).code == 0
    assert disk.appearance(tmp_path / "new/out") >= 0
    assert disk.flushed == []
