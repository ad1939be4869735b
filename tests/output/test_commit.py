"""The moment in which an output appears: stopped at any call to the system, the old or the new one stands there."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from options import UNSYNCED

from speechft_merge import MergeOptions, merge
from speechft_merge.errors import OutputError, WriteError
from speechft_merge.output import output as output_module
from speechft_merge.output.output import Output
from speechft_merge.output.staging import _TRIES, REPLACED, Staging

if TYPE_CHECKING:
    from conftest import Pair, Snapshot

CALLS = ("open", "fsync", "rename", "unlink", "rmdir", "mkdir", "listdir", "stat")
SYNCED = MergeOptions()
SHARD = 50_000


class Interrupter:
    """Raises after the given one of the calls to the system that a commit makes, as a signal's handler does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.left, self.active, self.happened = at, False, False
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrapped(getattr(os, name)))
        commit = Output.commit

        def watched(output: Output) -> Any:
            self.active = True
            try:
                return commit(output)
            finally:
                self.active = False

        monkeypatch.setattr(Output, "commit", watched)

    def _wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            if self.active and not self.happened:
                self.left -= 1
                if self.left < 0:
                    self.happened = True
                    if call.__name__ == "open":
                        os.close(result)
                    raise SystemExit(143)
            return result

        return counted


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of shutil
@pytest.mark.parametrize("shards", [None, SHARD], ids=["single", "sharded"])
@pytest.mark.parametrize("overwrite", [False, True], ids=["fresh", "overwrite"])
def test_stopped_at_any_call_of_the_commit_the_old_or_the_new_output_is_whole(
    shards: int | None, overwrite: bool, pair: Pair, tmp_path: Path, snapshot: Snapshot
) -> None:
    options = replace(SYNCED, max_shard_size=shards, overwrite=overwrite)
    merge(*pair.args, tmp_path / "new", options=options)
    new, old = snapshot(tmp_path / "new"), None
    at = 0
    while True:
        folder = tmp_path / str(at)
        folder.mkdir()
        if overwrite:
            merge(*pair.args, folder / "out", alpha=0.5, options=UNSYNCED)
            old = snapshot(folder / "out")
        with pytest.MonkeyPatch.context() as monkeypatch:
            interrupter = Interrupter(monkeypatch, at)
            try:
                merge(*pair.args, folder / "out", options=options)
            except SystemExit:
                assert interrupter.happened
        assert (snapshot(folder / "out") if (folder / "out").exists() else None) in (old, new), at
        assert merge(*pair.args, folder / "out", options=options).output == folder / "out"
        assert snapshot(folder) == {"out": "not a file"} | {f"out/{name}": content for name, content in new.items()}, at
        if not interrupter.happened:
            assert at > 10
            return
        at += 1


def test_an_output_is_put_back_that_was_being_replaced_when_its_process_was_killed(
    pair: Pair, tmp_path: Path, snapshot: Snapshot
) -> None:
    made = merge(*pair.args, tmp_path / "out", options=UNSYNCED).manifest
    before = snapshot(tmp_path / "out")
    staging = Staging(tmp_path / "out", "0123456789abcdef" * 4)
    (tmp_path / "out").rename(staging.path / REPLACED)
    assert Output(tmp_path / "out", staging.path.name).finished() is None
    os.close(staging._lock or -1)  # killed: the kernel lets go of its lock
    output = Output(tmp_path / "out", "0123456789abcdef" * 4)
    with pytest.raises(OutputError, match="holds another merge"):
        output.begin(None)  # type: ignore[arg-type]
    assert snapshot(tmp_path / "out") == before
    assert Output(tmp_path / "out", made.merge_id).finished() == made


def test_the_output_of_another_merge_that_replaced_ours_at_once_is_left_alone(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Snapshot
) -> None:
    merge(*pair.args, tmp_path / "theirs", alpha=0.5, options=UNSYNCED)
    theirs, rename = snapshot(tmp_path / "theirs"), Path.rename
    moved: list[Path] = []

    def replace_at_once(self: Path, target: Path) -> Path:
        moved.append(self)
        done = rename(self, target)
        if target == tmp_path / "out" and (tmp_path / "theirs").exists():
            rename(target, tmp_path / "ours")
            rename(tmp_path / "theirs", target)
        return done

    monkeypatch.setattr(Path, "rename", replace_at_once)
    with pytest.raises(OutputError, match="another process changed"):
        merge(*pair.args, tmp_path / "out", options=replace(UNSYNCED, overwrite=True))
    assert snapshot(tmp_path / "out") == theirs
    assert tmp_path / "out" not in moved
    assert {path.name for path in tmp_path.iterdir()} == {"out", "ours"}


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE])
def test_a_lock_that_fails_ends_the_merge_and_leaves_nothing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OutputError, match=os.strerror(number)):
        Staging(tmp_path / "out", "0123456789abcdef" * 4)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_others_take_at_once_are_not_made_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(*_: object) -> None:
        raise BlockingIOError(errno.EWOULDBLOCK, "Resource temporarily unavailable")

    monkeypatch.setattr(fcntl, "flock", taken)
    with pytest.raises(OutputError, match="other processes"):
        Staging(tmp_path / "out", "0123456789abcdef" * 4)
    assert len(list(tmp_path.iterdir())) == _TRIES


def test_a_parent_folder_that_cannot_be_synced_is_an_error_and_not_another_run(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, parent = os.fsync, tmp_path.stat().st_ino

    def fail(fd: int) -> None:
        if os.fstat(fd).st_ino == parent:
            raise OSError(errno.EIO, "Input/output error")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WriteError, match="Input/output error"):
        merge(*pair.args, tmp_path / "out", options=SYNCED)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert merge(*pair.args, tmp_path / "out", options=SYNCED).already_done
    shutil.rmtree(tmp_path / "out")


def test_what_a_killed_run_left_goes_with_the_next_one_though_that_is_refused(pair: Pair, tmp_path: Path) -> None:
    merge(*pair.args, tmp_path / "out", options=UNSYNCED)
    left, living = (Staging(tmp_path / "out", digit * 64) for digit in "01")
    os.close(left._lock or -1)  # killed
    with pytest.raises(OutputError, match="holds another merge"):
        merge(*pair.args, tmp_path / "out", alpha=0.5, options=UNSYNCED)
    assert {path.name for path in tmp_path.iterdir()} == {"out", living.path.name}
    living.discard()


@pytest.mark.parametrize("swaps", [True, False], ids=["in one step", "in two"])
def test_what_somebody_puts_into_the_old_output_at_the_last_moment_is_kept(
    swaps: bool, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was moved out of its place is looked at once more before it goes."""
    merge(*pair.args, tmp_path / "out", alpha=0.5, options=UNSYNCED)
    look = output_module.require_replaceable

    def look_and_be_overtaken(path: Path, overwrite: bool) -> None:
        look(path, overwrite)
        if path == tmp_path / "out":
            (path / "thesis.tex").write_text("years of work")

    monkeypatch.setattr(output_module, "require_replaceable", look_and_be_overtaken)
    if not swaps:
        monkeypatch.setattr("speechft_merge.output.staging.exchange", lambda *_: False)
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        merge(*pair.args, tmp_path / "out", options=replace(UNSYNCED, overwrite=True))
    assert (tmp_path / "out/thesis.tex").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
