"""Fetches runs of remote files before they are needed, a few at a time, in bounded memory."""

from __future__ import annotations

import bisect
import contextlib
import mmap
import threading
from collections import defaultdict
from typing import TYPE_CHECKING

from speechft_merge.errors import CheckpointError
from speechft_merge.sources.ranges import Run, plan_runs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from speechft_merge.sources.base import ByteSource
    from speechft_merge.sources.hub import HubFile

FETCHERS = 4
"""Requests at once; what more would gain, the rate limits take away."""
BUDGET = 54 << 20
"""Bytes fetched and not yet read."""


@contextlib.contextmanager
def read_ahead(wanted: Sequence[tuple[ByteSource, int, int]]) -> Iterator[dict[int, ReadAhead]]:
    """Fetch the wanted ranges of remote files ahead, as a context manager.

    Args:
        wanted: (source, offset, length) of every read to come, in order.

    Yields:
        `id(source)` -> the reader to use in its place, for every remote source.
    """
    if all(source.seeks_cheaply for source, _, _ in wanted):
        yield {}
        return
    from speechft_merge.sources.hub import HubFile  # not for local files

    ranges: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    places: defaultdict[int, list[int]] = defaultdict(list)
    remote: dict[int, HubFile] = {}
    seen: set[tuple[int, int]] = set()
    for place, (source, offset, length) in enumerate(wanted):
        key = id(source)
        if isinstance(source, HubFile) and length and (key, offset) not in seen:  # the first of tied tensors
            remote[key] = source
            seen.add((key, offset))
            ranges[key].append((offset, length))
            places[key].append(place)
    if not remote:
        yield {}
        return
    pool = _Pool(BUDGET)
    readers = {key: ReadAhead(source, plan_runs(ranges[key]), pool) for key, source in remote.items()}
    slots = [(places[key][slot.run.need], slot) for key, reader in readers.items() for slot in reader.slots]
    pool.start([slot for _, slot in sorted(slots, key=lambda entry: entry[0])])
    try:
        yield readers
    finally:
        pool.stop()


class _Slot:
    """A run and, once fetched, its bytes."""

    def __init__(self, source: HubFile, run: Run) -> None:
        self.source, self.run = source, run
        self.data: mmap.mmap | None = None
        self.error: BaseException | None = None
        self.admitted = False
        self.unread = sum(length for _, length in run.pieces)


class ReadAhead:
    """A remote source whose reads are served from runs fetched ahead."""

    def __init__(self, source: HubFile, runs: list[Run], pool: _Pool) -> None:
        self._source, self._pool = source, pool
        self.slots = [_Slot(source, run) for run in runs]
        found = ((offset, length, slot) for slot in self.slots for offset, length in slot.run.pieces)
        pieces = sorted(found, key=lambda piece: piece[:2])
        self._pieces = [(offset + length, slot) for offset, length, slot in pieces]
        self._starts = [offset for offset, _, _ in pieces]

    def stop(self) -> None:
        """Wake every waiting reader with an error."""
        self._pool.stop()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`; bytes that no run holds (any more) are fetched separately."""
        while buffer:
            i = bisect.bisect_right(self._starts, offset) - 1
            stop, slot = self._pieces[i] if i >= 0 else (0, None)
            if slot is None or offset >= stop:
                self._source.read_into(offset, buffer)
                return
            count = min(len(buffer), stop - offset)
            if not self._pool.take(slot, offset, buffer[:count]):
                self._source.read_into(offset, buffer[:count])
            buffer, offset = buffer[count:], offset + count


class _Pool:
    """Threads that fetch slots in the order of need while there is room.

    The windows of `plan_runs` make sure that what is needed fits. Where wide gaps make runs much larger than their
    wanted bytes it may not; then a reader that waits has the next slot fetched beyond the budget.
    """

    def __init__(self, budget: int) -> None:
        self._room = budget
        self._todo: list[_Slot] = []
        self._condition = threading.Condition()
        self._stopped = False
        self._starving = False

    def start(self, slots: list[_Slot]) -> None:
        """Start the threads."""
        self._todo = slots[::-1]
        for _ in range(min(FETCHERS, len(slots))):
            threading.Thread(target=self._work, daemon=True).start()

    def take(self, slot: _Slot, offset: int, buffer: memoryview) -> bool:
        """Copy bytes out of a slot once it is fetched; return False if it was already read and freed."""
        with self._condition:
            while slot.data is None and slot.error is None and slot.unread > 0 and not self._stopped:
                if not slot.admitted:
                    self._starving = True
                    self._condition.notify_all()
                self._condition.wait()
            if slot.error is not None:
                raise slot.error
            if self._stopped:
                raise CheckpointError("reading was stopped")
            data = slot.data
        if data is None:
            return False
        start = offset - slot.run.start
        buffer[:] = memoryview(data)[start : start + len(buffer)]
        with self._condition:
            slot.unread -= len(buffer)
            if slot.unread <= 0 and slot.data is not None:
                slot.data = None
                self._room += slot.run.stop - slot.run.start
                self._condition.notify_all()
        return True

    def stop(self) -> None:
        """Stop; requests in flight end by themselves, in daemon threads."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()

    def _work(self) -> None:
        while (slot := self._next()) is not None:
            error: BaseException | None = None
            try:
                data = mmap.mmap(-1, slot.run.stop - slot.run.start)  # freed, it goes back to the system
                slot.source.fetch(slot.run.start, memoryview(data))
            except BaseException as failure:
                error = failure
            with self._condition:
                slot.data, slot.error = (data, None) if error is None else (None, error)
                self._condition.notify_all()

    def _next(self) -> _Slot | None:
        with self._condition:
            while not self._stopped and self._todo:
                size = self._todo[-1].run.stop - self._todo[-1].run.start
                if size <= self._room or self._starving:
                    self._room -= size
                    self._starving = False
                    slot = self._todo.pop()
                    slot.admitted = True
                    return slot
                self._condition.wait()
            return None
