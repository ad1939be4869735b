"""A Hub on loopback."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import multiprocessing
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import PRELOADED, run_command
from harness import IMPATIENT, HubServer, StartHub, serving
from processes import Ran, plain_environment

if TYPE_CHECKING:
    from conftest import Run, Start


@pytest.fixture(scope="session")
def hub_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """The server that the tests of a session share."""
    with serving(tmp_path_factory.mktemp("hub"), xet=importlib.util.find_spec("hf_xet") is not None) as server:
        yield server


@pytest.fixture
def hub(hub_server: HubServer, tmp_path: Path) -> HubServer:
    """The shared server without faults, with an empty log and empty caches; repositories of other tests stay."""
    hub_server.reset()
    return replace(hub_server, home=tmp_path / "hf")


@pytest.fixture
def start_hub(tmp_path: Path) -> Iterator[StartHub]:
    """Start a server of the test's own, which it may kill and, with `port`, start again."""
    with contextlib.ExitStack() as stack:

        def start(*, port: int = 0, xet: bool = False) -> HubServer:
            return stack.enter_context(serving(tmp_path / "own_hub", port=port, xet=xet))

        yield start


@pytest.fixture(scope="session")
def forking() -> ForkServerContext:
    """Starts processes that need not import anything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@pytest.fixture
def spawn(forking: ForkServerContext, tmp_path: Path) -> Run:
    """Run the command in `tmp_path`; unless it is to be `patient` it hardly waits between two tries."""

    def spawn(*args: object, env: Mapping[str, str] = {}, patient: bool = False) -> Ran:
        environment = plain_environment() | dict(env)
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            process = forking.Process(
                target=run_command, args=([*map(str, args)], tmp_path, environment, out, err, patient)
            )
            process.start()
            process.join(300)
            assert process.exitcode is not None, "it does not end"
            return Ran(process.exitcode, out.read_text(), err.read_text())

    return spawn


@pytest.fixture
def start(start: Start) -> Start:
    """As elsewhere, but the command hardly waits between two tries."""
    return functools.partial(start, command=IMPATIENT)
