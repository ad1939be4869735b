"""A signal before any of the calls with which a merge changes the file system: the old or the new output stands."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from injection import Plan
from zygote import Ended, Job, Runs, hidden

if TYPE_CHECKING:
    from conftest import Pair

MODES = {
    "single": [],
    "sharded": ["--max-shard-size", "8KB"],
    "single replacing": ["--overwrite"],
    "sharded replacing": ["--max-shard-size", "8KB", "--overwrite"],
    "replacing in two steps": ["--overwrite"],
}
MOST = 400
"""Calls that a merge makes, at most."""


def merge(small: Pair, folder: Path, options: list[str], alpha: str, plan: Plan) -> Job:
    words = [*small.args, "-o", "out", "-q", "--workers", "1", "--alpha", alpha, *options]
    return Job(words, str(folder), "job", plan, watched="out")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP], ids=lambda value: str(value))
@pytest.mark.parametrize("mode", MODES)
def test_stopped_at_any_call_the_old_or_the_new_output_stands_and_the_next_run_is_right(
    mode: str, number: signal.Signals, small: Pair, runs: Runs, tmp_path: Path
) -> None:
    options, replacing, exchange = MODES[mode], "replacing" in mode, "two steps" not in mode
    (tmp_path / "first").mkdir()
    (before,) = runs([merge(small, tmp_path / "first", options, "0.1", Plan())])
    count = tmp_path / "count"
    (tmp_path / "fresh").mkdir()
    if replacing:
        shutil.copytree(tmp_path / "first/out", tmp_path / "fresh/out")
    (undisturbed,) = runs(
        [merge(small, tmp_path / "fresh", options, "0.3", Plan(counted=str(count), exchange=exchange))]
    )
    calls = int(count.read_text())
    assert (undisturbed.code, 20 < calls < MOST) == (0, True), undisturbed.err
    allowed = [before.seen if replacing else None, undisturbed.seen]
    if number is signal.SIGKILL and not exchange:  # between the two steps; the next run puts it back first
        allowed.append(None)
    for at in range(calls + 1):
        folder = tmp_path / str(at)
        folder.mkdir()
        if replacing:
            shutil.copytree(tmp_path / "first/out", folder / "out")
        (ended,) = runs([merge(small, folder, options, "0.3", Plan(at=at, signal=number, exchange=exchange))])
        assert ended.seen in allowed, (at, ended)
        assert_told(ended, number, hidden(folder), undisturbed, "sharded" in mode, at)
        (again,) = runs([merge(small, folder, options, "0.3", Plan())])
        assert (again.code, again.seen, hidden(folder)) == (0, undisturbed.seen, []), (at, again)
        shutil.rmtree(folder)


def assert_told(
    ended: Ended, number: signal.Signals, left: list[str], undisturbed: Ended, sharded: bool, at: int
) -> None:
    """A process that is not killed says what it leaves: nothing, its finished shards, or a whole output."""
    if number is signal.SIGKILL:
        return
    assert ended.code in (0, 128 + number), (at, ended)
    assert "Traceback" not in ended.err
    if ended.code == 0:
        assert ended.seen == undisturbed.seen
    if ended.code and ended.seen == undisturbed.seen:
        assert "the merge is complete" in ended.err, (at, ended)
    assert not left or (sharded and "finished shards are kept" in ended.err), (at, left, ended)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["single", "sharded"])
def test_what_a_killed_merge_left_goes_with_the_next_one_of_another_recipe(
    mode: str, small: Pair, runs: Runs, tmp_path: Path
) -> None:
    for at in range(5, MOST, 7):
        folder = tmp_path / str(at)
        folder.mkdir()
        (killed,) = runs([merge(small, folder, MODES[mode], "0.3", Plan(at=at))])
        if killed.code == 0:
            return
        (other,) = runs([merge(small, folder, [*MODES[mode], "--overwrite"], "0.2", Plan())])
        assert (other.code, hidden(folder)) == (0, []), (at, other)
