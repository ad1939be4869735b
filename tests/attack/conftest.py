"""A process that forks the command, and inputs for it that are small enough for thousands of runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hub_fixtures import forking, hub, hub_server, spawn
from processes import plain_environment
from zygote import Ended, Job, Runs

if TYPE_CHECKING:
    from conftest import Pair, Tiny


__all__ = ["forking", "hub", "hub_server", "spawn"]


@pytest.fixture(scope="session")
def runs() -> Iterator[Runs]:
    """Run commands at once; they have started when this begins to wait for their ends."""
    here = Path(__file__).parent
    environment = plain_environment() | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(here.parents[1]), environment.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, str(here / "zygote.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        asking, answering = process.stdin, process.stdout

        def runs(jobs: Sequence[Job]) -> list[Ended]:
            asking.write(json.dumps([asdict(job) for job in jobs]) + "\n")
            asking.flush()
            return [Ended(**ended) for ended in json.loads(answering.readline())]

        yield runs
        asking.close()


@pytest.fixture(scope="session")
def small(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A pair of 30 KB."""
    base = tiny.weights(hidden=16, layers=1)
    return tiny.write_pair(tmp_path_factory.mktemp("small"), base, tiny.finetuned(base))
