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
    (tmp_path / "bin/speechft-merge").write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
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
    """A sweep that takes some seconds.

    In `work`, the file `made` has a line for each time that a cell was measured, and models are written to `scratch`.
    """

    work: Path
    expected: dict[str, Any]
    """What the cells hold when one process makes them all."""

    def environment(self) -> dict[str, str]:
        (self.work / "scratch").mkdir()
        return {"MADE": str(self.work / "made"), "TMPDIR": str(self.work / "scratch")}

    def words(self, folder: Path) -> list[str]:
        """The command, but for its share."""
        return [*COMMAND, "sweep", *MODELS, *OPTIONS, "-q", "-o", str(folder)]

    def script_arguments(self, folder: Path) -> list[str]:
        """What `sweep.sh` is told."""
        return [*MODELS, str(folder), *OPTIONS]

    def cells(self, folder: Path) -> dict[str, Any]:
        """What each finished cell holds, but for the time that it took."""
        files = sorted((folder / "cells").glob("[!.]*.json"))
        return {path.name: json.loads(path.read_text()) | {"seconds": None} for path in files}

    def assert_whole(self, folder: Path, killed: int = 0) -> None:
        """Every cell is there and is what it should be; none was measured twice, but for those in hand at a kill."""
        assert self.cells(folder) == self.expected
        more = len((self.work / "made").read_text().splitlines()) - len(self.expected)
        assert 0 <= more <= killed
        assert [*(self.work / "scratch").rglob("*.safetensors")] == [], "no model of a cell is left"


MODELS = tuple(str(EXAMPLES / "pair" / name) for name in ("base", "finetuned"))
SCORE = "n=$((0x$(sha256sum {model}/model.safetensors | cut -c1-8))); sleep 0.3; echo $n >> $MADE; echo $n"
OPTIONS = ("--alphas", "0:1:0.1", "--no-cka", "--score", f"weights={SCORE}")
"""What is measured of a merge are its bytes."""


@pytest.fixture(scope="session")
def serial_cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("serial")
    bare = Sweep(folder, {})
    environment = plain_environment() | bare.environment()
    subprocess.run(bare.words(folder / "alphas"), env=environment, check=True, stdin=subprocess.DEVNULL, timeout=300)
    return bare.cells(folder / "alphas")


@pytest.fixture
def sweep(serial_cells: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    prepared = Sweep(tmp_path, serial_cells)
    for name, value in prepared.environment().items():
        monkeypatch.setenv(name, value)
    return prepared
