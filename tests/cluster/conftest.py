"""A Slurm of this session's own, and a sweep for it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub_fixtures import hub, hub_server
from private_slurm import NODES, RunningSlurm, Slurm, eventually, missing_programs
from processes import COMMAND, plain_environment

from speechft_merge.sweep.slurm_array import SlurmArray

__all__ = ["hub", "hub_server"]

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def running_slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if missing := missing_programs():
        pytest.skip(f"needs Debian's packages slurmctld, slurmd, slurm-client and munge: no {', '.join(missing)}")
    with RunningSlurm(tmp_path_factory.mktemp("slurm")) as slurm:
        yield slurm


@pytest.fixture
def slurm(running_slurm: Slurm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Slurm]:
    """Both nodes idle, and the command on the PATH; commands of this process find it too."""
    (tmp_path / "bin").mkdir()
    command = f'[ "$1" = sweep ] && exec {shlex.join(PROGRAM)} "$@"; exec {shlex.join(COMMAND)} "$@"'
    (tmp_path / "bin/speechft-merge").write_text(f"#!/bin/sh\n{command}\n")
    (tmp_path / "bin/speechft-merge").chmod(0o755)
    environment = running_slurm.environment
    monkeypatch.setenv("SLURM_CONF", environment["SLURM_CONF"])
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{environment['PATH']}")
    monkeypatch.setattr(SlurmArray, "squeue_every", 0.5)
    monkeypatch.setattr(SlurmArray, "results_visible", 2.0)
    yield running_slurm
    running_slurm.end_jobs()
    for node in NODES:
        if running_slurm("sinfo", "--noheader", "-n", node, "-o", "%T") != "idle":
            running_slurm("scontrol", "update", f"NodeName={node}", "State=RESUME")
    eventually(running_slurm.is_idle, "both nodes are idle", running_slurm.log)


@dataclass(frozen=True)
class Sweep:
    """A sweep that takes some seconds on one node."""

    models: tuple[str, str]
    options: tuple[str, ...]
    expected: dict[str, Any]
    """What the cells hold when no other process takes part."""

    def words(self, folder: Path, *options: str) -> list[str]:
        """The command, but for its share."""
        return [*PROGRAM, "sweep", *self.models, *self.options, *options, "-o", str(folder)]

    def cells(self, folder: Path) -> dict[str, Any]:
        """What each finished cell holds."""
        return {path.name: json.loads(path.read_text()) for path in sorted((folder / "cells").glob("*.json"))}

    def assert_whole(self, folder: Path) -> None:
        """Every cell is there, was finished once, and is what it should be."""
        assert self.cells(folder) == self.expected
        times = {path.name: path.read_text().splitlines() for path in (folder / "made").iterdir()}
        assert [name for name, lines in times.items() if len(lines) != 1] == []
        assert len(times) == len(self.expected)


PROGRAM = [sys.executable, str(Path(__file__).with_name("cells.py"))]


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    folder = tmp_path_factory.mktemp("serial")
    pair = EXAMPLES / "pair"
    bare = Sweep((str(pair / "base"), str(pair / "finetuned")), ("--alphas", "0:1:0.05"), {})
    subprocess.run(bare.words(folder), env=plain_environment(), check=True, stdin=subprocess.DEVNULL, timeout=300)
    return Sweep(bare.models, bare.options, bare.cells(folder))
