"""Merges that are stopped, killed, or run twice at once: the output is whole or absent, and work is not lost."""

from __future__ import annotations

import functools
import json
import random
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from speechft_merge import MergeOptions
from speechft_merge.merging import merge

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Sequence

    from conftest import Run, Snapshot, Start, Tiny

    Undisturbed = Callable[[Sequence[str]], dict[str, str]]
    StartSlow = Callable[..., subprocess.Popen[str]]

SHARDED = ["--max-shard-size", "4MB"]
FILES = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "speechft_merge.json"}


@pytest.fixture(scope="module")
def merge_args(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a merge that writes some eighty chunks, one after the other."""
    base = tiny.weights(hidden=512, layers=3)
    pair = tiny.write_pair(tmp_path_factory.mktemp("pair"), base, tiny.ctc(tiny.finetuned(base)))
    return [*pair.args, "-q", "--workers", "1", "-o", "out"]


@pytest.fixture
def start_slow(start: Start, merge_args: list[str]) -> StartSlow:
    """Start that merge with so many seconds for each chunk."""

    def start_slow(seconds: float, *options: str) -> subprocess.Popen[str]:
        slowly = [sys.executable, str(Path(__file__).parents[1] / "slowly.py"), str(seconds)]
        return start(*merge_args, *options, command=slowly)

    return start_slow


@pytest.fixture(scope="module")
def undisturbed(merge_args: list[str], tmp_path_factory: pytest.TempPathFactory, snapshot: Snapshot) -> Undisturbed:
    """What is in the output when nothing happens on the way, by the options given besides."""

    @functools.cache
    def make(sharded: bool) -> dict[str, str]:
        folder = tmp_path_factory.mktemp("undisturbed") / "out"
        command = [*merge_args, *(SHARDED if sharded else [])]
        merge(
            *merge_args[:2],
            folder,
            options=MergeOptions(max_shard_size=4_000_000 if sharded else None, command=tuple(command)),
        )
        return snapshot(folder)

    return lambda options: make(list(options) == SHARDED)


def hidden_in(folder: Path) -> list[Path]:
    """What a merge left, or has not finished."""
    return sorted(folder.glob(".*"))


def wait_for(happened: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def is_writing(folder: Path) -> bool:
    return bool(list(folder.glob(".*/data/.model*.tmp")))


def finished_shards(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of each shard that has its name in the unfinished output."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.glob(".*.partial/data/model-*.safetensors")
    }


def has_journal_of(folder: Path, count: int) -> bool:
    return any(path.read_text().count('"file"') >= count for path in folder.glob(".*.partial/finished.json"))


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)],
    ids=lambda value: str(value),
)
def test_a_signal_ends_the_merge_and_nothing_is_left(
    number: signal.Signals, code: int, start_slow: StartSlow, tmp_path: Path
) -> None:
    process = start_slow(0.2)
    wait_for(lambda: is_writing(tmp_path), process)
    process.send_signal(number)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out, err) == (code, "", f"speechft-merge: error: stopped by {number.name}\n")
    assert list(tmp_path.iterdir()) == []


def test_the_end_comes_at_once(start_slow: StartSlow, tmp_path: Path) -> None:
    """Preempted jobs may have no more than a few seconds: the chunk in hand is the last one."""
    process = start_slow(10)
    wait_for(lambda: is_writing(tmp_path), process)
    process.terminate()
    process.communicate(timeout=100)  # the whole merge would take minutes
    assert process.returncode == 143


def test_a_second_signal_does_not_disturb_the_cleaning(start_slow: StartSlow, tmp_path: Path) -> None:
    process = start_slow(0.2)
    wait_for(lambda: is_writing(tmp_path), process)
    process.terminate()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        process.send_signal(number)
    assert process.wait(timeout=100) in (130, 138, 143)  # which one is delivered first is the system's choice
    assert list(tmp_path.iterdir()) == []


def test_after_a_kill_there_is_no_output_and_the_next_run_makes_it(
    merge_args: list[str], start_slow: StartSlow, run: Run, tmp_path: Path
) -> None:
    process = start_slow(0.2)
    wait_for(lambda: is_writing(tmp_path), process)
    process.kill()
    process.communicate()
    assert not (tmp_path / "out").exists()
    ran = run(*merge_args)
    assert (ran.code, ran.out) == (0, "out\n")
    assert names_in(tmp_path) == {"out"}
    assert names_in(tmp_path / "out") == FILES


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda value: str(value))
def test_finished_shards_are_kept_and_the_result_is_that_of_an_undisturbed_run(
    number: signal.Signals,
    merge_args: list[str],
    start_slow: StartSlow,
    run: Run,
    tmp_path: Path,
    snapshot: Snapshot,
    undisturbed: Undisturbed,
) -> None:
    process = start_slow(0.04, *SHARDED, "--json")
    wait_for(lambda: has_journal_of(tmp_path, 3), process)
    process.send_signal(number)
    _, err = process.communicate(timeout=100)
    if number == signal.SIGTERM:
        assert process.returncode == 143
        told = json.loads(err)
        assert (told["error"], told["exit_code"]) == ("stopped by SIGTERM", 143)
        assert told["hint"].startswith("finished shards are kept")
    assert not (tmp_path / "out").exists()
    kept = finished_shards(tmp_path)
    assert len(kept) >= 3
    assert run(*merge_args, *SHARDED).code == 0
    assert names_in(tmp_path) == {"out"}
    for name in sorted(kept)[:3]:
        now = (tmp_path / "out" / name).stat()
        assert (now.st_ino, now.st_mtime_ns) == kept[name]
    assert snapshot(tmp_path / "out") == undisturbed(SHARDED)


def test_a_finished_shard_that_was_tampered_with_is_made_again(
    merge_args: list[str],
    start_slow: StartSlow,
    run: Run,
    tmp_path: Path,
    snapshot: Snapshot,
    undisturbed: Undisturbed,
) -> None:
    process = start_slow(0.04, *SHARDED)
    wait_for(lambda: has_journal_of(tmp_path, 2), process)
    process.kill()
    process.communicate()
    (shard,) = tmp_path.glob(".*.partial/data/model-00001-*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert run(*merge_args, *SHARDED).code == 0
    assert snapshot(tmp_path / "out") == undisturbed(SHARDED)


def test_killed_at_any_moment_the_output_is_whole_or_absent(
    merge_args: list[str],
    start_slow: StartSlow,
    run: Run,
    tmp_path: Path,
    snapshot: Snapshot,
    undisturbed: Undisturbed,
) -> None:
    whole = undisturbed(SHARDED)
    dice = random.Random(0)
    for _ in range(12):
        process = start_slow(0.005, *SHARDED)
        time.sleep(dice.uniform(0.2, 1.0))
        process.kill()
        process.communicate()
        if (tmp_path / "out").exists():
            assert snapshot(tmp_path / "out") == whole
            (tmp_path / "out").rename(tmp_path / f"out{time.monotonic_ns()}")
    ran = run(*merge_args, *SHARDED)
    assert ran.code == 0
    assert snapshot(tmp_path / "out") == whole
    assert hidden_in(tmp_path) == []


@pytest.mark.parametrize("options", [[], SHARDED], ids=["single", "sharded"])
@pytest.mark.parametrize("slower", [0, 1], ids=["first-slower", "second-slower"])
def test_two_runs_of_one_merge_at_once_both_succeed(
    slower: int,
    options: list[str],
    start_slow: StartSlow,
    tmp_path: Path,
    snapshot: Snapshot,
    undisturbed: Undisturbed,
) -> None:
    processes = start_two(start_slow, options, tmp_path)
    processes[slower].send_signal(signal.SIGSTOP)
    processes[1 - slower].send_signal(signal.SIGCONT)
    for process in (processes[1 - slower], processes[slower]):
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=100)
        assert (process.returncode, out, err) == (0, "out\n", "")
    assert names_in(tmp_path) == {"out"}
    assert snapshot(tmp_path / "out") == undisturbed(options)


@pytest.mark.parametrize("stopped", [0, 1], ids=["first", "second"])
def test_stopping_one_of_two_runs_does_not_harm_the_other(stopped: int, start_slow: StartSlow, tmp_path: Path) -> None:
    processes = start_two(start_slow, [], tmp_path)
    processes[1 - stopped].send_signal(signal.SIGSTOP)
    processes[stopped].terminate()
    processes[stopped].send_signal(signal.SIGCONT)
    assert processes[stopped].wait(timeout=100) == 143
    processes[1 - stopped].send_signal(signal.SIGCONT)
    out, err = processes[1 - stopped].communicate(timeout=100)
    assert (processes[1 - stopped].returncode, out, err) == (0, "out\n", "")
    assert names_in(tmp_path) == {"out"}
    assert names_in(tmp_path / "out") == FILES


def start_two(start_slow: StartSlow, options: Sequence[str], folder: Path) -> list[subprocess.Popen[str]]:
    """Two runs of one merge, the first held while the second begins to write too."""
    first = start_slow(0.02, *options)
    wait_for(lambda: is_writing(folder), first)
    first.send_signal(signal.SIGSTOP)
    second = start_slow(0.02, *options)
    wait_for(lambda: len(list(folder.glob(".*/data/.model*.tmp"))) == 2, second)
    return [first, second]
