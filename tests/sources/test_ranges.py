"""The runs that are fetched of a remote file: everything that is wanted, little else, when it is needed."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from speechft_merge.sources.ranges import MAX_GAP, MAX_RUN, WINDOW, Run, plan_runs

MIB = 1 << 20
Wanted = Sequence[tuple[int, int]]


def assert_sound(runs: Sequence[Run], wanted: Wanted) -> None:
    for run in runs:
        assert 0 < run.stop - run.start <= MAX_RUN
        for offset, length in run.pieces:
            assert length > 0
            assert run.start <= offset
            assert offset + length <= run.stop
    assert [run.need for run in runs if run.need >= len(wanted)] == []
    held = sorted((offset, offset + length) for run in runs for offset, length in run.pieces)
    for offset, length in wanted:
        reached = offset
        for start, stop in held:
            if start <= reached < stop:
                reached = stop
        assert reached >= offset + length, (offset, length)


def fetched(runs: Sequence[Run]) -> int:
    return sum(run.stop - run.start for run in runs)


def test_nothing_is_fetched_for_nothing() -> None:
    assert plan_runs([]) == []
    assert plan_runs([(5, 0)]) == []


def test_neighbours_are_one_run() -> None:
    assert plan_runs([(0, 10), (10, 20), (30, 5)]) == [Run(0, 35, ((0, 10), (10, 20), (30, 5)), 0)]


@pytest.mark.parametrize(("gap", "count"), [(0, 1), (MAX_GAP, 1), (MAX_GAP + 1, 2)])
def test_small_gaps_are_fetched_along_and_large_ones_are_not(gap: int, count: int) -> None:
    wanted = [(0, 100), (100 + gap, 100)]
    runs = plan_runs(wanted)
    assert len(runs) == count
    assert fetched(runs) == (200 + gap if count == 1 else 200)


def test_the_order_of_the_wanted_ranges_does_not_split_runs() -> None:
    runs = plan_runs([(200, 100), (0, 100), (100, 100)])
    assert [(run.start, run.stop, run.need) for run in runs] == [(0, 300, 0)]


def test_runs_come_in_the_order_of_need() -> None:
    far = 10 * MIB
    runs = plan_runs([(2 * far, 10), (0, 10), (far, 10)])
    assert [(run.start, run.need) for run in runs] == [(2 * far, 0), (0, 1), (far, 2)]


@pytest.mark.parametrize("size", [MAX_RUN, MAX_RUN + 1, 3 * MAX_RUN, WINDOW + 1, 3 * WINDOW + 7])
def test_a_large_tensor_is_cut(size: int) -> None:
    runs = plan_runs([(8, size)])
    assert_sound(runs, [(8, size)])
    assert fetched(runs) == size
    assert len(runs) <= -(-size // MAX_RUN) + -(-size // WINDOW)


def test_the_runs_of_a_window_hold_what_is_wanted_first() -> None:
    """Two halves of a file, read in turns: no run waits for what is wanted a window later."""
    half = 400 * MIB
    wanted = [(side + offset, MIB) for offset in range(0, half, MIB) for side in (0, half)]
    runs = plan_runs(wanted)
    assert_sound(runs, wanted)
    assert fetched(runs) == 2 * half
    read = 0
    for run in runs:
        assert run.need * MIB <= read + WINDOW
        read += run.stop - run.start


@pytest.mark.parametrize(
    "wanted",
    [
        [(0, 1000), (100, 50)],
        [(0, 1000), (0, 50)],
        [(0, 50), (0, 1000)],
        [(0, 100), (50, 100), (60, 10), (149, 1)],
        [(0, MAX_RUN + 100), (MAX_RUN - 50, 100)],
        [(0, MAX_RUN + 100), (10, 20), (MAX_RUN + 50, 10)],
    ],
)
def test_tensors_may_overlap(wanted: Wanted) -> None:
    """Views into one storage of a pickled file."""
    assert_sound(plan_runs(wanted), wanted)


@pytest.mark.parametrize("seed", range(200))
def test_whatever_is_wanted_is_fetched_once(seed: int) -> None:
    chance = random.Random(seed)
    wanted, position = [], chance.randrange(1000)
    for _ in range(chance.randrange(1, 60)):
        length = chance.choice([1, 100, 5000, MIB, 5 * MIB, 40 * MIB])
        wanted.append((position, length))
        position += length + chance.choice([0, 0, 8, MAX_GAP, MAX_GAP + 1, 3 * MIB])
    chance.shuffle(wanted)
    runs = plan_runs(wanted)
    assert_sound(runs, wanted)
    assert sum(length for run in runs for _, length in run.pieces) == sum(length for _, length in wanted)
    assert fetched(runs) <= sum(length for _, length in wanted) + MAX_GAP * len(wanted)
    assert [run.need for run in runs] == sorted(run.need for run in runs) or sum(n for _, n in wanted) > WINDOW
