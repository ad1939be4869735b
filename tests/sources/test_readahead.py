"""Reading ahead of a merge: the right bytes, within a bound of memory, and never a reader that waits for ever."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

import pytest

from speechft_merge.errors import TemporaryError
from speechft_merge.sources import readahead
from speechft_merge.sources.hub import HubFile
from speechft_merge.sources.ranges import MAX_GAP
from speechft_merge.sources.readahead import read_ahead

if TYPE_CHECKING:
    from collections.abc import Sequence

    Wanted = Sequence[tuple[HubFile, int, int]]

PATIENCE = 5
"""Seconds after which reading counts as hung; it takes hundredths of one."""
FAR = 10 * MAX_GAP
"""Between two runs: too far to be fetched along."""


class FakeHubFile(HubFile):
    """A file of the Hub whose bytes lie in memory."""

    def __init__(self, size: int, seed: int = 0) -> None:
        self.name, self.size, self.identity = f"file {seed}", size, f"etag {seed}"
        self.data = random.Random(seed).randbytes(size)
        self.fetched: list[int] = []
        """Bytes of each request."""
        self.broken = False

    def fetch(self, offset: int, buffer: memoryview) -> None:
        self.fetched.append(len(buffer))
        if self.broken:
            raise TemporaryError("the connection broke")
        buffer[:] = self.data[offset : offset + len(buffer)]

    read_into = fetch


def read_all(wanted: Wanted) -> list[bytes]:
    """What is read of the wanted ranges in their order; an AssertionError if that hangs."""
    found: list[bytes] = []
    errors: list[BaseException] = []

    def read() -> None:
        try:
            for source, offset, length in wanted:
                buffer = bytearray(length)
                readers[id(source)].read_into(offset, memoryview(buffer))
                found.append(bytes(buffer))
        except BaseException as error:
            errors.append(error)

    with read_ahead(wanted) as readers:
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(PATIENCE)
        hung = reader.is_alive()  # leaving lets it go
    assert not hung, f"reading hung after {len(found)} of {len(wanted)} ranges"
    if errors:
        raise errors[0]
    return found


def expected(wanted: Wanted) -> list[bytes]:
    return [
        source.data[offset : offset + length] for source, offset, length in wanted if isinstance(source, FakeHubFile)
    ]


def in_turns(source: HubFile, runs: int, pieces: int) -> Wanted:
    """The first piece of each run, then the second of each: none can be let go before all are there."""
    gap = MAX_GAP // 2
    return [(source, run * FAR + piece * gap, 10) for piece in range(pieces) for run in range(runs)]


@pytest.mark.parametrize("runs", [2, 3, 8])
@pytest.mark.parametrize("room", [1, MAX_GAP // 2, MAX_GAP, 3 * MAX_GAP])
def test_runs_whose_gaps_exceed_the_budget_are_read_all_the_same(
    room: int, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that waits for a run which has no room beside those half read would wait for ever."""
    monkeypatch.setattr(readahead, "BUDGET", room)
    source = FakeHubFile(runs * FAR)
    wanted = in_turns(source, runs, pieces=3)
    assert read_all(wanted) == expected(wanted)
    assert len(source.fetched) == runs


def test_two_files_read_in_turns_share_a_budget_that_is_too_small_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readahead, "BUDGET", MAX_GAP)
    files = FakeHubFile(FAR), FakeHubFile(FAR, seed=1)
    wanted = [(file, piece * MAX_GAP, 10) for piece in range(4) for file in files]
    assert read_all(wanted) == expected(wanted)
    assert [len(file.fetched) for file in files] == [1, 1]


def test_no_more_is_held_than_the_budget_where_runs_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    size, room = 1000, 2500
    monkeypatch.setattr(readahead, "BUDGET", room)
    source = FakeHubFile(20 * FAR)
    wanted = [(source, run * FAR, size) for run in range(20)]
    with read_ahead(wanted) as readers:
        for read, (_, offset, length) in enumerate(wanted):
            assert sum(source.fetched) <= read * size + room
            readers[id(source)].read_into(offset, memoryview(bytearray(length)))
    assert sum(source.fetched) == 20 * size


def test_an_error_of_a_fetcher_is_the_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readahead, "BUDGET", 1)
    source = FakeHubFile(FAR)
    source.broken = True
    with pytest.raises(TemporaryError, match="broke"):
        read_all([(source, 0, 10)])


def test_a_range_that_is_read_twice_is_fetched_anew() -> None:
    source = FakeHubFile(100)
    wanted = [(source, 5, 20), (source, 5, 20)]
    assert read_all(wanted) == expected(wanted)
