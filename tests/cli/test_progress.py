"""Progress is one line, a bar or plain lines, and a line with what it took; nothing is silent for long."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import plain_environment

from speechft_merge import MergeOptions, ProbeRequest, compare, merge, verify
from speechft_merge.cli import progress as shown
from speechft_merge.cli.progress import HIDDEN, LATE, SOON, ProgressLine, is_due
from speechft_merge.cli.sink import Sink
from speechft_merge.progress import Step

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Pair, Run, SavePair

STAMP = re.compile(r"\[\d\d:\d\d:\d\d\] ")
STEPS = st.builds(Step, st.sampled_from(["merging", "statistics"]), st.integers(0, 20), st.sampled_from([0, 20]))


@pytest.fixture(autouse=True)
def _progress_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HIDDEN)


@given(STEPS, st.none() | STEPS, st.floats(0, 100))
def test_a_log_is_never_silent_for_long_nor_full_of_lines(step: Step, told: Step | None, silence: float) -> None:
    due = is_due(step, told, silence)
    if silence >= LATE or (silence >= SOON and (told is None or told.stage != step.stage)):
        assert due
    if silence < SOON and due:
        assert told is not None
        assert (told.stage, step.done) == (step.stage, step.total)


def test_a_stage_that_was_told_is_told_to_its_end() -> None:
    half, whole = Step("merging", 10, 20), Step("merging", 20, 20)
    assert is_due(whole, half, 0.0)
    assert not is_due(whole, whole, 0.0)
    assert not is_due(whole, None, 0.0)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Step("merging", 10**8, 4 * 10**8), "merging 25 % of 400.0 MB"),
        (Step("running the models", 3, 24, "clips"), "running the models 3 of 24 clips"),
        (Step("statistics"), "statistics"),
    ],
)
def test_a_step_is_a_readable_line(step: Step, words: str) -> None:
    assert str(step) == words


def test_the_steps_of_a_merge_end_with_all_of_it(pair: Pair, tmp_path: Path) -> None:
    steps: list[Step] = []
    result = merge(pair.base, pair.finetuned, tmp_path / "out", options=MergeOptions(workers=2), progress=steps.append)
    size = sum(entry.size for entry in result.manifest.outputs)
    assert {step.stage for step in steps} == {"merging"}
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1].done == steps[-1].total == size
    verify(tmp_path / "out", progress=steps.append)
    assert steps[-1] == Step("checking", steps[-1].total, steps[-1].total)


def test_the_steps_of_a_comparison_name_its_stages(save_pair: SavePair, few_clips: Any) -> None:
    steps: list[Step] = []
    compare(*save_pair("Hubert"), request=ProbeRequest(few_clips), progress=steps.append)
    stages = [*dict.fromkeys(step.stage for step in steps)]
    assert stages[:2] == ["opening the models", "reading the probe"]
    assert stages[-3:] == ["loading merged in memory", "running the models", "statistics"] or stages[-1] == "statistics"
    clips = [step for step in steps if step.unit == "clips"]
    assert clips[-1].done == clips[-1].total == len(few_clips)


def test_a_log_has_a_first_line_stamped_lines_and_what_it_took(pair: Pair, spawn: Run) -> None:
    ran = spawn(*pair.args, "-o", "out")
    first, *_, last = ran.err.splitlines()
    assert STAMP.sub("", first) == f"{pair.base} + {pair.finetuned} -> out (alpha 0.25)"
    assert re.fullmatch(r"\[\S+\] done in \d+\.\d s.*", last)
    assert all(STAMP.match(line) for line in ran.err.splitlines())
    assert not {"\r", "\x1b"} & {*ran.err}


@pytest.mark.parametrize("option", ["-q", "--json"])
def test_a_script_that_wants_the_result_alone_sees_no_progress(option: str, pair: Pair, spawn: Run) -> None:
    assert spawn(*pair.args, "-o", "out", option).err == ""


def test_a_failure_has_no_line_of_success(pair: Pair, spawn: Run) -> None:
    ran = spawn(*pair.args[::-1], "-o", "out")
    assert ran.code == 65
    assert "done in" not in ran.err


def test_a_slow_stage_is_named_in_a_log_though_nobody_reports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shown, "SOON", 0.0)
    with ProgressLine(Sink(), "a + b -> c") as progress:
        progress(Step("statistics"))
        progress(Step("merging", 1, 2))
        progress(Step("merging", 2, 2))
    lines = [STAMP.sub("", line) for line in capsys.readouterr().err.splitlines()]
    assert lines[:4] == ["a + b -> c", "statistics", "merging 50 % of 2 bytes", "merging 100 % of 2 bytes"]


@pytest.mark.parametrize(("value", "silent"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_progress_is_hidden_as_huggingface_hub_hides_it(
    value: str, silent: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(HIDDEN, value)
    with ProgressLine(Sink(), "a -> b"):
        pass
    assert (capsys.readouterr().err == "") == silent


AT_ONCE = """
import sys
from speechft_merge.__main__ import main
from speechft_merge.cli import progress

progress.UNSEEN = 0.0
main()
"""
"""The command, which draws its bar at once."""


def on_terminal(*args: str, cwd: Path, **env: str) -> str:
    """What a command shows on a terminal."""
    ours, theirs = pty.openpty()
    environment = plain_environment() | {"TERM": "xterm", "COLUMNS": "80"} | env
    with subprocess.Popen(
        [sys.executable, "-c", AT_ONCE, *args], cwd=cwd, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        told = b""
        while True:
            try:
                told += os.read(ours, 65_536)
            except OSError:  # the other end is closed
                break
        assert process.wait() == 0
    os.close(ours)
    return told.decode()


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_terminal_has_first_and_last_line_and_a_dumb_one_no_bar(term: str, pair: Pair, tmp_path: Path) -> None:
    told = on_terminal(*pair.args, "-o", "out", cwd=tmp_path, TERM=term)
    assert " -> out" in told
    assert "done in" in told
    assert ("\x1b" in told, "merging" in told.partition("done in")[0]) == (term == "xterm", term == "xterm")
