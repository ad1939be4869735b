"""A Hub on loopback."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from harness import HubServer, StartHub, serving


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
