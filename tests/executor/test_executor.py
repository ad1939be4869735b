"""The executor: the same bytes and checksum from any number of workers, and no error lost."""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Memory, dtype_of, from_bytes, to_bytes
from xxhash import xxh3_128

from speechft_merge.checkpoints import TensorSpan
from speechft_merge.errors import CheckpointError, MismatchError, WriteError
from speechft_merge.executor.drift import Drift
from speechft_merge.executor.executor import execute
from speechft_merge.layouts.structure import Location
from speechft_merge.output.checksums import Checksum, checksum_of
from speechft_merge.output.shards import lay_out_safetensors
from speechft_merge.plan.operations import Copy, Interpolate, Term
from speechft_merge.plan.plan import Action, PlannedTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

CHUNK = 1 << 12
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small tensors have many."""
    monkeypatch.setattr("speechft_merge.executor.chunk.CHUNK", CHUNK)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


class Sink:
    """A `Target` in memory."""

    def __init__(self, size: int) -> None:
        self.content = bytearray(size)
        self.written = np.zeros(size, np.uint8)
        """How often each byte was."""
        self.checksum = Checksum(lambda offset, length: bytes(self.content[offset : offset + length]))

    def write(self, offset: int, data: memoryview) -> None:
        self.content[offset : offset + len(data)] = data
        self.written[offset : offset + len(data)] += 1
        self.checksum.add(offset, data)


class Slow(Memory):
    """A source that answers after a while, never the same, so that chunks overtake each other."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        time.sleep(random.Random(offset).choice([0, 0, 0.001, 0.003]))
        super().read_into(offset, buffer)


class Failing(Memory):
    """A source whose reads fail from some byte on."""

    def __init__(self, data: bytes, at: int, error: BaseException) -> None:
        super().__init__(data)
        self.at = at
        self.error = error
        self.reads = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.reads += 1
        if offset + len(buffer) > self.at:
            raise self.error
        super().read_into(offset, buffer)


def plan_of(
    name: str, base: torch.Tensor, *finetuned: torch.Tensor, alpha: float = 0.25, dtype: torch.dtype | None = None,
    source: Callable[[bytes], Memory] = Memory,
) -> PlannedTensor:  # fmt: skip
    """Interpolated if there is a fine-tune, else copied."""
    span, *others = (TensorSpan(source(to_bytes(t)), 0, dtype_of(t.dtype), tuple(t.shape)) for t in (base, *finetuned))
    terms = tuple(Term(other, 1 / len(others), i) for i, other in enumerate(others))
    return planned(name, Interpolate(span, terms, alpha) if terms else Copy(span), dtype)


def planned(name: str, operation: Copy | Interpolate, dtype: torch.dtype | None = None) -> PlannedTensor:
    span, action = operation.inputs[0], Action.COPIED if isinstance(operation, Copy) else Action.INTERPOLATED
    out = dtype_of(dtype) if dtype else span.dtype
    return PlannedTensor(name, action, "", Location("other", ""), out, span.shape, operation)


def pair(n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    weights = torch.randn(n, dtype=torch.float64)
    return weights.to(dtype), (weights + 0.1 * torch.randn(n, dtype=torch.float64)).to(dtype)


def run(tensors: Sequence[PlannedTensor], workers: int = 2, progress: Any = None) -> tuple[Sink, dict[str, Drift]]:
    sink = Sink(sum(tensor.nbytes for tensor in tensors))
    starts = itertools.accumulate((tensor.nbytes for tensor in tensors), initial=0)
    segments = [(tensor.at(start), sink) for tensor, start in zip(tensors, starts, strict=False)]
    drifts = execute(segments, workers, progress)
    return sink, drifts


def some_tensors(source: Callable[[bytes], Memory] = Memory) -> list[PlannedTensor]:
    """Every type, sizes around a chunk, mixes, copies, one without elements and one without dimensions."""
    step = CHUNK // 4
    tensors = [
        plan_of(f"{dtype}-{n}", *pair(n, dtype), source=source)
        for dtype in FLOATS
        for n in (1, step - 1, step, step + 1, 3 * step + 5)
    ]
    return [
        *tensors,
        plan_of("empty", *pair(0)),
        plan_of("scalar", torch.tensor(1.0), torch.tensor(2.0)),
        plan_of("integers", torch.arange(2000), source=source),
        plan_of("copied", pair(3000)[0], dtype=torch.bfloat16),
        plan_of("two", pair(3000)[0], *pair(3000, seed=1), source=source),
        plan_of("taken", pair(2000)[1], source=source),
    ]


# results
def test_one_to_four_workers_write_the_same_bytes_and_each_once() -> None:
    sinks = [run(some_tensors(Slow), workers)[0] for workers in range(1, 5)]
    assert len({bytes(sink.content) for sink in sinks}) == 1
    assert {sink.checksum.hexdigest() for sink in sinks} == {xxh3_128(sinks[0].content).hexdigest()}
    assert all((sink.written == 1).all() for sink in sinks)


@pytest.mark.parametrize("workers", [1, 4])
def test_the_checksum_is_that_of_the_file_whatever_the_order_of_the_chunks(workers: int, tmp_path: Path) -> None:
    block = 256 << 10
    tensors = [
        plan_of("t", *pair(block + 5), source=Slow),
        plan_of("u", *pair(block // 2 + 1, torch.float16), source=Slow),
    ]
    (file,) = lay_out_safetensors(tensors).files
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("speechft_merge.executor.chunk.CHUNK", block)
        sink = Sink(file.size)
        sink.write(0, memoryview(file.header))
        execute([(segment, sink) for segment in file.segments], workers)
    path = tmp_path / file.name
    path.write_bytes(sink.content)
    assert checksum_of(path) == sink.checksum.hexdigest()
    path.write_bytes(sink.content[:-1] + bytes([sink.content[-1] ^ 1]))
    assert checksum_of(path) != sink.checksum.hexdigest()


def test_every_tensor_stands_where_it_was_placed() -> None:
    sink, _ = run(some_tensors())
    offset = 0
    for tensor in some_tensors():
        alone, _ = run([tensor], workers=1)
        assert sink.content[offset : offset + tensor.nbytes] == alone.content
        offset += tensor.nbytes
    assert offset == len(sink.content)


def test_a_tensor_of_many_chunks_equals_the_formula() -> None:
    base, finetuned = pair(50_001)
    sink, _ = run([plan_of("t", base, finetuned)], workers=3)
    expected = torch.add(base, torch.mul(torch.sub(finetuned, base), 0.25))
    assert torch.equal(from_bytes(sink.content, torch.float32), expected)


@settings(max_examples=30)
@given(chunk=st.integers(8, 5000), workers=st.integers(1, 3), n=st.integers(0, 3000))
def test_the_chunk_size_leaves_no_trace(chunk: int, workers: int, n: int) -> None:
    tensors = [plan_of(str(dtype), *pair(n, dtype)) for dtype in FLOATS]
    expected, _ = run(tensors, workers=1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("speechft_merge.executor.chunk.CHUNK", chunk)
        sink, _ = run(tensors, workers)
    assert sink.content == expected.content


def test_nothing_to_do_is_done() -> None:
    assert run([])[1] == {}


# drift
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("alpha", [0.25, 0.75])
@pytest.mark.parametrize("workers", [1, 3])
def test_drift_equals_that_in_float64(dtype: torch.dtype, alpha: float, workers: int) -> None:
    base, finetuned = pair(20_000, dtype)
    drift = run([plan_of("t", base, finetuned, alpha=alpha)], workers)[1]["t"]
    a, b = base.double(), finetuned.double()
    assert drift.changed
    assert Drift.relative([drift]) == pytest.approx(float((b - a).norm() / a.norm()), rel=1e-6)


def test_drift_of_several_finetunes_is_that_of_their_mean() -> None:
    base, first = pair(9000)
    second = pair(9000, seed=1)[0]
    drift = run([plan_of("t", base, first, second)])[1]["t"]
    moved = (first.double() + second.double()) / 2 - base.double()
    assert Drift.relative([drift]) == pytest.approx(float(moved.norm() / base.double().norm()), rel=1e-6)


def test_drift_over_tensors_is_that_of_all_their_elements() -> None:
    pairs = [pair(n, seed=n) for n in (10, 5000, 333)]
    drifts = run([plan_of(str(i), *both) for i, both in enumerate(pairs)])[1]
    base, finetuned = (torch.cat(tensors).double() for tensors in zip(*pairs, strict=True))
    assert Drift.relative(drifts.values()) == pytest.approx(float((finetuned - base).norm() / base.norm()), rel=1e-6)


def test_the_order_of_the_chunks_leaves_no_trace_in_the_drift() -> None:
    drifts = [run(some_tensors(Slow), workers)[1] for workers in (1, 4, 4)]
    assert drifts[0] == drifts[1] == drifts[2]


def test_only_mixed_tensors_have_a_drift() -> None:
    drifts = run(some_tensors())[1]
    assert drifts.keys() == {t.name for t in some_tensors()} - {"integers", "copied", "taken"}


def test_a_base_of_zeros_has_no_relative_drift() -> None:
    drift = run([plan_of("t", torch.zeros(5), torch.ones(5))])[1]["t"]
    assert drift == Drift(0.0, 5.0, True)
    assert Drift.relative([drift]) is None


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("where", [None, 0, CHUNK // 2 - 1, CHUNK // 2, 4999])
def test_changed_tells_of_the_least_change_of_one_element(dtype: torch.dtype, where: int | None) -> None:
    base = torch.ones(5000, dtype=dtype)
    finetuned = base.clone()
    if where is not None:
        finetuned[where] += torch.finfo(dtype).eps
    drift = run([plan_of("t", base, finetuned)])[1]["t"]
    assert drift.changed is (where is not None)


# numbers that are not finite, and such as merely look like it
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("where", [0, 1023, 1024, 4999])
def test_an_odd_number_is_refused_by_file_tensor_and_element(
    dtype: torch.dtype, odd: float, which: int, where: int
) -> None:
    tensors = [*pair(5000, dtype), pair(5000, dtype, seed=1)[1]]
    tensors[which][where] = odd
    sources = iter([Memory(to_bytes(t), f"file{i}") for i, t in enumerate(tensors)])
    with pytest.raises(MismatchError, match=rf"file{which}: tensor 'a.b' holds {odd} \(element {where}\)"):
        run([plan_of("a.b", *tensors, source=lambda _: next(sources))])


@pytest.mark.parametrize("dtype", FLOATS)
def test_an_odd_number_in_a_copy_is_refused(dtype: torch.dtype) -> None:
    values = pair(5000)[0]
    values[4321] = math.nan
    with pytest.raises(MismatchError, match=r"memory: tensor 't' holds nan \(element 4321\)"):
        run([plan_of("t", values, dtype=dtype)])


def test_the_first_of_several_odd_numbers_in_a_chunk_is_named() -> None:
    base, finetuned = pair(900)
    finetuned[[100, 200]] = math.nan
    with pytest.raises(MismatchError, match="element 100"):
        run([plan_of("t", base, finetuned)])


@pytest.mark.parametrize("size", [1e19, 1e20, 1e30, 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alpha", [0.25, 0.75])
def test_large_finite_numbers_are_no_error_and_measured_rightly(size: float, dtype: torch.dtype, alpha: float) -> None:
    base, finetuned = pair(5000, dtype)
    base, finetuned = base.clamp(-1, 1) * size, finetuned.clamp(-1, 1) * size
    finetuned = torch.where(base.sign() == finetuned.sign(), finetuned, base)
    sink, drifts = run([plan_of("t", base, finetuned, alpha=alpha)])
    a, b = base.double(), finetuned.double()
    assert torch.allclose(from_bytes(sink.content, dtype).double(), a + alpha * (b - a), rtol=0.01)
    assert Drift.relative(drifts.values()) == pytest.approx(float((b - a).norm() / a.norm()), rel=1e-6)


@pytest.mark.parametrize("alpha", [0.25, 0.75])
def test_a_small_drift_of_large_numbers_is_measured_rightly(alpha: float) -> None:
    """The base's squares overflow in float32, those of the difference do not."""
    base = torch.full((5000,), 1e25)
    finetuned = base.clone()
    finetuned[17] *= 1 + 2**-20
    assert run([plan_of("t", base, finetuned, alpha=alpha)])[1]["t"] == Drift(
        pytest.approx(5000 * float(base[0]) ** 2), pytest.approx(float(finetuned[17] - base[17]) ** 2), True
    )


@pytest.mark.parametrize("copied", [True, False])
def test_a_result_that_does_not_fit_the_type_is_refused_with_the_largest_number(copied: bool) -> None:
    base = torch.ones(5000)
    base[3333] = -70000.0
    tensor = plan_of("a.b", base, *([] if copied else [base]), dtype=torch.float16)
    with pytest.raises(MismatchError, match=r"tensor 'a.b': the result does not fit float16 \(largest input: 7e\+04\)"):
        run([tensor])


# errors
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("kind", [CheckpointError, MemoryError, KeyError])
def test_an_error_of_a_source_stops_all_workers_and_is_raised(workers: int, kind: type[Exception]) -> None:
    base, finetuned = pair(100 * CHUNK)
    source = Failing(to_bytes(finetuned), 5 * CHUNK, kind("gone"))
    sources = iter([Memory(to_bytes(base)), source])
    with pytest.raises(kind, match="gone"):
        run([plan_of("t", base, finetuned, source=lambda _: next(sources))], workers)
    assert source.reads <= 5 + 2 * workers  # the rest of 400 chunks was left alone


@pytest.mark.parametrize("workers", [1, 4])
def test_an_error_of_the_target_is_raised(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()

    def full(*_: Any) -> None:
        if next(calls) == 3:
            raise WriteError("disk full")

    monkeypatch.setattr(Sink, "write", full)
    with pytest.raises(WriteError, match="disk full"):
        run([plan_of("t", *pair(50 * CHUNK))], workers)


def test_an_interrupt_in_the_callers_thread_stops_the_workers() -> None:
    def interrupted(done: int, total: int) -> None:
        raise SystemExit(143)

    with pytest.raises(SystemExit):
        run([plan_of("t", *pair(200 * CHUNK), source=Slow)], 2, interrupted)


# progress
@pytest.mark.parametrize("workers", [1, 3])
def test_progress_grows_in_the_callers_thread_and_ends_at_the_total(workers: int) -> None:
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        seen.append((done, total))

    tensors = [plan_of(str(i), *pair(60_000), source=Slow) for i in range(3)]
    total = sum(tensor.nbytes for tensor in tensors)
    run(tensors, workers, progress)
    assert {of for _, of in seen} == {total}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (total, total)


def test_a_span_is_read_at_its_own_offset() -> None:
    values = pair(3000)[0]
    source = Memory(b"x" * 40 + to_bytes(values))
    moved = TensorSpan(source, 40, dtype_of(values.dtype), (3000,))
    assert run([planned("t", Copy(moved))])[0].content == to_bytes(values)
