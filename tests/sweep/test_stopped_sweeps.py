"""A sweep that is stopped at any moment loses at most the cell in hand, and the next run ends as an undisturbed one."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PAIR = Path(__file__).parents[2] / "examples/pair"
MODELS = ["sweep", str(PAIR / "base"), str(PAIR / "finetuned")]
GRID = ["--alphas", "0:1:0.25", "-o", "out", "-q"]
KINDS = {
    "features": ["--probe-seconds", "15"],
    "a command": ["--no-cka", "--score", "size=du -sb {model} | cut -f1", "--scratch", "scratch"],
}
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs a command in a folder, and sends it a signal after some seconds."""
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("forks.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def ask(args: list[str], folder: Path, number: int = 0, after: float = 0.0) -> dict[str, Any]:
            (folder / "scratch").mkdir(exist_ok=True)
            asked = {"args": args, "folder": str(folder), "signal": number, "after": after}
            print(json.dumps(asked), file=server.stdin, flush=True)
            found: dict[str, Any] = json.loads(server.stdout.readline())
            return found

        yield ask
        server.stdin.close()


def figures(folder: Path) -> dict[str, Any]:
    """The results of the cells that are done, without what they took; each file must be whole."""
    files = [path for path in (folder / "out/cells").glob("*.json") if not path.name.startswith(".")]
    return {path.name: json.loads(path.read_text()) | {"seconds": None} for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_a_sweep_loses_at_most_the_cell_in_hand(kind: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    command = [*MODELS, *GRID, *KINDS[kind]]
    undisturbed = run(command, tmp_path / "whole")
    assert undisturbed["code"] == 0, undisturbed["log"]
    whole, chance, done = figures(tmp_path / "whole"), random.Random(1), {}
    for _ in range(25):
        ended = run(command, tmp_path / "killed", signal.SIGKILL, chance.uniform(0, undisturbed["seconds"]))
        before, done = done, figures(tmp_path / "killed")
        assert ended["code"] in (0, 137), ended["log"]
        assert done.items() >= before.items()
        assert whole.items() >= done.items()
        if len(done) == len(whole):  # begin again
            for path in (tmp_path / "killed/out/cells").iterdir():
                path.unlink()
            done = {}
    assert run(command, tmp_path / "killed")["code"] == 0
    assert figures(tmp_path / "killed") == whole


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_ends_a_sweep_at_once_and_leaves_nothing_but_whole_cells(
    kind: str, number: signal.Signals, run: Run, tmp_path: Path
) -> None:
    command = [*MODELS, *GRID, *KINDS[kind]]
    for after in (0.3, 0.6, 0.9):
        ended = run(command, tmp_path, number, after)
        assert ended["code"] in (0, 128 + number), ended["log"]
        assert "Traceback" not in ended["log"]
        assert ended["lived"] < 60  # it waits for nothing: 0.1 to 0.5 s where nothing else runs
        figures(tmp_path)
        assert [*(tmp_path / "scratch").iterdir()] == []
    assert run(command, tmp_path)["code"] == 0
    assert len(figures(tmp_path)) == 5
