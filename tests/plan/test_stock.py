"""Model Stock's ratio is that of its paper, and the same to the last bit however a tensor is read."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import span_of

from speechft_merge.plan.operations import Interpolate, Term
from speechft_merge.plan.stock import BLOCK, dots, estimate, resolve


def ratio(base: torch.Tensor, *finetuned: torch.Tensor, of: int = 0) -> float:
    """The ratio of fine-tunes, of which some of `of` may lack the tensor."""
    count = of or len(finetuned)
    terms = tuple(Term(span_of(values), 1 / count, i) for i, values in enumerate(finetuned))
    resolved = resolve(Interpolate(span_of(base), terms, 1.0, count))
    assert resolved.stock == 0
    return resolved.alpha


def oracle(base: torch.Tensor, *finetuned: torch.Tensor) -> float:
    """Eq. 4 of the paper, by torch in float64."""
    deltas = [(values.double() - base.double()).reshape(-1) for values in finetuned]
    cosines = [float(torch.dot(a, b) / (a.norm() * b.norm())) for a, b in itertools.combinations(deltas, 2)]
    mean, count = sum(cosines) / len(cosines), len(finetuned)
    return count * mean / (1 + (count - 1) * mean)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2,), (7,), (64, 33), (2 * BLOCK + 5,)])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_ratio_is_that_of_the_paper(count: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(count)
    base, shared = torch.randn(shape), torch.randn(shape)
    finetuned = [(base + 0.1 * shared + 0.02 * torch.randn(shape)).to(dtype) for _ in range(count)]
    assert 0 < (found := ratio(base.to(dtype), *finetuned)) < 1
    assert found == pytest.approx(oracle(base.to(dtype), *finetuned), rel=1e-12)


def test_equal_finetunes_go_in_whole_and_opposite_ones_not_at_all() -> None:
    base, delta = torch.zeros(5), torch.arange(5.0)
    assert ratio(base, delta, delta) == pytest.approx(1)
    assert ratio(base, delta, -delta) == 0
    assert ratio(base, delta, delta.flip(0) * -1) == 0
    assert ratio(base, torch.tensor([1.0, 0, 0, 0, 0]), torch.tensor([0, 1.0, 0, 0, 0])) == 0


@pytest.mark.parametrize("still", [1, 2])
def test_differences_of_zero_have_no_direction(still: int) -> None:
    base = torch.ones(5)
    assert ratio(base, *[base] * still, *[base + 1] * (2 - still)) == 0
    assert ratio(base[:0], base[:0], base[:0]) == 0


def test_a_small_difference_counts_as_much_as_a_large_one() -> None:
    """Which mergekit damps: it divides by the product of the norms, but by no less than 1e-6."""
    torch.manual_seed(0)
    base, one, other = torch.zeros(100), torch.rand(100), torch.rand(100)
    assert ratio(base, one * 2**-20, other * 2**-20) == ratio(base, one, other)


def test_a_finetune_that_lacks_the_tensor_counts_as_not_moved() -> None:
    torch.manual_seed(0)
    base, one, other = torch.zeros(100), torch.rand(100), torch.rand(100)
    assert ratio(base, one, other, of=3) == pytest.approx(ratio(base, one, other, base))
    assert ratio(base, one, of=2) == 0


def test_the_order_of_the_blocks_leaves_no_trace() -> None:
    torch.manual_seed(0)
    base, *finetuned = (torch.randn(50, BLOCK // 64, dtype=torch.float64).numpy() for _ in range(4))
    blocks = [dots(base[i], [values[i] for values in finetuned]) for i in range(50)]
    found = {estimate(3, 3, random.Random(seed).sample(blocks, 50)) for seed in range(20)}
    assert len(found) == 1


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=40), st.integers(2, 4))
def test_the_ratio_lies_between_the_base_and_the_mean(numbers: list[int], count: int) -> None:
    chosen = random.Random(str(numbers))
    finetuned = [torch.tensor([float(chosen.choice(numbers)) for _ in numbers]) for _ in range(count)]
    assert 0 <= ratio(torch.zeros(len(numbers)), *finetuned) <= 1 + 1e-12
