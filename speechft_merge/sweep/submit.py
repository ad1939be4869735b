"""Submits the shares of a sweep: to Slurm, or to this machine."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from speechft_merge.errors import UsageError
from speechft_merge.sweep.jobs import End, Jobs, exit_code
from speechft_merge.sweep.share import Share
from speechft_merge.sweep.slurm_array import SlurmArray

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from speechft_merge.sweep.jobs import Submission

_LOGS = "jobs"
"""Folder of logs, within that of the sweep."""

_GPUS = "CUDA_VISIBLE_DEVICES"


def submit(words: Sequence[str], folder: Path, submission: Submission) -> Jobs:
    """Submit a command once for each share of the work.

    Args:
        words: the command, to which `--task i/n` is added.
        folder: that of the sweep, which every node must see; logs go to `jobs` in it.
        submission: where to, and with what.

    Raises:
        UsageError: there is no such place, or it does not take the jobs.
        TemporaryError: Slurm does not answer.
    """
    commands = [[*words, "--task", str(Share(i, submission.jobs))] for i in range(submission.jobs)]
    logs = folder.absolute() / _LOGS
    logs.mkdir(parents=True, exist_ok=True)
    place = SlurmArray if submission.where == "slurm" else LocalProcesses
    return place(commands, logs, submission)


class LocalProcesses(Jobs):
    """Processes on this machine, some at a time. They end with whoever waits for them.

    Not submitit's LocalExecutor, which starts all at once, hides the GPUs that it was not asked for, and ends what
    takes longer than two minutes unless told how long.
    """

    def __init__(self, commands: Sequence[Sequence[str]], folder: Path, submission: Submission) -> None:
        self._commands, self._folder = commands, folder
        self._slots: list[int | None] = [None] * min(submission.parallelism or len(commands), len(commands))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._given = _variables(submission, len(self._slots))

    def ends(self) -> Sequence[End | None]:
        """Look which processes have ended, and start others in their place."""
        for slot, index in enumerate(self._slots):
            free = index is None or self._processes[index].poll() is not None
            if free and len(self._processes) < len(self._commands):
                self._slots[slot] = len(self._processes)
                self._processes.append(self._start(len(self._processes), slot))
        ended = [None if (status := process.poll()) is None else exit_code(status) for process in self._processes]
        return [*ended, *[None] * (len(self._commands) - len(ended))]

    def leave(self) -> None:
        """End the processes, as a signal to this one would."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()

    def id(self, index: int) -> str:
        """Return a process's id."""
        return str(self._processes[index].pid)

    def log(self, index: int) -> Path:
        """Return what a process printed."""
        return self._folder / f"local_{index}.log"

    def _start(self, index: int, slot: int) -> subprocess.Popen[bytes]:
        with self.log(index).open("ab") as log:
            return subprocess.Popen(
                self._commands[index],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self._given[slot],
            )


def _variables(submission: Submission, slots: int) -> list[dict[str, str]]:
    """Return for each of the processes that run at once the variables that give it its CPUs, and GPUs of its own."""
    threads = {"OMP_NUM_THREADS": str(submission.cpus)} if submission.cpus else {}
    gpus = submission.gpus
    if gpus is None:
        return [threads] * slots
    visible = [name for name in os.environ.get(_GPUS, "").split(",") if name] or [str(i) for i in range(slots * gpus)]
    if len(visible) < slots * gpus:
        found = f"{_GPUS}={','.join(visible)}"
        raise UsageError(f"{slots} jobs at once need {slots * gpus} GPUs", found=found, hint="run fewer at once")
    return [threads | {_GPUS: ",".join(visible[slot * gpus : (slot + 1) * gpus])} for slot in range(slots)]
