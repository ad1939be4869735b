"""Chooses the number of workers: threads that execute a plan."""

from __future__ import annotations

import os
from dataclasses import dataclass

from speechft_merge.errors import UsageError

MAX_WORKERS = 4
"""More do not help: the work is the kernel's copying. Four hide the wait of a cold disk even on two cores."""

BYTES_PER_WORKER = 64 << 20
"""Output for each worker below which it costs more to start than it saves."""

DEVICE_WORKERS = 4
"""While one waits for the disk, another's chunk goes up to the device, and a third's comes down."""


@dataclass(frozen=True, slots=True)
class Workers:
    """The number of threads, and the reason for it."""

    count: int
    reason: str


def choose_workers(nbytes: int, asked: int | None = None, converting: bool = False, on_cpu: bool = True) -> Workers:
    """Choose the number of workers for an output of so many bytes, on the cores this process may use.

    Half types are converted under the interpreter's lock: on XLS-R 1B two threads took a fifth off the wall time of
    one, for a third more CPU time, and three took more of both.
    """
    if asked is not None:
        if asked < 1:
            raise UsageError(f"{asked} workers cannot do any work", hint="give 1 or more")
        return Workers(asked, "as requested")
    if not on_cpu:
        return Workers(DEVICE_WORKERS, "reading, computing and writing overlap")
    most, more = MAX_WORKERS, "more would not help"
    if converting:
        most, more = 2, "half types; more would wait for the interpreter's lock"
    cores, reason = _cores(), "cores available"
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdigit() and 0 < int(slurm) < cores:
        cores, reason = int(slurm), "SLURM_CPUS_PER_TASK"
    useful = 1 + nbytes // BYTES_PER_WORKER
    if useful < min(cores, most):
        return Workers(useful, "enough for so little data")
    return Workers(min(cores, most), reason if cores <= most else more)


def _cores() -> int:
    """Return the number of cores that this process may use; of all where the system does not tell (macOS)."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
