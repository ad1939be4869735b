"""The hidden folder in which the output grows, and what may go wrong with it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from descriptors import nothing_stays_open
from safetensors.numpy import save

from speechft_merge import MergeOptions
from speechft_merge.errors import OutputError
from speechft_merge.merging import merge
from speechft_merge.output.files import OutputFile, OutputFiles
from speechft_merge.output.staging import JOURNAL, LOCK, REPLACED, FinishedFile, Staging, _lock, sweep
from speechft_merge.output.writer import FileWriter
from speechft_merge.record.manifest import OutputEntry

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Pair, Run, Snapshot, Tiny

    from speechft_merge.progress import Step

DIGEST = "0123456789abcdef" * 4
DATA_BYTES = np.arange(8, dtype=np.float32).tobytes()
WHOLE = save({"weight": np.frombuffer(DATA_BYTES, np.float32)})
HEADER = WHOLE[: -len(DATA_BYTES)]
FILE = OutputFile("model.safetensors", HEADER, (), len(WHOLE))
ONE_FILE = OutputFiles((FILE,))
SHARD = 50_000
SHARDED = ["--max-shard-size", "50KB"]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def write_data(writer: FileWriter) -> OutputEntry:
    writer.write(len(HEADER), memoryview(DATA_BYTES))
    return writer.finish()


def write_whole(staging: Staging) -> FinishedFile:
    """A file as the executor writes it; its entry in the journal."""
    return FinishedFile(write_data(FileWriter(staging.data, FILE)), {})


def killed(staging: Staging) -> Path:
    """What a run leaves that is killed now: the kernel lets go of its lock. Its hidden folder."""
    staging._release()
    return staging.path


# One staging folder.


def test_the_folder_becomes_the_output_without_its_journal(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "a/out", DIGEST)
    entry = write_whole(staging)
    staging.record(entry)
    staging.data.put("config.json", b"{}")
    staging.commit()
    assert names_in(tmp_path / "a") == {"out"}
    assert names_in(tmp_path / "a/out") == {"model.safetensors", "config.json"}
    assert (tmp_path / "a/out/model.safetensors").read_bytes() == WHOLE


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "out", DIGEST)
    writer = FileWriter(staging.data, FILE)
    assert FILE.name not in staging.data.names()
    writer.abandon()
    assert staging.data.names() == []
    write_whole(staging)
    assert staging.data.names() == [FILE.name]


def test_an_abandoned_folder_goes_unless_it_holds_finished_files(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "out", DIGEST)
    FileWriter(staging.data, FILE).abandon()
    assert not staging.abandon()
    assert list(tmp_path.iterdir()) == []
    staging = Staging(tmp_path / "out", DIGEST)
    staging.record(write_whole(staging))
    assert staging.abandon()
    again = Staging(tmp_path / "out", DIGEST)
    assert again.earlier(FILE) is not None
    assert names_in(tmp_path) == {again.path.name}


def test_of_an_abandoned_folder_only_finished_files_are_kept(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "out", DIGEST)
    staging.record(write_whole(staging))
    staging.data.put("config.json", b"{}")
    (staging.data.path / ".half.tmp").write_bytes(b"half")
    assert staging.abandon()
    assert names_in(staging.data.path) == {FILE.name}


def test_folders_made_for_an_output_that_never_comes_go_with_it(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    output = tmp_path / "there" / "new" / "newer" / "out"
    assert not Staging(output, DIGEST).abandon()
    assert names_in(tmp_path / "there") == set()
    staging = Staging(output, DIGEST)
    (output.parent / "other").mkdir()  # by somebody else, meanwhile
    assert not staging.abandon()
    assert names_in(output.parent) == {"other"}


def test_nothing_is_left_when_a_signal_comes_while_the_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(Staging, "_take_over", stop)
    with pytest.raises(SystemExit):
        Staging(tmp_path / "new" / "out", DIGEST)
    assert names_in(tmp_path) == set()


def test_a_file_is_removed_though_a_signal_came_before_anyone_knew_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    staging = Staging(tmp_path / "out", DIGEST)
    make = os.open

    def make_and_stop(*args: Any, **kwargs: Any) -> int:
        os.close(make(*args, **kwargs))
        raise SystemExit(138)

    monkeypatch.setattr(os, "open", make_and_stop)
    with pytest.raises(SystemExit):
        FileWriter(staging.data, FILE)
    monkeypatch.undo()
    assert any(staging.data.path.glob(f".{FILE.name}.*"))
    assert not staging.abandon()
    assert list(tmp_path.iterdir()) == []


def test_a_finished_file_counts_only_with_its_size_and_checksum(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "out", DIGEST)
    staging.record(write_whole(staging))
    path = staging.data.path / FILE.name
    for content in (WHOLE[:-1], WHOLE[:-1] + b"x", WHOLE + b"x", b"x" + WHOLE[1:], b"", bytes(len(WHOLE))):
        path.write_bytes(content)
        assert Staging(tmp_path / "out", DIGEST).earlier(FILE) is None
    path.write_bytes(WHOLE)
    assert Staging(tmp_path / "out", DIGEST).earlier(FILE) == staging.finished[FILE.name]
    assert staging.earlier(OutputFile(FILE.name, HEADER, (), FILE.size + 4)) is None
    path.unlink()
    assert staging.earlier(FILE) is None


def test_another_merge_has_another_folder(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "out", DIGEST)
    staging.record(write_whole(staging))
    assert Staging(tmp_path / "out", DIGEST[::-1]).earlier(FILE) is None


def left_with(journal: bytes, tmp_path: Path) -> Staging:
    """A run that finds a killed one's folder with a finished file, and this journal of it."""
    staging = Staging(tmp_path / "out", DIGEST)
    staging.record(write_whole(staging))
    (killed(staging) / JOURNAL).write_bytes(journal)
    return Staging(tmp_path / "out", DIGEST)


@pytest.mark.parametrize("journal", [b"", b"[", b"{}", b"[1]", b"null", b'["x"]', b'[{"size": 16}]', b"\xff"])
def test_a_broken_journal_means_that_nothing_is_finished(journal: bytes, tmp_path: Path) -> None:
    assert left_with(journal, tmp_path).earlier(FILE) is None


@pytest.mark.parametrize("key", ["file", "size", "xxh128", "drifts"])
@pytest.mark.parametrize("value", [None, 1, "x", ["x"]], ids=str)
def test_an_odd_entry_of_the_journal_counts_for_nothing(key: str, value: object, tmp_path: Path) -> None:
    entry = {"file": FILE.name, "size": FILE.size, "xxh128": "0" * 32}
    odd = {"entry": entry, "drifts": value} if key == "drifts" else {"entry": entry | {key: value}, "drifts": {}}
    assert left_with(json.dumps([odd]).encode(), tmp_path).earlier(FILE) is None


def test_a_journal_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "out", DIGEST)
    entry = write_whole(staging).entry
    (staging.data.path / FILE.name).rename(tmp_path / FILE.name)
    outside = {"entry": asdict(entry) | {"file": f"../{FILE.name}"}, "drifts": {}}
    (killed(staging) / JOURNAL).write_text(json.dumps([outside]))
    assert Staging(tmp_path / "out", DIGEST).finished == {}


# What earlier runs left.


def test_the_folder_of_a_killed_run_goes_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    living, left = Staging(tmp_path / "out", DIGEST), killed(Staging(tmp_path / "out", DIGEST))
    foreign = tmp_path / f".other.{DIGEST[:16]}.00ff00ff.partial"
    foreign.mkdir()
    sweep(tmp_path / "out")
    assert not left.exists()
    assert names_in(tmp_path) == {living.path.name, foreign.name}
    living.commit()
    assert names_in(tmp_path) == {"out", foreign.name}


@pytest.mark.parametrize(("name", "listed"), [("out", "OUT"), ("caf\u00e9", "cafe\u0301")])
def test_a_hidden_folder_that_the_file_system_lists_under_another_spelling_is_found(
    name: str, listed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One does that does not tell upper case from lower, or turns letters with accents into two."""
    left, names = killed(Staging(tmp_path / name, DIGEST)), os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [entry.replace(name, listed) for entry in names(path)])
    sweep(tmp_path / name)
    assert not left.exists()


def test_where_the_file_system_tells_two_spellings_apart_each_has_its_own_hidden_folders(tmp_path: Path) -> None:
    left = killed(Staging(tmp_path / "OUT", DIGEST))
    sweep(tmp_path / "out")
    assert left.exists()


def test_what_was_taken_over_from_a_killed_run_outlives_the_next_one_that_is_killed(tmp_path: Path) -> None:
    first = Staging(tmp_path / "out", DIGEST)
    first.record(write_whole(first))
    killed(first)
    second = Staging(tmp_path / "out", DIGEST)
    assert not first.path.exists()
    killed(second)
    assert Staging(tmp_path / "out", DIGEST).earlier(FILE) is not None


def test_a_new_folder_that_another_process_sweeps_up_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock

    def lose(fd: int, flags: int) -> None:
        (folder,) = tmp_path.iterdir()
        shutil.rmtree(folder)
        monkeypatch.setattr(fcntl, "flock", lock)
        lock(fd, flags)

    monkeypatch.setattr(fcntl, "flock", lose)
    staging = Staging(tmp_path / "out", DIGEST)
    sweep(tmp_path / "out")
    write_whole(staging)
    staging.commit()
    assert names_in(tmp_path) == {"out"}
    assert names_in(tmp_path / "out") == {FILE.name}


def test_a_folder_that_is_being_removed_cannot_be_locked_by_whoever_looks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own process may have just made it: with a lock in half a folder it would write where others remove."""
    left, remove, locked = killed(Staging(tmp_path / "out", DIGEST)), shutil.rmtree, []

    def remove_slowly(path: Path, **options: Any) -> None:
        (path / LOCK).unlink(missing_ok=True)
        locked.append(_lock(left))
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", remove_slowly)
    sweep(tmp_path / "out")
    assert set(locked) == {None}
    assert list(tmp_path.iterdir()) == []


def test_to_try_the_lock_of_a_living_run_leaves_no_file_open(tmp_path: Path) -> None:
    living = Staging(tmp_path / "out", DIGEST)
    with nothing_stays_open():
        sweep(tmp_path / "out")
    assert living.path.exists()
    living.discard()


def test_a_process_that_lives_holds_its_lock(tmp_path: Path) -> None:
    """Also seen from another process, as from another node: the lock is the kernel's."""
    staging = Staging(tmp_path / "out", DIGEST)
    code = "import pathlib; from speechft_merge.output.staging import sweep; sweep(pathlib.Path('out'))"
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert (staging.path / LOCK).exists()
    killed(staging)
    subprocess.run(command, cwd=tmp_path, check=True)
    assert names_in(tmp_path) == set()


def test_where_a_file_system_has_no_locks_leftovers_stay_and_their_finished_files_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    staging = Staging(tmp_path / "out", DIGEST)
    staging.record(write_whole(staging))
    left = killed(staging)
    again = Staging(tmp_path / "out", DIGEST)
    assert again.earlier(FILE) is not None
    again.commit()
    assert names_in(tmp_path) == {"out", left.name}
    assert (tmp_path / "out" / FILE.name).read_bytes() == WHOLE


def test_where_there_are_no_hard_links_a_run_goes_on_from_one_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    staging = Staging(tmp_path / "out", DIGEST)
    staging.record(write_whole(staging))
    monkeypatch.setattr(os, "link", unsupported)
    beside = Staging(tmp_path / "out", DIGEST)
    assert beside.earlier(FILE) is None  # of a process that lives, only a link could be had
    beside.abandon()
    killed(staging)
    again = Staging(tmp_path / "out", DIGEST)
    assert again.earlier(FILE) == staging.finished[FILE.name]
    again.commit()
    assert names_in(tmp_path) == {"out"}


@pytest.mark.parametrize("name", [".tmp", ".x.tmp", ".x.y.tmp", "...tmp", ".model.tmp", "x.partial"])
def test_a_name_that_is_not_ours_is_no_obstacle(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    (tmp_path / f".out.{DIGEST[:16]}.file.partial").touch()
    Staging(tmp_path / "out", DIGEST).commit()
    assert names_in(tmp_path) == {name, "out", f".out.{DIGEST[:16]}.file.partial"}


def test_nothing_unfinished_of_a_killed_run_reaches_the_output(pair: Pair, run: Run, tmp_path: Path) -> None:
    """A requeued job mostly goes on at another node."""
    run(*pair.args, "-o", "out")
    names = names_in(tmp_path / "out")
    merge_id = json.loads((tmp_path / "out/speechft_merge.json").read_text())["merge_id"]
    shutil.rmtree(tmp_path / "out")
    left = Staging(tmp_path / "out", merge_id)
    FileWriter(left.data, FILE)
    (left.data.path / ".model.safetensors.00ff00ff.tmp").write_bytes(b"half")
    killed(left)
    assert run(*pair.args, "-o", "out").code == 0
    assert names_in(tmp_path) == {"out"}
    assert names_in(tmp_path / "out") == names


# Going on after an interruption.


def interrupt_halfway(step: Step) -> None:
    if step.done > step.total / 2:
        raise KeyboardInterrupt


@pytest.fixture
def interrupted(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a merge into shards that was stopped when more than half was written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        merge(pair.args[0], pair.args[1], "out", progress=interrupt_halfway, options=MergeOptions(max_shard_size=SHARD))
    (partial,) = tmp_path.glob(".out.*.partial")
    return partial


def test_a_merge_goes_on_from_the_finished_shards(
    interrupted: Path, pair: Pair, run: Run, tmp_path: Path, snapshot: Snapshot
) -> None:
    kept = {path.name: path.stat() for path in interrupted.glob("data/model-*")}
    assert kept
    args = [*pair.args, "-o", "out", *SHARDED]
    assert run(*args).code == 0
    assert names_in(tmp_path) == {"out"}
    for name, before in kept.items():
        now = (tmp_path / "out" / name).stat()
        assert (now.st_ino, now.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    resumed = snapshot(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    assert run(*args).code == 0
    assert snapshot(tmp_path / "out") == resumed


def test_a_merge_in_one_file_leaves_nothing_when_interrupted(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        merge(pair.args[0], pair.args[1], "out", progress=interrupt_halfway)
    assert list(tmp_path.iterdir()) == []


def test_going_on_needs_room_for_the_rest_only(
    interrupted: Path, pair: Pair, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = sum(path.stat().st_size for path in interrupted.glob("data/model-*"))
    needed = run(*pair.args, "-o", "out", *SHARDED, "--dry-run", "--json").json["needed_bytes"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - there + 10_000))
    ran = run(*pair.args, "-o", "out", *SHARDED)
    assert ran.code == 0, ran.err


def test_another_recipe_does_not_go_on_from_these_shards_and_removes_them(
    interrupted: Path, pair: Pair, run: Run, tmp_path: Path, snapshot: Snapshot
) -> None:
    assert interrupted.exists()
    assert run(*pair.args, "-o", "out", *SHARDED, "--alpha", "0.5").code == 0
    assert not list(tmp_path.glob(".*"))
    assert run(*pair.args, "-o", "fresh", *SHARDED, "--alpha", "0.5").code == 0
    made, fresh = snapshot(tmp_path / "out"), snapshot(tmp_path / "fresh")
    assert {name for name in made if made[name] != fresh[name]} <= {"speechft_merge.json", "README.md"}


def test_an_error_after_some_shards_says_that_they_are_kept(tiny: Tiny, run: Run, tmp_path: Path) -> None:
    base = tiny.weights()
    finetuned = tiny.finetuned(base)
    finetuned[max(base)][:] = float("nan")
    inputs = [tiny.write(tmp_path / "base", base), tiny.write(tmp_path / "fine", finetuned)]
    ran = run(*inputs, "-o", "out", "--max-shard-size", "20KB")
    assert ran.code == 65
    assert "finished shards are kept; run the same command to go on" in ran.err
    assert not (tmp_path / "out").exists()


def test_shards_without_a_difference_give_no_warning_when_others_have_one(
    tiny: Tiny, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny.weights()
    finetuned = {name: values if name > "encoder.layers" else values + 0.01 for name, values in base.items()}
    inputs = [str(tiny.write(tmp_path / name, weights)) for name, weights in (("a", base), ("b", finetuned))]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        merge(inputs[0], inputs[1], "out", progress=interrupt_halfway, options=MergeOptions(max_shard_size=SHARD))
    ran = run(*inputs, "-q", "-o", "out", *SHARDED)
    assert (ran.code, ran.err) == (0, "")


# Two runs at once, and replacing.


def rename_recorder(monkeypatch: pytest.MonkeyPatch, before: Callable[[Path, Path], None]) -> None:
    """Call `before` with source and target of every `Path.rename`."""
    rename = Path.rename

    def recorded(self: Path, target: Path) -> Path:
        before(self, Path(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", recorded)


def test_a_run_that_gives_up_does_not_take_the_work_of_another_with_it(tmp_path: Path) -> None:
    one, other = Staging(tmp_path / "out", DIGEST), Staging(tmp_path / "out", DIGEST)
    writer = FileWriter(one.data, FILE)
    FileWriter(other.data, FILE).abandon()
    other.abandon()
    write_data(writer)
    one.commit()
    assert (tmp_path / "out" / FILE.name).read_bytes() == WHOLE


@pytest.mark.parametrize("lost", [".", FILE.name])
def test_what_takes_the_output_or_a_file_of_it_as_soon_as_it_is_complete_is_noticed(
    lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = Staging(tmp_path / "out", DIGEST)
    write_whole(staging)
    rename = Path.rename

    def lose(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        if target.name != "out":
            return moved
        shutil.rmtree(target) if lost == "." else (target / lost).unlink()
        return moved

    monkeypatch.setattr(Path, "rename", lose)
    with pytest.raises(OutputError, match="another process changed"):
        staging.commit()
    staging.abandon()
    assert names_in(tmp_path) == ({"out"} if lost != "." else set())


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), SystemExit(128 + signal.SIGTERM)], ids=repr)
def test_when_a_replacement_fails_halfway_the_earlier_output_is_there_again(
    error: BaseException, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Snapshot
) -> None:
    monkeypatch.chdir(tmp_path)
    merge(pair.args[0], pair.args[1], "out")
    before = snapshot(tmp_path)
    failed: list[Path] = []

    def fail_once(source: Path, target: Path) -> None:
        if target.name == "out" and not failed:
            failed.append(source)
            raise error

    rename_recorder(monkeypatch, fail_once)
    monkeypatch.setattr("speechft_merge.output.staging.exchange", lambda *_: False)
    with pytest.raises((OutputError, SystemExit)):
        merge(pair.args[0], pair.args[1], "out", alpha=0.5, options=MergeOptions(overwrite=True))
    assert failed
    assert snapshot(tmp_path) == before


@pytest.fixture
def replacing(tmp_path: Path) -> Staging:
    """A run with a finished file that has moved an output aside, and not yet put its own there."""
    staging = Staging(tmp_path / "out", DIGEST)
    staging.record(write_whole(staging))
    (staging.path / REPLACED).mkdir()
    (staging.path / REPLACED / "config.json").write_text("{}")
    return staging


def test_what_was_moved_aside_is_put_back_by_a_run_that_gives_up(replacing: Staging) -> None:
    assert replacing.abandon()
    assert names_in(replacing.output) == {"config.json"}


def test_what_was_moved_aside_is_put_back_by_whoever_sweeps_up(replacing: Staging, tmp_path: Path) -> None:
    killed(replacing)
    sweep(tmp_path / "out")
    assert names_in(tmp_path) == {"out"}
    assert names_in(tmp_path / "out") == {"config.json"}
