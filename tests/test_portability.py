"""What other systems lack is taken away here: a merge writes the same without, and on Windows one sentence says no."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from processes import Ran, plain_environment

from speechft_merge.cli.entry import _allow_files

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Run, Snapshot

ROOT = Path(__file__).parents[1]
PAIR = [str(ROOT / "examples/pair" / name) for name in ("base", "finetuned")]
SENTENCE = "speechft-merge runs on Linux and macOS; on Windows use WSL"

AS_ON_MACOS = """
import ctypes, os, signal
for name in "posix_fallocate posix_fadvise sched_getaffinity preadv pwritev fdatasync copy_file_range".split():
    delattr(os, name)

class Library(ctypes.CDLL):
    def __getattr__(self, name):
        if name == "renameat2":
            raise AttributeError(name)
        return super().__getattr__(name)

ctypes.CDLL = Library
"""

STOPPED_AT_THE_THIRD_SHARD = """
begun, truncate = [], os.ftruncate

def ftruncate(fd, size):
    begun.append(fd)
    if len(begun) == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    truncate(fd, size)

os.ftruncate = ftruncate
"""

AS_ON_WINDOWS = """
import enum, os, signal, sys
for name in "fcntl resource pwd grp termios".split():
    sys.modules[name] = None
for name in "pread pwrite preadv posix_fallocate sched_getaffinity O_CLOEXEC O_NONBLOCK O_DIRECTORY EX_IOERR".split():
    delattr(os, name)
for name in "SIGUSR1 SIGHUP SIGXCPU SIGPIPE".split():
    delattr(signal, name)
signal.Signals = enum.IntEnum("Signals", {"SIGINT": 2, "SIGTERM": 15})
"""

ITS_NAME = "import sys; sys.platform = 'win32'\n"
COMMAND = "from speechft_merge.__main__ import main; main()"


@pytest.fixture
def run_code(tmp_path: Path) -> Callable[..., Ran]:
    """Run Python code in `tmp_path`, with arguments."""

    def run_code(code: str, *args: object) -> Ran:
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, args)], cwd=tmp_path, env=plain_environment(), capture_output=True,
            encoding="utf-8", timeout=300, check=False,
        )  # fmt: skip
        return Ran(done.returncode, done.stdout, done.stderr)

    return run_code


def test_without_what_only_linux_has_a_merge_writes_the_same_and_replaces_another(
    spawn: Run, run_code: Callable[..., Ran], snapshot: Snapshot, tmp_path: Path
) -> None:
    for folder, alpha in (("linux", "0.25"), ("linux again", "0.5")):
        (tmp_path / folder).mkdir()
        assert spawn(*PAIR, "-o", "out", "--alpha", alpha, "--overwrite", "-q", cwd=tmp_path / folder).code == 0
    for folder, alpha in (("linux", "0.25"), ("linux again", "0.5")):
        ran = run_code(AS_ON_MACOS + COMMAND, *PAIR, "-o", "out", "--alpha", alpha, "--overwrite", "-q")
        assert (ran.code, ran.out, ran.err) == (0, "out\n", "")
        assert snapshot(tmp_path / "out") == snapshot(tmp_path / folder / "out")
        assert {path.name for path in tmp_path.iterdir()} == {"linux", "linux again", "out"}


def test_without_what_only_linux_has_finished_shards_are_kept(run_code: Callable[..., Ran], tmp_path: Path) -> None:
    args = [*PAIR, "-o", "out", "--max-shard-size", "1MB"]
    stopped = run_code(AS_ON_MACOS + STOPPED_AT_THE_THIRD_SHARD + COMMAND, *args)
    assert stopped.code == 128 + 15
    assert "finished shards are kept" in stopped.err
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob(".out.*/data/*")}
    assert len(kept) == 2
    assert run_code(AS_ON_MACOS + COMMAND, *args).code == 0
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("out/*.safetensors")}
    assert len(written) > 2
    assert written | kept == written
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("output", ["BASE", "BASE/out", "out/../BASE"])
def test_an_input_is_not_replaced_under_a_second_name_that_its_file_system_has_for_it(
    output: str, spawn: Run, snapshot: Snapshot, tmp_path: Path
) -> None:
    for name in ("base", "BASE"):
        (tmp_path / name).mkdir()
    assert spawn(*PAIR, "-o", "base", "-q").code == 0
    before = snapshot(tmp_path)
    second_name = ["unshare", "-rm", "sh", "-c", 'mount --bind base BASE && "$@"', "sh"]
    if subprocess.run([*second_name, "true"], cwd=tmp_path, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    ran = spawn("base", PAIR[1], "-o", output, "--overwrite", wrapper=second_name)
    assert ran.code == 2
    assert "overlap" in ran.err
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("now", "most", "allowed"),
    [(256, 1 << 20, 1 << 20), (256, resource.RLIM_INFINITY, 10_240), (20_000, resource.RLIM_INFINITY, 20_000)],
)
def test_as_many_files_may_be_open_as_the_system_allows(
    now: int, most: int, allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of macOS is not told: it says there is none, and then refuses that."""
    limits = [(now, most)]

    def limit(_: int, wanted: tuple[int, int]) -> None:
        if wanted[0] == resource.RLIM_INFINITY:
            raise ValueError("current limit exceeds maximum limit")
        limits.append(wanted)

    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", limit)
    _allow_files()
    assert limits[-1] == (allowed, limits[0][1])


@pytest.mark.parametrize("args", [["a", "b"], ["merge", "a", "b"], ["inspect", "a"], ["push", "a", "b/c"], []])
def test_on_windows_the_command_is_refused_in_one_sentence(args: list[str], run_code: Callable[..., Ran]) -> None:
    ran = run_code(AS_ON_WINDOWS + ITS_NAME + COMMAND, *args)
    assert (ran.code, ran.out, ran.err) == (2, "", f"speechft-merge: error: {SENTENCE}\n")


def test_on_windows_the_library_refuses_likewise(run_code: Callable[..., Ran]) -> None:
    code = """
import speechft_merge
from speechft_merge import SpeechFTMergeError
for name in ("merge", "open_checkpoint", "Recipe"):
    try:
        getattr(speechft_merge, name)
    except SpeechFTMergeError as error:
        print(type(error).__name__, error.exit_code, error)
"""
    ran = run_code(AS_ON_WINDOWS + ITS_NAME + code)
    assert (ran.code, ran.lines, ran.err) == (0, [f"UsageError 2 {SENTENCE}"] * 3, "")


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["merge", "-h"]])
def test_on_windows_help_and_version_are_there(args: list[str], run_code: Callable[..., Ran]) -> None:
    ran = run_code(f"{AS_ON_WINDOWS}import typer; {ITS_NAME}{COMMAND}", *args)  # typer would ask the console of Windows
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(("speechft-merge ", "Usage: "))
