"""What a merge reads is kept once, filled in place, and given away once."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from models import span_of

from speechft_merge.executor import kept as module
from speechft_merge.executor.kept import Kept

VALUES = torch.arange(1000, dtype=torch.float32)


def test_a_tensor_that_was_read_whole_is_taken_from_memory() -> None:
    span, other = span_of(VALUES), span_of(VALUES)
    kept = Kept([span])
    raw = VALUES.numpy().tobytes()
    for start, stop in itertools.pairwise([0, 400, 4000]):
        for one in (span, other):  # nobody wants the other
            kept.add(one, start, memoryview(raw)[start:stop])
    taken = kept.take(span)
    assert taken.source is not span.source
    assert taken.source.read(0, 4000) == raw
    assert kept.take(span) is span
    assert kept.take(other) is other


def test_a_tensor_that_was_read_in_part_is_read_from_its_file() -> None:
    span = span_of(VALUES)
    kept = Kept([span])
    kept.add(span, 0, memoryview(bytes(3996)))
    kept.add(span, 0, memoryview(bytes(3996)))  # a tied tensor is read twice
    assert kept.take(span) is span


def test_memory_is_taken_once_for_a_tensor_and_not_for_each_piece() -> None:
    made: list[int] = []

    class Counted(bytearray):
        def __init__(self, size: int) -> None:
            made.append(size)
            super().__init__(size)

    module.bytearray = Counted  # type: ignore[attr-defined]
    try:
        span = span_of(VALUES)
        kept = Kept([span])
        for start in range(0, 4000, 100):
            kept.add(span, start, memoryview(np.zeros(100, np.uint8).data))
    finally:
        del module.bytearray  # type: ignore[attr-defined]
    assert made == [4000]
