"""Plans which ranges of a remote file to fetch, and when. Pure.

Tensors are wanted in the order of the output, which need not be that of the file. Within a
window of bytes ahead, neighbours in the file are joined into runs: few requests, and about a window in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

WINDOW = 46 << 20
"""Wanted bytes that are planned together: four runs less the gaps in them. Bounds the memory of a file's runs where
its order is not that of the output; in files that transformers wrote it differs within a layer or two."""
MAX_RUN = 12 << 20
"""Bytes of one request: enough to make its latency small, few enough to lose little when it breaks."""
MAX_GAP = 64 << 10
"""Unwanted bytes between neighbours that are fetched along to save a request."""


class Run(NamedTuple):
    """Bytes `start` to `stop` of a file."""

    start: int
    stop: int
    pieces: tuple[tuple[int, int], ...]
    """(offset, length) of what will be read of it; the rest are gaps, which other runs may want."""
    need: int
    """Index of the first wanted range that it serves."""


def plan_runs(wanted: Sequence[tuple[int, int]]) -> list[Run]:
    """Return runs in the order in which they are first needed.

    Args:
        wanted: (offset, length) of what will be read, in the order of reading.
    """
    return [run for window in _windows(wanted) for run in _join(window)]


def _windows(wanted: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """Cut the wanted ranges into groups of `WINDOW` bytes: (offset, length, index in the list)."""
    window: list[tuple[int, int, int]] = []
    room = WINDOW
    for need, (offset, length) in enumerate(wanted):
        while length:
            part = min(length, room)
            window.append((offset, part, need))
            offset, length, room = offset + part, length - part, room - part
            if not room:
                yield window
                window, room = [], WINDOW
    if window:
        yield window


def _join(window: list[tuple[int, int, int]]) -> list[Run]:
    """Join neighbours in the file into runs, in the order of need."""
    runs: list[Run] = []
    for offset, length, need in sorted(window):
        while length:
            last = runs[-1] if runs else None
            if last is not None and last.start <= offset <= last.stop + MAX_GAP and offset < last.start + MAX_RUN:
                part = min(length, last.start + MAX_RUN - offset)
                pieces = (*last.pieces, (offset, part))
                runs[-1] = Run(last.start, max(last.stop, offset + part), pieces, min(last.need, need))
            else:
                part = min(length, MAX_RUN)
                runs.append(Run(offset, offset + part, ((offset, part),), need))
            offset, length = offset + part, length - part
    return sorted(runs, key=lambda run: run.need)
