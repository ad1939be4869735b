"""Compares a merge that is carried out again with the files that it wrote, byte by byte; nothing is written."""

from __future__ import annotations

import threading
from bisect import bisect_right
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from speechft_merge.errors import NotFoundError
from speechft_merge.executor.executor import shifted
from speechft_merge.output.crc32 import Pieces
from speechft_merge.sources import LocalFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from speechft_merge.executor.executor import Execute
    from speechft_merge.output.files import OutputFile, OutputFiles
    from speechft_merge.plan.operations import Segment
    from speechft_merge.progress import Count


@dataclass(frozen=True, slots=True)
class Difference:
    """A file, or a tensor in it, that is not what the merge makes."""

    file: str
    what: str
    """How it differs, in a few words."""
    tensor: str = ""
    """Empty where it is none."""
    elements: int = 0
    """Elements of the tensor that differ."""
    largest: float | None = None
    """The largest finite one of their differences; None where it is no tensor of numbers."""

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON document."""
        return asdict(self)

    def __str__(self) -> str:
        of = f" of {self.file}" if self.tensor else ""
        return f"{self.tensor or self.file}{of}: {self.what}"


def replay(folder: Path, files: OutputFiles, execute: Execute, count: Count | None = None) -> list[Difference]:
    """Carry out all segments again, and return where the weight files in a folder differ, in the order of the files.

    Args:
        folder: an output.
        files: what the merge writes.
        execute: carries out segments.
        count: called from time to time with the bytes done and the total.

    Raises:
        MismatchError, CheckpointError, TemporaryError: see `executor.execute`.
    """
    found: list[Difference] = []
    done = 0
    for planned in files.files:
        with _Compared(folder, planned) as compared:
            if compared.begin():
                told = count and shifted(count, done, files.size)
                execute([(segment, compared) for segment in planned.segments], told)
            found += compared.differences()
        done += planned.size
        if count is not None:
            count(done, files.size)
    return found


class _Compared:
    """A `Target` that compares what it is given with what is there."""

    def __init__(self, folder: Path, planned: OutputFile) -> None:
        self._planned = planned
        self._starts = [segment.offset for segment in planned.segments]
        self._crcs = sorted(offset for record in planned.records for offset in record.crc_offsets)
        self._pieces = Pieces()
        self._lock = threading.Lock()
        self._odd: dict[int, tuple[int, float | None]] = {}
        """Start of a segment -> (elements that differ, largest difference)."""
        self._whole: list[Difference] = []
        """What is said of the file as a whole."""
        self._file: LocalFile | None = None
        try:
            self._file = LocalFile(folder / planned.name)
        except NotFoundError:
            self._tell("it is missing, or no regular file")

    def __enter__(self) -> _Compared:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def _tell(self, what: str) -> None:
        self._whole.append(Difference(self._planned.name, what))

    def begin(self) -> bool:
        """Compare size and header; return whether the rest can be compared, chunk by chunk."""
        if self._file is None:
            return False
        if self._file.size != self._planned.size:
            self._tell(f"it has {self._file.size} bytes instead of {self._planned.size}")
            return False
        if self._file.read(0, len(self._planned.header)) != self._planned.header:
            self._tell("its header, the names, types, shapes and places of its tensors, differs")
        return True

    def write(self, offset: int, data: memoryview) -> None:
        """Compare the bytes of a chunk, which lie in one segment."""
        assert self._file is not None
        if self._planned.records:
            self._pieces.add(offset, data)
        found = self._file.read(offset, len(data))
        if found == data:
            return
        expected = self._with_crcs(offset, data, found)
        segment = self._planned.segments[bisect_right(self._starts, offset) - 1]
        elements, largest = _compare(segment, expected, found)
        with self._lock:
            before, larger = self._odd.get(segment.offset, (0, None))
            if elements:
                known = [value for value in (largest, larger) if value is not None]
                self._odd[segment.offset] = before + elements, max(known, default=None)

    def _with_crcs(self, offset: int, data: memoryview, found: bytes) -> bytes:
        """Return the bytes with the CRCs that are there: these are made of what is written, and compared at the end."""
        expected = bytearray(data)
        for crc in self._crcs:
            start, stop = max(crc - offset, 0), min(crc + 4 - offset, len(data))
            if start < stop:
                expected[start:stop] = found[start:stop]
        return bytes(expected)

    def differences(self) -> Iterator[Difference]:
        """Yield what differs: the file as a whole, then its tensors, in their order."""
        yield from self._whole
        for segment in self._planned.segments:
            elements, largest = self._odd.get(segment.offset, (0, None))
            if elements and segment.nbytes:
                of, more = segment.elements, "" if largest is None else f", by up to {largest:.3g}"
                what = f"{elements} of {of} {'elements' if segment.name else 'bytes'} differ{more}"
                yield Difference(self._planned.name, what, segment.name, elements, largest)
        if self._file is not None and not self._whole:
            renewed = self._pieces.renewed(self._planned.records)
            if any(self._file.read(offset, len(crc)) != crc for offset, crc in renewed):
                yield Difference(self._planned.name, "a checksum of its zip differs")


def _compare(segment: Segment, expected: bytes, found: bytes) -> tuple[int, float | None]:
    """Return how many elements of a segment differ, and by how much at most where they are numbers."""
    import numpy as np

    from speechft_merge.checkpoints.rounding import widen

    width = segment.dtype.itemsize
    raw = [np.frombuffer(content, np.uint8) for content in (expected, found)]
    odd = (raw[0].reshape(-1, width) != raw[1].reshape(-1, width)).any(axis=1)
    count = int(odd.sum())
    if not count or not segment.dtype.interpolated:
        return count, None
    numbers = [np.empty(len(odd), np.float64) for _ in raw]
    with np.errstate(all="ignore"):
        for content, values in zip(raw, numbers, strict=True):
            widen(content, segment.dtype, values)
        apart = np.abs(numbers[0][odd] - numbers[1][odd])
    return count, float(apart[np.isfinite(apart)].max(initial=0))
