"""The executor: moves chunks through a few workers, in file order, and keeps the books. It decides nothing.

Each worker reads a chunk of every input, makes the output chunk and writes it where the plan has it. Memory is the
workers' buffers, whatever the size of the model or of a tensor.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from speechft_merge.errors import MismatchError
from speechft_merge.executor.drift import Drift

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from speechft_merge.checkpoints.index import TensorSpan
    from speechft_merge.executor.arithmetic import Sums
    from speechft_merge.executor.chunk import Lane
    from speechft_merge.plan.plan import PlannedTensor
    from speechft_merge.sources.readahead import ReadAhead


Progress = Callable[[int, int], None]
"""Called in the caller's thread with bytes written so far and in all."""


class Reader(Protocol):
    """Where input bytes come from: a source, or what reads ahead of it."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes that start at `offset`."""


class Target(Protocol):
    """Where output bytes go."""

    def write(self, offset: int, data: memoryview) -> None:
        """Put `data` at `offset`; called by several threads at once."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor and where in which target it goes."""

    tensor: PlannedTensor
    target: Target
    offset: int


@dataclass(slots=True)
class _Sums:
    """The same, chunk by chunk: summed exactly at the end, so that the order of the chunks leaves no trace."""

    base: list[float] = field(default_factory=list)
    delta: list[float] = field(default_factory=list)
    changed: bool = False


def execute(placed: Sequence[Placed], workers: int, progress: Progress | None = None) -> dict[str, Drift]:
    """Write every tensor; returns the drift of each interpolated one, by its name.

    Raises:
        MismatchError: an input holds a number that is not finite, or a result does not fit its type.
        CheckpointError: an input could not be read.
        WriteError: the output could not be written.
    """
    from speechft_merge.sources.readahead import read_ahead

    wanted = [(span.source, span.offset, span.nbytes) for item in placed for span in item.tensor.inputs]
    with read_ahead(wanted) as ahead:
        return _execute(_Run(placed, ahead, progress), placed, workers)


def _execute(run: _Run, placed: Sequence[Placed], workers: int) -> dict[str, Drift]:
    from speechft_merge.executor.chunk import Lane

    most_inputs = max((len(item.tensor.inputs) for item in placed), default=1)
    threads = [
        threading.Thread(target=run.work, args=(Lane(max(2, most_inputs)),), daemon=True) for _ in range(workers)
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.1)
                run.report()
    finally:  # a signal raises SystemExit here, in the main thread
        run.stop()
        for thread in threads:
            thread.join()
    if run.error is not None:
        raise run.error
    run.report()
    return {name: Drift(math.fsum(sums.base), math.fsum(sums.delta), sums.changed) for name, sums in run.sums.items()}


@dataclass(frozen=True, slots=True)
class _Chunk:
    placed: Placed
    start: int
    count: int


class _Run:
    """What the workers of one execution share."""

    def __init__(self, placed: Sequence[Placed], ahead: Mapping[int, ReadAhead], progress: Progress | None) -> None:
        self._ahead = ahead
        self.error: BaseException | None = None
        self.sums = {p.tensor.name: _Sums() for p in placed if p.tensor.single is None}
        self._progress = progress
        self._total = sum(item.tensor.nbytes for item in placed)
        self._done = 0
        self._todo = _chunks(placed)
        self._lock = threading.Lock()
        self._stopped = False

    def work(self, lane: Lane) -> None:
        """One worker's life."""
        try:
            while (chunk := self._next()) is not None:
                self._do(chunk, lane)
        except BaseException as error:
            with self._lock:
                self.error = self.error or error
            self.stop()

    def stop(self) -> None:
        """Let the workers end after the chunk in hand, and not wait for the network."""
        self._stopped = True
        for reader in self._ahead.values():
            reader.stop()

    def report(self) -> None:
        """Tell the progress."""
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _next(self) -> _Chunk | None:
        with self._lock:
            return None if self._stopped else next(self._todo, None)

    def _do(self, chunk: _Chunk, lane: Lane) -> None:
        tensor, target = chunk.placed.tensor, chunk.placed.target
        for span, buffer in zip(tensor.inputs, lane.buffers, strict=False):
            _read(span, chunk, buffer, self._ahead.get(id(span.source), span.source))
        out, sums = lane.run(tensor, chunk.count)
        if not math.isfinite(sums.base + sums.delta):
            sums = _examine(chunk, out)
        target.write(chunk.placed.offset + chunk.start * tensor.dtype.itemsize, out)
        self._finish(tensor, len(out), sums)

    def _finish(self, tensor: PlannedTensor, nbytes: int, sums: Sums) -> None:
        with self._lock:
            self._done += nbytes
            kept = self.sums.get(tensor.name)
            if kept is not None:
                kept.base.append(sums.base)
                kept.delta.append(sums.delta)
                kept.changed |= sums.changed


def _chunks(placed: Sequence[Placed]) -> Iterator[_Chunk]:
    from speechft_merge.executor.chunk import CHUNK

    for item in placed:
        widest = max(item.tensor.dtype.itemsize, *(span.dtype.itemsize for span in item.tensor.inputs))
        step, elements = CHUNK // widest, item.tensor.nbytes // item.tensor.dtype.itemsize
        for start in range(0, elements, step):
            yield _Chunk(item, start, min(step, elements - start))


def _read(span: TensorSpan, chunk: _Chunk, buffer: memoryview, reader: Reader) -> None:
    itemsize = span.dtype.itemsize
    reader.read_into(span.offset + chunk.start * itemsize, buffer[: chunk.count * itemsize])


def _examine(chunk: _Chunk, out: memoryview) -> Sums:
    """Look closer at a chunk whose sums of squares are not finite: an error, or numbers that are merely large."""
    import numpy as np

    from speechft_merge.checkpoints.elements import all_finite, widen
    from speechft_merge.executor.arithmetic import Sums

    tensor, name = chunk.placed.tensor, chunk.placed.tensor.name
    numbers = []
    for span in tensor.inputs:
        raw = np.empty(chunk.count * span.dtype.itemsize, np.uint8)
        _read(span, chunk, memoryview(raw.data), span.source)
        values = np.empty(chunk.count, np.float64)
        widen(raw, span.dtype, values)
        if not all_finite(raw, span.dtype):
            where = int(np.flatnonzero(~np.isfinite(values))[0])
            raise MismatchError(
                f"{span.source.name}: tensor {name!r} holds {values[where]} (element {chunk.start + where}); a model "
                "with such weights is broken (a training run that diverged, a damaged file) and would break the merge"
            )
        numbers.append(values)
    if tensor.dtype.interpolated and not all_finite(np.frombuffer(out, np.uint8), tensor.dtype):
        raise MismatchError(
            f"tensor {name!r}: the result does not fit {tensor.dtype.torch_name} (largest input: "
            f"{max(float(np.abs(values).max()) for values in numbers):.3g}); choose a wider --dtype"
        )
    if tensor.single is not None:
        return Sums(0.0, 0.0, False)
    base, *finetuned = numbers
    delta = sum(weight * (values - base) for weight, values in zip(tensor.weights, finetuned, strict=True))
    with np.errstate(over="ignore"):
        return Sums(float(np.dot(base, base)), float(np.dot(delta, delta)), bool(np.any(delta)))
