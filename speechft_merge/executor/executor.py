"""Executes a plan: reads, interpolates and writes chunks on worker threads, in file order; collects drift statistics.

What needs a ratio of a whole tensor (Model Stock) is read once before, in the same chunks, and the ratio estimated.
Memory is the workers' buffers, on the host and on a device, for a model or a tensor of any size.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeGuard

import numpy as np

from speechft_merge.checkpoints.computed import Derived
from speechft_merge.checkpoints.rounding import widen
from speechft_merge.executor import chunk
from speechft_merge.executor.arithmetic import measure
from speechft_merge.executor.chunk import Buffers, most_elements
from speechft_merge.executor.device import CPU, open_device
from speechft_merge.executor.drift import Drift
from speechft_merge.executor.finite import require_finite
from speechft_merge.plan.operations import Interpolate
from speechft_merge.plan.stock import with_ratio
from speechft_merge.sources.readahead import read_ahead

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from speechft_merge.checkpoints.index import TensorSpan
    from speechft_merge.executor.chunk import Result
    from speechft_merge.executor.kept import Kept
    from speechft_merge.plan.operations import Operation, Segment
    from speechft_merge.plan.stock import Dots
    from speechft_merge.progress import Count
    from speechft_merge.sources.readahead import ReadAhead


class Target(Protocol):
    """Where output bytes go."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write `data` at `offset`; called by several threads at once."""


Placed = Sequence[tuple["Segment", Target | None]]
"""Segments, and where each goes; None for one that is only measured."""

Execute = Callable[[Placed, "Count | None"], "dict[str, Drift]"]
"""`execute` with its means: threads, a device."""


def execute(
    segments: Placed, workers: int, count: Count | None = None, device: str = CPU, keep: Kept | None = None
) -> dict[str, Drift]:
    """Write every segment to its target; return the drift of each interpolated one, by its name.

    Args:
        segments: what to make, and where it goes.
        workers: threads.
        count: called from time to time with the bytes done and the total.
        device: where to compute, see `device.Device`.
        keep: gets all that is read.

    Raises:
        DeviceError: the device cannot be used, or has not enough memory.
        MismatchError: an input holds a number that is not finite, or a result does not fit its type.
        CheckpointError: an input could not be read.
        TemporaryError: an input is no longer what was opened.
        WriteError: the output could not be written.
    """
    most = max((len(segment.operation.inputs) for segment, _ in segments), default=1)
    memory = [_make_buffers(most, device) for _ in range(workers)]
    segments, ratios = _with_ratios(segments, memory)
    drifts = _carry_out(segments, memory, count, keep).drifts
    inputs = [span for segment, _ in segments for span in segment.operation.inputs]
    for source in {id(span.source): span.source for span in inputs}.values():
        source.require_unchanged()
    return {name: replace(Drift.total(parts), ratio=ratios.get(name, 1.0)) for name, parts in drifts.items()}


def _with_ratios(segments: Placed, memory: Sequence[Buffers]) -> tuple[Placed, dict[str, float]]:
    """Return the segments with every ratio estimated, and the ratios by name."""
    pending = {segment.operation: segment for segment, _ in segments if _is_pending(segment.operation)}
    if not pending:
        return segments, {}
    dots = _carry_out([(segment, None) for segment in pending.values()], memory).dots
    found = {operation: with_ratio(operation, dots[operation]) for operation in pending}
    ratios = {segment.name: found[segment.operation][1] for segment, _ in segments if segment.operation in found}
    made = [s._replace(operation=found[s.operation][0]) if s.operation in found else s for s, _ in segments]
    return [(segment, target) for segment, (_, target) in zip(made, segments, strict=True)], ratios


def _is_pending(operation: Operation) -> TypeGuard[Interpolate]:
    return isinstance(operation, Interpolate) and operation.stock > 0


def _carry_out(
    segments: Placed, memory: Sequence[Buffers], count: Count | None = None, keep: Kept | None = None
) -> _Execution:
    read = [_read_from(span) for segment, _ in segments for span in segment.operation.inputs]
    with read_ahead([(span.source, span.offset, span.nbytes) for span in read]) as ahead:
        execution = _Execution(_cut(segments, memory[0].size), segments, ahead, count, keep)
        _execute(execution, memory)
    return execution


def _execute(execution: _Execution, memory: Sequence[Buffers]) -> None:
    started: list[threading.Event] = []
    try:
        for buffers in memory:
            ended = threading.Event()
            threading.Thread(target=execution.work, args=(buffers, ended), daemon=True).start()
            started.append(ended)
        for ended in started:
            while not ended.wait(0.1):
                execution.report()
    finally:  # a signal raises SystemExit in the main thread, in which Thread.join takes a living thread for ended
        execution.stop()
        for ended in started:
            ended.wait()
    if execution.error is not None:
        raise execution.error
    execution.report()


def _make_buffers(inputs: int, device: str) -> Buffers:
    if device == CPU:
        return Buffers(inputs, chunk.CHUNK)
    from speechft_merge.executor.device_buffers import DEVICE_CHUNK, DeviceBuffers  # imports torch

    return DeviceBuffers(inputs, DEVICE_CHUNK, open_device(device))


def shifted(count: Count, done: int, total: int) -> Count:
    """Turn what counts all files into what counts one of them."""
    return lambda now, _: count(done + now, total)


@dataclass(frozen=True, slots=True)
class _Chunk:
    segment: Segment
    target: Target | None
    start: int
    """First element."""
    count: int


class _Execution:
    """What the workers share."""

    def __init__(
        self,
        chunks: Iterator[_Chunk],
        segments: Placed,
        ahead: Mapping[int, ReadAhead],
        count: Count | None,
        keep: Kept | None,
    ) -> None:
        self._ahead = ahead
        self._keep = keep
        self.error: BaseException | None = None
        self.drifts: dict[str, list[Drift]] = {
            segment.name: [] for segment, _ in segments if isinstance(segment.operation, Interpolate)
        }
        self.dots: dict[Interpolate, list[Dots]] = defaultdict(list)
        """Of operations whose ratio is to be estimated: these are read, and nothing else is done."""
        self._count = count
        self._total = sum(segment.nbytes for segment, _ in segments)
        self._done = 0
        self._todo = chunks
        self._lock = threading.Lock()
        self._stopped = False

    def work(self, buffers: Buffers, ended: threading.Event) -> None:
        """Carry out chunk after chunk, as one worker."""
        try:
            while (chunk := self._next()) is not None:
                self._do(chunk, buffers)
        except BaseException as error:
            with self._lock:
                self.error = self.error or error
            self.stop()
        finally:
            ended.set()

    def stop(self) -> None:
        """Stop the workers after their current chunk, without waiting for the network."""
        self._stopped = True
        for reader in self._ahead.values():
            reader.stop()

    def report(self) -> None:
        """Tell how much is done."""
        if self._count is not None:
            self._count(self._done, self._total)

    def _next(self) -> _Chunk | None:
        with self._lock:
            return None if self._stopped else next(self._todo, None)

    def _read(
        self, span: TensorSpan, chunk: _Chunk, buffer: memoryview, there: dict[tuple[int, int, int], memoryview]
    ) -> None:
        """Read a chunk of a span; what was read for another input, and is in `there`, is not read again."""
        read, source = _read_from(span), span.source
        key, itemsize = read.storage_key, read.dtype.itemsize
        raw = there.get(key)
        if raw is None:
            raw = buffer[: chunk.count * itemsize]
            self._ahead.get(id(read.source), read.source).read_into(read.offset + chunk.start * itemsize, raw)
            if read is span:
                there[key] = raw
                return
        if isinstance(source, Derived) and read is not span:
            values = np.empty(chunk.count)
            widen(np.frombuffer(raw, np.uint8), read.dtype, values)
            raw = memoryview(source.derive(values, chunk.start).view(np.uint8).data)
        buffer[:] = raw

    def _do(self, chunk: _Chunk, buffers: Buffers) -> None:
        segment = chunk.segment
        there: dict[tuple[int, int, int], memoryview] = {}
        for span, buffer in zip(segment.operation.inputs, buffers.inputs, strict=False):
            start, size = chunk.start * span.dtype.itemsize, chunk.count * span.dtype.itemsize
            self._read(span, chunk, buffer[:size], there)
            if self._keep is not None:
                self._keep.add(span, start, buffer[:size])
        if _is_pending(segment.operation):
            found = buffers.dots(segment.operation, chunk.count)
            with self._lock:
                self.dots[segment.operation] += found
            return
        result = buffers.run(segment.operation, segment.dtype, chunk.count)
        drift = result.drift if result.finite else _look_again(chunk, result)
        if chunk.target is not None:
            chunk.target.write(segment.offset + chunk.start * segment.dtype.itemsize, result.out)
        with self._lock:
            self._done += len(result.out)
            if segment.name in self.drifts:
                self.drifts[segment.name].append(drift)


def _read_from(span: TensorSpan) -> TensorSpan:
    """Return the span that is read for another: what is derived from a whole tensor is so chunk by chunk."""
    source = span.source
    return source.parent if isinstance(source, Derived) and span.nbytes == source.size else span


def _cut(segments: Placed, size: int) -> Iterator[_Chunk]:
    """Yield chunks of at most `size` bytes of each input."""
    for segment, target in segments:
        step, elements = most_elements(segment, size), segment.elements
        for start in range(0, elements, step):
            yield _Chunk(segment, target, start, min(step, elements - start))


def _look_again(chunk: _Chunk, result: Result) -> Drift:
    """Raise MismatchError if a number is not finite; else a sum overflowed: return the drift in double precision."""
    segment = chunk.segment
    inputs = require_finite(segment, chunk.start, chunk.count, np.frombuffer(result.out, np.uint8))
    return measure(segment.operation, inputs) if isinstance(segment.operation, Interpolate) else result.drift
