"""One chunk at a time: every mix of element types gives torch's bytes, however a tensor is cut."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import checkpoint_of, dtype_of, from_bytes, span_of, to_bytes

from speechft_merge.checkpoints.rounding import read_numbers
from speechft_merge.executor.chunk import CHUNK, Buffers, most_elements
from speechft_merge.executor.device_buffers import DeviceBuffers
from speechft_merge.executor.drift import Drift
from speechft_merge.plan.operations import Copy, Interpolate, Segment, Term
from speechft_merge.plan.plan import make_plan
from speechft_merge.plan.stock import BLOCK, dots
from speechft_merge.recipe.recipe import Recipe

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
ALPHAS = (0.1, 0.25, 0.5, 0.7)
LONGEST = CHUNK // 2
"""Elements of a chunk, of a half type."""


def mixed(
    base: torch.Tensor, *finetuned: torch.Tensor, alpha: float = 0.25, weights: tuple[float, ...] = (1.0,),
    dtype: torch.dtype | None = None,
) -> Segment:  # fmt: skip
    spans = map(span_of, finetuned)
    terms = tuple(Term(span, weight, i) for i, (span, weight) in enumerate(zip(spans, weights, strict=True)))
    return Segment(0, Interpolate(span_of(base), terms, alpha), dtype_of(dtype or base.dtype), "t")


def copied(values: torch.Tensor, dtype: torch.dtype | None = None) -> Segment:
    return Segment(0, Copy(span_of(values)), dtype_of(dtype or values.dtype), "t")


class Found(NamedTuple):
    """What came out of a segment, chunk after chunk."""

    out: bytes
    sums: list[Drift]
    finite: bool


MAKE = {
    "numpy": Buffers,
    "torch": lambda inputs, size: DeviceBuffers(inputs, size, torch.device("cpu")),
    "cuda": lambda inputs, size: DeviceBuffers(inputs, size, torch.device("cuda")),
}
make = Buffers
"""What makes the buffers of a test: every claim here is one on all devices."""


@pytest.fixture(scope="module", params=["numpy", "torch", *["cuda"] * torch.cuda.is_available()], autouse=True)
def on_device(request: pytest.FixtureRequest) -> None:
    global make
    make = MAKE[request.param]


def run(segment: Segment, cuts: tuple[int, ...] = (), buffers: Buffers | None = None, size: int = CHUNK) -> Found:
    """Make all of it; `cuts` are elements at which the segment is cut, besides where it must be."""
    inputs = segment.operation.inputs
    buffers = buffers or make(len(inputs), size)
    longest = most_elements(segment, buffers.size)
    found = Found(b"", [], True)
    for start, stop in itertools.pairwise(sorted([*range(0, segment.elements, longest), *cuts, segment.elements])):
        for span, buffer in zip(inputs, buffers.inputs, strict=False):
            size = span.dtype.itemsize
            span.source.read_into(start * size, buffer[: (stop - start) * size])
        out, sums, finite = buffers.run(segment.operation, segment.dtype, stop - start)
        found = Found(found.out + bytes(out), [*found.sums, sums], found.finite and finite)
    return found


def result(segment: Segment) -> torch.Tensor:
    return from_bytes(run(segment).out, getattr(torch, segment.dtype.torch_name))


def pair(n: int, base: torch.dtype, finetuned: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    weights = torch.randn(n, dtype=torch.float64)
    return weights.to(base), (weights + 0.1 * torch.randn(n, dtype=torch.float64)).to(finetuned)


def cast(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """As torch does it, but from float64 to a half type by way of numpy or rounding to odd: torch rounds twice."""
    if values.dtype is not torch.float64 or dtype in (torch.float32, torch.float64):
        return values.to(dtype)
    if dtype is torch.float16:
        return torch.from_numpy(values.numpy().astype(np.float16))
    single = values.float()
    odd = single.view(torch.int32)
    beyond = single.double().abs() > values.abs()
    return torch.where(single.double() == values, odd, (odd - beyond.int()) | 1).view(torch.float32).to(dtype)


def three_steps(base: torch.Tensor, finetuned: torch.Tensor, alpha: float, dtype: torch.dtype) -> torch.Tensor:
    real = torch.float64 if torch.float64 in (base.dtype, finetuned.dtype) else torch.float32
    a, b = base.to(real), finetuned.to(real)
    delta = torch.sub(b, a)
    if alpha < 0.5:
        return cast(torch.add(a, torch.mul(delta, alpha)), dtype)
    return cast(torch.sub(b, torch.mul(delta, 1 - alpha)), dtype)


# the same bytes as torch


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("of_finetuned", FLOATS)
@pytest.mark.parametrize("of_base", FLOATS)
def test_every_mix_of_types_equals_three_steps_in_torch(
    of_base: torch.dtype, of_finetuned: torch.dtype, alpha: float
) -> None:
    base, finetuned = pair(1021, of_base, of_finetuned)
    for dtype in FLOATS:
        expected = three_steps(base, finetuned, alpha, dtype)
        assert run(mixed(base, finetuned, alpha=alpha, dtype=dtype)).out == to_bytes(expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, *(k + i for k in (LONGEST, CHUNK // 8, CHUNK // 4) for i in (-1, 0, 1))])
def test_sizes_around_a_block_and_a_chunk_equal_torch(n: int, dtype: torch.dtype) -> None:
    base, finetuned = pair(n, dtype, dtype)
    assert run(mixed(base, finetuned)).out == to_bytes(three_steps(base, finetuned, 0.25, dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_buffer_filled_to_its_last_byte_equals_torch(dtype: torch.dtype) -> None:
    base, finetuned = pair(CHUNK // dtype.itemsize, dtype, dtype)
    assert run(mixed(base, finetuned, alpha=0.7)).out == to_bytes(three_steps(base, finetuned, 0.7, dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("alpha", [-0.5, 1.5, 2.0])
def test_extrapolation_equals_torch(alpha: float, dtype: torch.dtype) -> None:
    base, finetuned = pair(501, dtype, dtype)
    assert run(mixed(base, finetuned, alpha=alpha)).out == to_bytes(three_steps(base, finetuned, alpha, dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("alpha", [-0.5, 0.25, 0.75, 1.5])
def test_what_did_not_move_comes_out_as_it_is_zeros_with_their_sign(alpha: float, dtype: torch.dtype) -> None:
    base = torch.tensor([1.5, -0.0, 0.0, -2.0], dtype=dtype)
    for weights in ((1.0,), (0.5, 0.5), (2.0, -1.0), (-1.0, -0.5)):
        finetunes = (base,) * len(weights)
        assert run(mixed(base, *finetunes, alpha=alpha, weights=weights)).out == to_bytes(base)


@pytest.mark.parametrize("dtype", FLOATS)
def test_several_finetunes_of_several_types_equal_torch(dtype: torch.dtype) -> None:
    base, first = pair(LONGEST + 5, dtype, torch.float32)
    second = pair(LONGEST + 5, dtype, torch.bfloat16, seed=0)[1]
    real = torch.float64 if dtype is torch.float64 else torch.float32
    a, b, c = base.to(real), first.to(real), second.to(real)
    total = torch.add(torch.mul(torch.sub(b, a), 0.4), torch.mul(torch.sub(c, a), 0.6))
    expected = cast(torch.add(a, torch.mul(total, 0.25)), dtype)
    assert run(mixed(base, first, second, weights=(0.4, 0.6))).out == to_bytes(expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("weights", [(1.0, -0.75), (2.5, 1.0), (-1.0, -3.0)])
def test_a_sum_by_weights_of_any_sign_equals_torch(weights: tuple[float, float], dtype: torch.dtype) -> None:
    base, first = pair(1001, dtype, dtype)
    second = pair(1001, dtype, dtype, seed=1)[1]
    real = torch.float64 if dtype is torch.float64 else torch.float32
    a, b, c = base.to(real), first.to(real), second.to(real)
    total = torch.add(torch.mul(torch.sub(b, a), weights[0]), torch.mul(torch.sub(c, a), weights[1]))
    for alpha in (1.0, 0.5):
        expected = cast(torch.add(a, torch.mul(total, alpha)), dtype)
        assert run(mixed(base, first, second, weights=weights, alpha=alpha)).out == to_bytes(expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 1001, BLOCK, 2 * BLOCK + 3])
def test_dot_products_have_the_same_bits_on_every_device(n: int, dtype: torch.dtype) -> None:
    base, first = pair(n, dtype, dtype)
    segment = mixed(base, first, pair(n, dtype, dtype, seed=1)[1], weights=(0.5, 0.5))
    buffers = make(3, 4 * CHUNK)
    for span, buffer in zip(segment.operation.inputs, buffers.inputs, strict=True):
        span.source.read_into(0, buffer[: span.nbytes])
    assert isinstance(segment.operation, Interpolate)
    found = buffers.dots(segment.operation, n)
    numbers = [read_numbers(span, 0, n) for span in segment.operation.inputs]
    starts = range(0, n, BLOCK)
    assert found == [dots(numbers[0][i : i + BLOCK], [v[i : i + BLOCK] for v in numbers[1:]]) for i in starts]
    assert math.fsum(block[1] for block in found) == pytest.approx(
        float((numbers[1] - numbers[0]) @ (numbers[2] - numbers[0])), rel=1e-9
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@given(data=st.data())
def test_any_finite_half_numbers_equal_torch(dtype: torch.dtype, data: st.DataObject) -> None:
    exponent = 0x7C00 if dtype is torch.float16 else 0x7F80
    words = st.lists(
        st.integers(0, 0xFFFF).filter(lambda word: word & exponent != exponent), min_size=4, max_size=4
    ).map(lambda found: torch.from_numpy(np.array(found, np.uint16).view(np.int16)).view(dtype))
    base, finetuned, alpha = data.draw(words), data.draw(words), data.draw(st.floats(0.01, 0.99))
    assert torch.equal(
        result(mixed(base, finetuned, alpha=alpha)).view(torch.int16),
        three_steps(base, finetuned, alpha, dtype).view(torch.int16),
    )


# exactness


@pytest.mark.parametrize("dtype", FLOATS)
def test_alpha_one_is_the_finetune_to_the_bit(dtype: torch.dtype) -> None:
    base, finetuned = pair(1001, dtype, dtype)
    finetuned[:2] = torch.tensor([-0.0, 0.0])
    (tensor,) = make_plan(
        checkpoint_of({"encoder.w": base}), [checkpoint_of({"encoder.w": finetuned})], Recipe(alpha=1.0)
    ).tensors
    assert len(tensor.inputs) == 1
    assert run(tensor.at(0)).out == to_bytes(finetuned)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_what_did_not_move_comes_out_as_it_was(alpha: float, dtype: torch.dtype) -> None:
    base, finetuned = pair(1001, dtype, dtype)
    still = torch.arange(1001) % 3 == 0
    base[:6] = torch.tensor([-0.0, 1, 2, 0.0, 3, 4])
    finetuned = torch.where(still, base, finetuned)
    out = result(mixed(base, finetuned, alpha=alpha))
    assert to_bytes(out[still]) == to_bytes(base[still])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("n", [1, LONGEST + 3])
def test_a_copy_is_exact_or_rounded_once(source: torch.dtype, dtype: torch.dtype, n: int) -> None:
    base = pair(n, source, source)[0]
    tensor = copied(base, dtype)
    assert run(tensor).out == to_bytes(cast(base, dtype))


@pytest.mark.parametrize("values", [torch.arange(9), torch.arange(9, dtype=torch.uint8), torch.arange(9) % 2 == 0])
def test_integers_and_booleans_are_copied_as_they_are(values: torch.Tensor) -> None:
    assert run(copied(values)) == Found(to_bytes(values), [Drift(0.0, 0.0, False)], True)


# cutting


@pytest.mark.parametrize("dtypes", list(itertools.product(FLOATS, [torch.float32, torch.bfloat16])))
@settings(max_examples=25)
@given(cuts=st.lists(st.integers(0, 300), max_size=6), alpha=st.floats(0, 1, exclude_min=True))
def test_any_cut_of_a_tensor_gives_the_same_bytes(
    dtypes: tuple[torch.dtype, torch.dtype], cuts: list[int], alpha: float
) -> None:
    base, finetuned = pair(300, *dtypes)
    tensor = mixed(base, finetuned, alpha=alpha)
    assert run(tensor, tuple(cuts)).out == run(tensor).out


@settings(max_examples=40)
@given(words=st.integers(1, 400), alpha=st.sampled_from(ALPHAS), dtype=st.sampled_from(FLOATS))
def test_the_chunk_size_leaves_no_trace(words: int, alpha: float, dtype: torch.dtype) -> None:
    base, finetuned = pair(333, dtype, torch.float32)
    segment = mixed(base, finetuned, alpha=alpha)
    assert run(segment, size=8 * words).out == run(segment).out


def test_buffers_forget_what_was_in_them() -> None:
    """Buffers are used again: a chunk of another size, type or number of inputs must not meet old bytes."""
    buffers = make(3, CHUNK)
    torch.manual_seed(0)
    for n, dtype, count in itertools.product((1000, 10, 2000), FLOATS, (1, 2)):
        base, finetuned = pair(n, dtype, torch.float32)
        tensor = mixed(base, *[finetuned] * count, weights=(1 / count,) * count)
        assert run(tensor, buffers=buffers).out == run(tensor).out


# what does not fit

LIMITS = {torch.float16: 65520.0, torch.bfloat16: (2 - 2**-8) * 2.0**127, torch.float32: (2 - 2**-24) * 2.0**127}


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("where", [0, 15, 16, 17])
def test_an_overflow_of_the_output_type_is_flagged(dtype: torch.dtype, sign: int, where: int) -> None:
    base = torch.ones(18, dtype=torch.float64)
    for value, fits in ((math.nextafter(LIMITS[dtype], 0), True), (LIMITS[dtype], False)):
        base[where] = sign * value
        for tensor in (mixed(base, base, dtype=dtype), copied(base, dtype)):
            found = run(tensor, size=16 * 8)
            assert bool(torch.isfinite(from_bytes(found.out, dtype)).all()) is fits
            assert found.finite is fits


def test_a_sum_that_overflows_in_float32_arithmetic_is_flagged() -> None:
    base, finetuned = torch.tensor([3e38, 1.0]), torch.tensor([3.3e38, 1.0])
    found = run(mixed(base, finetuned, alpha=3.0))
    assert not torch.isfinite(from_bytes(found.out, torch.float32)).all()
    assert not found.finite


def test_a_result_that_overflows_where_no_sum_does_is_flagged() -> None:
    base, finetuned = torch.tensor([0.0, 1.0]), torch.tensor([1e10, 1.0])
    assert run(mixed(base, finetuned, alpha=3e28)).finite
    assert not run(mixed(base, finetuned, alpha=4e28)).finite


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("alpha", [0.25, 0.75, 1.0])
@pytest.mark.parametrize("in_base", [True, False])
def test_an_input_that_is_not_finite_is_flagged(dtype: torch.dtype, odd: float, alpha: float, in_base: bool) -> None:
    base, finetuned = pair(100, dtype, dtype)
    (base if in_base else finetuned)[57] = odd
    for out in FLOATS:
        assert not run(mixed(base, finetuned, alpha=alpha, dtype=out)).finite
        if alpha == 1:  # the plan has a copy then
            assert run(copied(finetuned, out)).finite is in_base


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("out", FLOATS)
def test_a_copy_of_what_is_not_finite_is_flagged(dtype: torch.dtype, odd: float, out: torch.dtype) -> None:
    base = pair(100, dtype, dtype)[0]
    base[99] = odd
    assert not run(copied(base, out)).finite


# sums


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("alpha", [0.25, 0.75])
def test_sums_over_a_chunk_equal_those_in_float64(dtype: torch.dtype, alpha: float) -> None:
    base, finetuned = pair(2 * LONGEST + 7, dtype, dtype)
    sums = run(mixed(base, finetuned, alpha=alpha)).sums
    a, b = base.double(), finetuned.double()
    near = 1e-6 if dtype.itemsize > 2 else 1e-4  # squares of half numbers have few digits: the rounding is biased
    assert math.fsum(one.base for one in sums) == pytest.approx(float(a @ a), rel=near)
    assert math.fsum(one.delta for one in sums) == pytest.approx(float((b - a) @ (b - a)), rel=near)
    assert all(one.changed for one in sums)


@pytest.mark.parametrize("dtype", FLOATS)
@settings(max_examples=10)
@given(where=st.none() | st.integers(0, LONGEST + 9), alpha=st.sampled_from(ALPHAS))
def test_one_changed_element_is_enough_to_be_changed(dtype: torch.dtype, where: int | None, alpha: float) -> None:
    base: Any = torch.ones(LONGEST + 10, dtype=dtype)
    finetuned = base.clone()
    if where is not None:
        finetuned[where] += torch.finfo(dtype).eps
    sums = run(mixed(base, finetuned, alpha=alpha)).sums
    assert any(one.changed for one in sums) is (where is not None)
