"""Shares of the work are told from what schedulers set, and together they are the whole, each item once."""

from __future__ import annotations

from itertools import chain, product
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechft_merge.errors import UsageError
from speechft_merge.sweep.share import Share

if TYPE_CHECKING:
    from collections.abc import Sequence


def array(elements: Sequence[int], step: int = 1) -> list[dict[str, str]]:
    """What Slurm 22.05 sets in each element; for a list with commas the step is 1."""
    ends = {"MIN": min(elements), "MAX": max(elements), "COUNT": len(elements), "STEP": step}
    return [
        {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in (ends | {"ID": element}).items()}
        for element in elements
    ]


def srun(count: int) -> list[dict[str, str]]:
    numbers = {"SLURM_NTASKS": str(count), "SLURM_STEP_NUM_TASKS": str(count)}
    return [numbers | {"SLURM_PROCID": str(index)} for index in range(count)]


def torchrun(count: int) -> list[dict[str, str]]:
    return [{"RANK": str(index), "WORLD_SIZE": str(count)} for index in range(count)]


def within(outer: list[dict[str, str]], inner: list[dict[str, str]]) -> list[dict[str, str]]:
    return [first | second for first, second in product(outer, inner)]


@given(items=st.lists(st.integers()), count=st.integers(1, 12))
def test_all_shares_together_have_every_item_once_and_differ_by_one_at_most(items: list[int], count: int) -> None:
    numbered = list(enumerate(items))
    shares = [Share(index, count).of(numbered) for index in range(count)]
    assert sorted(chain.from_iterable(shares)) == numbered
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(index=st.integers(0, 99), more=st.integers(1, 99))
def test_a_share_is_read_as_it_is_written(index: int, more: int) -> None:
    share = Share(index, index + more)
    assert Share.parse(str(share)) == share


@pytest.mark.parametrize(
    "text", ["", "8", "8/8", "-1/8", "0/0", "1/2/3", "a/8", "0.5/8", "1/ 8", "²/8", "1/9999999999"]
)
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a share") as refused:
        Share.parse(text)
    assert "0/" in str(refused.value)


@pytest.mark.parametrize(
    "processes",
    [
        array(range(8)),
        array(range(1, 9)),
        array([4, 7, 10], step=3),
        array([5]),
        srun(4),
        torchrun(4),
        within(array(range(3)), srun(2)),
        within(array(range(3)), srun(1)),
        within(array(range(2)), torchrun(3)),
    ],
    ids=["array", "from-1", "steps", "one", "srun", "torchrun", "srun-in-array", "srun-of-one", "torchrun-in-array"],
)
def test_the_processes_that_run_together_have_the_shares_of_the_whole(processes: list[dict[str, str]]) -> None:
    count = len(processes)
    assert [Share.from_environment(environ) for environ in processes] == [Share(i, count) for i in range(count)]


def test_torchrun_counts_where_srun_started_it_on_every_node() -> None:
    environ = srun(2)[1] | torchrun(8)[5]
    assert Share.from_environment(environ) == Share(5, 8)


def test_a_batch_shell_is_one_process_however_many_tasks_its_job_has() -> None:
    shell = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}
    assert Share.from_environment(array(range(3))[1] | shell) == Share(1, 3)
    with pytest.raises(UsageError, match="no variable tells the share"):
        Share.from_environment(shell)


def test_what_only_says_its_place_and_the_count_is_understood_too() -> None:
    assert Share.from_environment({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}) == Share(1, 4)
    assert Share.from_environment({"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "3"}) == Share(2, 3)


@pytest.mark.parametrize("elements", [[3, 5], [1, 3, 7], [0, 1, 2, 4]])
def test_an_array_with_gaps_is_refused_since_no_element_knows_its_place(elements: list[int]) -> None:
    for environ in array(elements):
        with pytest.raises(UsageError, match=rf"not evenly spaced.*--array=0-{len(elements) - 1}: "):
            Share.from_environment(environ)


def test_without_any_of_the_variables_it_says_which_were_looked_for() -> None:
    with pytest.raises(UsageError) as refused:
        Share.from_environment({"SLURM_NTASKS": "4", "RANK": "1"})
    for name in ("SLURM_ARRAY_TASK_ID", "SLURM_PROCID", "RANK", "WORLD_SIZE", "--task i/n"):
        assert name in str(refused.value)


@pytest.mark.parametrize("value", ["", "x", "-1", "1e3", "٣"])
def test_a_variable_that_is_no_number_is_named(value: str) -> None:
    with pytest.raises(UsageError, match="SLURM_ARRAY_TASK_COUNT"):
        Share.from_environment(array(range(2))[0] | {"SLURM_ARRAY_TASK_COUNT": value})
    with pytest.raises(UsageError, match="WORLD_SIZE"):
        Share.from_environment({"RANK": "0", "WORLD_SIZE": value})
