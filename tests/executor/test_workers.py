"""How many threads: as asked, or by the cores of the job and the size of the output."""

from __future__ import annotations

import os

import pytest

from speechft_merge.errors import UsageError
from speechft_merge.executor.workers import BYTES_PER_WORKER, MAX_WORKERS, choose_workers


@pytest.mark.parametrize(
    ("cores", "slurm", "nbytes", "count", "reason"),
    [
        (1, None, 1 << 40, 1, "cores available"),
        (3, None, 1 << 40, 3, "cores available"),
        (MAX_WORKERS, None, 1 << 40, MAX_WORKERS, "cores available"),
        (64, None, 1 << 40, MAX_WORKERS, "more would not help"),
        (64, None, 0, 1, "enough for so little data"),
        (64, None, BYTES_PER_WORKER - 1, 1, "enough for so little data"),
        (64, None, BYTES_PER_WORKER, 2, "enough for so little data"),
        (2, None, BYTES_PER_WORKER, 2, "cores available"),
        (64, "2", 1 << 40, 2, "SLURM_CPUS_PER_TASK"),
        (64, "1", 1 << 40, 1, "SLURM_CPUS_PER_TASK"),
        (64, "16", 1 << 40, MAX_WORKERS, "more would not help"),
        (2, "16", 1 << 40, 2, "cores available"),
        (64, "2", 0, 1, "enough for so little data"),
        (3, "0", 1 << 40, 3, "cores available"),
        (3, "many", 1 << 40, 3, "cores available"),
        (3, "-1", 1 << 40, 3, "cores available"),
        (3, "", 1 << 40, 3, "cores available"),
    ],
)
def test_workers_follow_the_cores_of_the_job_and_the_data(
    cores: int, slurm: str | None, nbytes: int, count: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    if slurm is not None:
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", slurm)
    workers = choose_workers(nbytes)
    assert (workers.count, workers.reason) == (count, reason)


@pytest.mark.parametrize(("cores", "count"), [(3, 3), (None, 1)])
def test_where_the_system_does_not_tell_which_cores_are_free_all_are(
    cores: int | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert choose_workers(1 << 40).count == count


def test_half_types_keep_no_more_than_two_threads_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    for cores, count in ((1, 1), (2, 2), (64, 2)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert choose_workers(1 << 40, converting=True).count == count


def test_on_a_device_the_workers_overlap_whatever_the_cores() -> None:
    assert choose_workers(0, on_cpu=False).count == 4


def test_as_many_workers_as_asked() -> None:
    assert choose_workers(0, 7).count == 7


@pytest.mark.parametrize("asked", [0, -1])
def test_no_workers_at_all_are_refused(asked: int) -> None:
    """They would leave a file of zeros, and no error."""
    with pytest.raises(UsageError):
        choose_workers(1, asked)
