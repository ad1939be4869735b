"""A user's command on a model: what it is given, what is made of what it prints, and that it never outlives us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from speechft_merge.errors import ScoreError, UsageError
from speechft_merge.scoring.command import parse_command_score, read_printed, run_command
from speechft_merge.scoring.scores import Better

if TYPE_CHECKING:
    from candidates import Given

HIGHER = Better.HIGHER


def test_the_command_sees_the_model_and_the_environment_and_the_model_is_removed(
    written: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FACTOR", "0.25")
    scorer = parse_command_score("wer:lower= test -d {model} && echo {model} >seen && echo $FACTOR")
    (score,) = scorer.score(written)
    assert (score.name, score.better, score.value, score.units) == ("wer", Better.LOWER, 0.25, ())
    assert (tmp_path / "seen").read_text() == f"{written.folder}\n"
    assert written.folder is not None
    assert not written.folder.exists()


def test_equal_commands_have_equal_descriptions_which_do_not_hold_them() -> None:
    one, same, other = (parse_command_score(f"x=cat {{model}} --key {key}") for key in ("secret", "secret", "other"))
    assert one.description == same.description != other.description
    assert "secret" not in str(one.description)


@pytest.mark.parametrize("text", ["x", "x=cat", "cat {model}", "=cat {model}", "a b=cat {model}"])
def test_a_command_without_its_name_or_its_model_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_command_score(text)


def test_what_is_printed_is_one_number_or_records_among_other_lines() -> None:
    assert read_printed("x", HIGHER, "\n 0.5 \n\n")[0].value == 0.5
    lines = 'loading\n{"id": "a\u2028b", "correct": 1, "total": 2}\n {"id": 2, "correct": 2, "total": 2}\ndone\n'
    (score,) = read_printed("x", HIGHER, lines)
    assert (score.value, len(score.units)) == (0.75, 2)


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        ("", "printed nothing"),
        ("loading\n0.5\n", r"neither one number nor records; found loading \| 0\.5; let it print the number alone"),
        ("0.5 0.6", "neither one number"),
        ("\x1b[31mred", r"found \\x1b\[31mred"),
        ("nan", "not a finite number"),
        ("{nonsense", "which is not JSON"),
        ('{"a":' * 100_000, "which is not JSON"),
        ('{"id": "a", "value": NaN}', "not a finite number"),
    ],
)
def test_anything_else_is_an_error_that_shows_it(printed: str, told: str) -> None:
    with pytest.raises(ScoreError, match=told):
        read_printed("x", HIGHER, printed)


def test_a_command_that_fails_is_quoted_from_its_last_lines() -> None:
    with pytest.raises(ScoreError) as caught:
        run_command("seq 100 >&2; printf 'bad \\033[2J model\\n\\n' >&2; echo 0.5; exit 3", "wer")
    assert caught.value.message == "wer: the command ended with exit code 3"
    assert caught.value.found == r"on its stderr: 97 | 98 | 99 | 100 | bad \x1b[2J model"
    with pytest.raises(ScoreError, match="was ended by SIGKILL"):
        run_command("kill -KILL $$", "wer")
    with pytest.raises(ScoreError, match="ended with exit code 127"):
        run_command("no-such-program", "wer")


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: list[int], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@ON_LINUX
def test_what_a_command_leaves_running_ends_with_it(tmp_path: Path) -> None:
    printed = run_command(f"sleep 1000 & echo $! >{tmp_path}/pid; echo 0.5", "x")
    assert printed == "0.5\n"
    assert gone([int((tmp_path / "pid").read_text())])


def test_a_command_may_wait_for_all_its_children(tmp_path: Path) -> None:
    """What watches it is none of them."""
    script = tmp_path / "waits.py"
    script.write_text("import os\ntry:\n    os.wait()\nexcept ChildProcessError:\n    print(1)\n")
    assert run_command(f"{sys.executable} {script}", "x") == "1\n"
    assert run_command("sleep 0.01 & wait; cat; echo 2", "x") == "2\n"


SCORES = """
import os, sys
from speechft_merge.background import wait_for
from speechft_merge.cli import entry
from speechft_merge.scoring.command import run_command
import speechft_merge.cli.app as app
app.app = lambda **_: wait_for(lambda: run_command(sys.argv[1], "x"))
entry.run()
"""
"""The command line's own way with signals, around one command."""


@ON_LINUX
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGKILL])
@pytest.mark.parametrize("first", ["", "trap '' TERM INT; "], ids=["meek", "stubborn"])
def test_a_command_and_its_children_end_with_us_by_whatever_signal(
    number: signal.Signals, first: str, tmp_path: Path
) -> None:
    """A child in a process group of its own among them."""
    ready = tmp_path / "pids"
    started = "sleep 1000 & one=$!; timeout 900 sleep 1000 & two=$!"
    command = f"{first}{started}; echo $$ $one $two >{ready}.tmp; mv {ready}.tmp {ready}; wait; sleep 1000"
    with subprocess.Popen([sys.executable, "-c", SCORES, command], stderr=subprocess.PIPE) as process:
        while not ready.exists():
            assert process.poll() is None
            time.sleep(0.02)
        pids = [int(word) for word in ready.read_text().split()]
        assert all(map(is_running, pids))
        os.kill(process.pid, number)
        process.communicate(timeout=20)
    assert process.returncode == (-number if number is signal.SIGKILL else 128 + number)
    assert gone(pids)
