"""A log that cannot be written changes nothing, and shows no secret."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from processes import COMMAND, plain_environment

if TYPE_CHECKING:
    from conftest import Pair

STATES = [(2, ">/dev/full"), (2, ">&-"), (2, "broken"), (1, ">&-"), (0, "<&-")]
SLOWLY = [sys.executable, str(Path(__file__).parents[1] / "slowly.py"), "0.05"]


def run_with(
    args: list[str], descriptor: int, state: str, folder: Path, command: list[str] = COMMAND
) -> tuple[int, str]:
    """Run with a stream that cannot be used; the exit code, and what the other stream got."""
    with start_with(args, descriptor, state, folder, command) as process:
        code = process.wait(timeout=100)
    return code, (folder / "other").read_text()


def start_with(
    args: list[str], descriptor: int, state: str, folder: Path, command: list[str] = COMMAND
) -> subprocess.Popen[bytes]:
    reading, writing = os.pipe()
    os.close(reading)
    redirected = f">&{writing}" if state == "broken" else state
    line = f'exec "$@" {1 if descriptor == 2 else 2}>other {descriptor}{redirected}'
    try:
        return subprocess.Popen(
            ["bash", "-c", line, "bash", *command, *args], cwd=folder, env=plain_environment(), pass_fds=(writing,)
        )
    finally:
        os.close(writing)


@pytest.mark.parametrize(("descriptor", "state"), STATES)
def test_exit_code_and_output_are_those_of_a_good_log(descriptor: int, state: str, pair: Pair, tmp_path: Path) -> None:
    options = ["-o", "out", "--alpha", "0.5", "-v", "--verify-inputs"]  # with notes on stderr
    code, other = run_with([*pair.args, *options], descriptor, state, tmp_path)
    assert (code, (tmp_path / "out/model.safetensors").exists(), "Traceback" in other) == (0, True, False)
    code, other = run_with([*pair.args, "nowhere", "-o", "out2"], descriptor, state, tmp_path)
    assert (code, (tmp_path / "out2").exists(), "Traceback" in other) == (66, False, False)


def test_of_a_result_that_cannot_be_printed_it_is_said_that_the_merge_is_complete(pair: Pair, tmp_path: Path) -> None:
    code, told = run_with([*pair.args, "-o", "out", "-q"], 1, ">/dev/full", tmp_path)
    assert (code, "the merge is complete: out" in told, "cannot write to stdout" in told) == (74, True, True)


@pytest.mark.parametrize(("descriptor", "state"), STATES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU], ids=lambda value: value.name)
def test_a_signal_ends_the_merge_as_with_a_good_log(
    number: signal.Signals, descriptor: int, state: str, pair: Pair, tmp_path: Path
) -> None:
    with start_with([*pair.args, "-o", "out", "--workers", "1"], descriptor, state, tmp_path, SLOWLY) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".*/data/.model*.tmp")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(number)
        assert process.wait(timeout=100) == 128 + number
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_closed_descriptor_is_not_given_to_a_file_that_is_written(pair: Pair, tmp_path: Path) -> None:
    """What a library prints to descriptor 2 would stand in the merged weights."""
    code = (
        "import os; from speechft_merge.cli.streams import prepare_streams; prepare_streams();"
        "fd = os.open('weights', os.O_WRONLY | os.O_CREAT); assert fd > 2, fd; os.write(2, b'noise')"
    )
    assert run_with([], 2, ">&-", tmp_path, [sys.executable, "-c", code])[0] == 0
    assert (tmp_path / "weights").read_bytes() == b""


def test_no_secret_is_printed_whoever_prints_it(tmp_path: Path) -> None:
    code = (
        "import logging, sys; from speechft_merge.cli.streams import prepare_streams; prepare_streams();"
        "logging.warning('PUT https://s3.x/y?X-Amz-Signature=%s', 'abc');"
        "print('Bearer hf_abcdefgh1234', file=sys.stderr); raise ValueError('http://alice:hunter2@host')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=plain_environment(), check=False
    )
    assert ran.returncode == 1
    assert "PUT https://s3.x/y?..." in ran.stderr
    assert not any(secret in ran.stderr for secret in ("Signature", "hf_abc", "hunter2"))
    assert "ValueError: http://host" in ran.stderr


LEAVING = """
import atexit, os, sys
class Object:
    def __del__(self, write=os.write): write(2, b"taken down")
held = Object()
sys.argv[0] = "speechft-merge"
from speechft_merge.cli import app, entry
command = app.app
def with_package(**options):
    atexit.register(print, "closed")  # as a package does that the command imports
    return command(**options)
app.app = with_package
entry.run()
"""


@pytest.mark.parametrize(
    ("args", "code", "out", "taken_down"),
    [(["inspect", "{base}", "-q"], 0, "closed\n", False), (["inspect", "nowhere"], 66, "closed\n", True)],
)
def test_after_a_success_packages_close_but_no_object_is_taken_down(
    args: list[str], code: int, out: str, taken_down: bool, pair: Pair, tmp_path: Path
) -> None:
    words = [word.format(base=pair.args[0]) for word in args]
    done = subprocess.run([sys.executable, "-c", LEAVING, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stdout.endswith(out)
    assert ("taken down" in done.stderr) == taken_down
