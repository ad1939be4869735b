"""One chunk at a time: every mix of element types gives torch's bytes, however a tensor is cut."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import dtype_of, from_bytes, span_of, to_bytes

from speechft_merge.executor import chunk as lane
from speechft_merge.executor.arithmetic import Sums
from speechft_merge.executor.chunk import BLOCK, CHUNK, Lane
from speechft_merge.layouts.structure import Location
from speechft_merge.plan.plan import Action, PlannedTensor

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
ALPHAS = (0.1, 0.25, 0.5, 0.7)


def plan_of(
    base: torch.Tensor, *finetuned: torch.Tensor, alpha: float = 0.25, weights: tuple[float, ...] = (1.0,),
    dtype: torch.dtype | None = None, action: Action = Action.INTERPOLATED,
) -> PlannedTensor:  # fmt: skip
    return PlannedTensor(
        "t", action, "", Location("other", ""), dtype_of(dtype or base.dtype), tuple(base.shape), span_of(base),
        tuple(span_of(other) for other in finetuned), weights, alpha,
    )  # fmt: skip


def run(tensor: PlannedTensor, cuts: tuple[int, ...] = (), worker: Lane | None = None) -> tuple[bytes, list[Sums]]:
    """The output, chunk after chunk; `cuts` are elements at which the tensor is cut, besides where it must be."""
    worker = worker or Lane(max(2, len(tensor.inputs)))
    elements = math.prod(tensor.shape)
    longest = CHUNK // max(tensor.dtype.itemsize, *(span.dtype.itemsize for span in tensor.inputs))
    out, sums = b"", []
    for start, stop in itertools.pairwise(sorted([*range(0, elements, longest), *cuts, elements])):
        for span, buffer in zip(tensor.inputs, worker.buffers, strict=False):
            size = span.dtype.itemsize
            span.source.read_into(start * size, buffer[: (stop - start) * size])
        data, found = worker.run(tensor, stop - start)
        out += bytes(data)
        sums.append(found)
    return out, sums


def result(tensor: PlannedTensor) -> torch.Tensor:
    return from_bytes(run(tensor)[0], getattr(torch, tensor.dtype.torch_name))


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
        assert run(plan_of(base, finetuned, alpha=alpha, dtype=dtype))[0] == to_bytes(expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, *(k + i for k in (BLOCK, CHUNK // 8, CHUNK // 4) for i in (-1, 0, 1))])
def test_sizes_around_a_block_and_a_chunk_equal_torch(n: int, dtype: torch.dtype) -> None:
    base, finetuned = pair(n, dtype, dtype)
    assert run(plan_of(base, finetuned))[0] == to_bytes(three_steps(base, finetuned, 0.25, dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_buffer_filled_to_its_last_byte_equals_torch(dtype: torch.dtype) -> None:
    base, finetuned = pair(CHUNK // dtype.itemsize, dtype, dtype)
    assert run(plan_of(base, finetuned, alpha=0.7))[0] == to_bytes(three_steps(base, finetuned, 0.7, dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("alpha", [-0.5, 1.5, 2.0])
def test_extrapolation_equals_torch(alpha: float, dtype: torch.dtype) -> None:
    base, finetuned = pair(501, dtype, dtype)
    assert run(plan_of(base, finetuned, alpha=alpha))[0] == to_bytes(three_steps(base, finetuned, alpha, dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_several_finetunes_of_several_types_equal_torch(dtype: torch.dtype) -> None:
    base, first = pair(BLOCK + 5, dtype, torch.float32)
    second = pair(BLOCK + 5, dtype, torch.bfloat16, seed=0)[1]
    real = torch.float64 if dtype is torch.float64 else torch.float32
    a, b, c = base.to(real), first.to(real), second.to(real)
    total = torch.add(torch.mul(torch.sub(b, a), 0.4), torch.mul(torch.sub(c, a), 0.6))
    expected = cast(torch.add(a, torch.mul(total, 0.25)), dtype)
    assert run(plan_of(base, first, second, weights=(0.4, 0.6)))[0] == to_bytes(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@given(data=st.data())
def test_any_finite_half_numbers_equal_torch(dtype: torch.dtype, data: st.DataObject) -> None:
    exponent = 0x7C00 if dtype is torch.float16 else 0x7F80
    words = st.lists(
        st.integers(0, 0xFFFF).filter(lambda word: word & exponent != exponent), min_size=4, max_size=4
    ).map(lambda found: torch.from_numpy(np.array(found, np.uint16).view(np.int16)).view(dtype))
    base, finetuned, alpha = data.draw(words), data.draw(words), data.draw(st.floats(0.01, 0.99))
    assert torch.equal(
        result(plan_of(base, finetuned, alpha=alpha)).view(torch.int16),
        three_steps(base, finetuned, alpha, dtype).view(torch.int16),
    )


# exactness


@pytest.mark.parametrize("dtype", FLOATS)
def test_alpha_one_is_the_finetune_to_the_bit(dtype: torch.dtype) -> None:
    base, finetuned = pair(1001, dtype, dtype)
    finetuned[:2] = torch.tensor([-0.0, 0.0])
    tensor = plan_of(base, finetuned, alpha=1.0)
    assert len(tensor.inputs) == 1
    assert run(tensor)[0] == to_bytes(finetuned)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_what_did_not_move_comes_out_as_it_was(alpha: float, dtype: torch.dtype) -> None:
    base, finetuned = pair(1001, dtype, dtype)
    still = torch.arange(1001) % 3 == 0
    base[:6] = torch.tensor([-0.0, 1, 2, 0.0, 3, 4])
    finetuned = torch.where(still, base, finetuned)
    out = result(plan_of(base, finetuned, alpha=alpha))
    assert to_bytes(out[still]) == to_bytes(base[still])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("n", [1, BLOCK + 3])
def test_a_copy_is_exact_or_rounded_once(source: torch.dtype, dtype: torch.dtype, n: int) -> None:
    base = pair(n, source, source)[0]
    tensor = plan_of(base, dtype=dtype, action=Action.COPIED)
    assert run(tensor)[0] == to_bytes(cast(base, dtype))


@pytest.mark.parametrize("values", [torch.arange(9), torch.arange(9, dtype=torch.uint8), torch.arange(9) % 2 == 0])
def test_integers_and_booleans_are_copied_as_they_are(values: torch.Tensor) -> None:
    out, sums = run(plan_of(values, action=Action.COPIED))
    assert out == to_bytes(values)
    assert sums == [Sums(0.0, 0.0, False)]


# cutting


@pytest.mark.parametrize("dtypes", list(itertools.product(FLOATS, [torch.float32, torch.bfloat16])))
@settings(max_examples=25)
@given(cuts=st.lists(st.integers(0, 300), max_size=6), alpha=st.floats(0, 1, exclude_min=True))
def test_any_cut_of_a_tensor_gives_the_same_bytes(
    dtypes: tuple[torch.dtype, torch.dtype], cuts: list[int], alpha: float
) -> None:
    base, finetuned = pair(300, *dtypes)
    tensor = plan_of(base, finetuned, alpha=alpha)
    assert run(tensor, tuple(cuts))[0] == run(tensor)[0]


@settings(max_examples=40)
@given(block=st.integers(1, 400), alpha=st.sampled_from(ALPHAS), dtype=st.sampled_from(FLOATS))
def test_the_block_size_leaves_no_trace(
    block: int, alpha: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, finetuned = pair(333, dtype, torch.float32)
    tensor = plan_of(base, finetuned, alpha=alpha)
    expected = run(tensor)[0]
    with monkeypatch.context() as patched:
        patched.setattr(lane, "BLOCK", block)
        assert run(tensor)[0] == expected


def test_a_lane_forgets_what_it_did_before() -> None:
    """Buffers are used again: a chunk of another size, type or number of inputs must not meet old bytes."""
    worker = Lane(3)
    torch.manual_seed(0)
    for n, dtype, count in itertools.product((1000, 10, 2000), FLOATS, (1, 2)):
        base, finetuned = pair(n, dtype, torch.float32)
        tensor = plan_of(base, *[finetuned] * count, weights=(1 / count,) * count)
        assert run(tensor, worker=worker)[0] == run(tensor)[0]


# what does not fit

LIMITS = {torch.float16: 65520.0, torch.bfloat16: (2 - 2**-8) * 2.0**127, torch.float32: (2 - 2**-24) * 2.0**127}


def is_finite(sums: list[Sums]) -> bool:
    return math.isfinite(math.fsum(one.base + one.delta for one in sums))


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("where", [0, 15, 16, 17])
def test_an_overflow_of_the_output_type_is_flagged(
    dtype: torch.dtype, sign: int, where: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "BLOCK", 16)
    base = torch.ones(18, dtype=torch.float64)
    for value, fits in ((math.nextafter(LIMITS[dtype], 0), True), (LIMITS[dtype], False)):
        base[where] = sign * value
        for tensor in (plan_of(base, base, dtype=dtype), plan_of(base, dtype=dtype, action=Action.COPIED)):
            out, sums = run(tensor)
            assert bool(torch.isfinite(from_bytes(out, dtype)).all()) is fits
            assert is_finite(sums) is fits


def test_a_sum_that_overflows_in_float32_arithmetic_is_flagged() -> None:
    base, finetuned = torch.tensor([3e38, 1.0]), torch.tensor([3.3e38, 1.0])
    out, sums = run(plan_of(base, finetuned, alpha=3.0))
    assert not torch.isfinite(from_bytes(out, torch.float32)).all()
    assert not is_finite(sums)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("alpha", [0.25, 0.75, 1.0])
@pytest.mark.parametrize("in_base", [True, False])
def test_an_input_that_is_not_finite_is_flagged(dtype: torch.dtype, odd: float, alpha: float, in_base: bool) -> None:
    base, finetuned = pair(100, dtype, dtype)
    (base if in_base else finetuned)[57] = odd
    read = alpha < 1 or not in_base
    for out in FLOATS:
        assert is_finite(run(plan_of(base, finetuned, alpha=alpha, dtype=out))[1]) is not read


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("out", FLOATS)
def test_a_copy_of_what_is_not_finite_is_flagged(dtype: torch.dtype, odd: float, out: torch.dtype) -> None:
    base = pair(100, dtype, dtype)[0]
    base[99] = odd
    assert not is_finite(run(plan_of(base, dtype=out, action=Action.COPIED))[1])


# sums


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("alpha", [0.25, 0.75])
def test_sums_over_a_chunk_equal_those_in_float64(dtype: torch.dtype, alpha: float) -> None:
    base, finetuned = pair(2 * BLOCK + 7, dtype, dtype)
    sums = run(plan_of(base, finetuned, alpha=alpha))[1]
    a, b = base.double(), finetuned.double()
    near = 1e-6 if dtype.itemsize > 2 else 2e-5  # squares of half numbers have few digits: the sum's rounding is biased
    assert math.fsum(one.base for one in sums) == pytest.approx(float(a @ a), rel=near)
    assert math.fsum(one.delta for one in sums) == pytest.approx(float((b - a) @ (b - a)), rel=near)
    assert all(one.changed for one in sums)


@pytest.mark.parametrize("dtype", FLOATS)
@settings(max_examples=10)
@given(where=st.none() | st.integers(0, BLOCK + 9), alpha=st.sampled_from(ALPHAS))
def test_one_changed_element_is_enough_to_be_changed(dtype: torch.dtype, where: int | None, alpha: float) -> None:
    base: Any = torch.ones(BLOCK + 10, dtype=dtype)
    finetuned = base.clone()
    if where is not None:
        finetuned[where] += torch.finfo(dtype).eps
    sums = run(plan_of(base, finetuned, alpha=alpha))[1]
    assert any(one.changed for one in sums) is (where is not None)
