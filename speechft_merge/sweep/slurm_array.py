"""Runs commands as one Slurm job array, by submitit."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

from speechft_merge.errors import TemporaryError, UsageError
from speechft_merge.packages import needs_extra
from speechft_merge.sweep.jobs import End, Jobs, exit_code

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import submitit

    from speechft_merge.sweep.jobs import Submission

_WARNING = 30
"""Seconds before the time limit at which a job is requeued: its command ends in two."""

_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")
"""Variables that say which Slurm; all others of that name are of the job that this process runs in."""


class Task:
    """A command as submitit runs it in a job."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)

    def __call__(self) -> int:
        """Run the command and return its exit code, with which the job ends as well: so Slurm's accounting has it.

        After a signal there is no result: only Slurm knows if the job is over or will be run again.
        """
        with subprocess.Popen(self.words, preexec_fn=_ignore_warning) as process:
            try:
                code = exit_code(process.wait())
            except BaseException:  # submitit has had this job requeued, and leaves
                process.terminate()
                raise
        if code > 128:
            raise SystemExit(code)
        atexit.register(os._exit, code)
        return code

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Return what the job does after it was requeued for its time limit: the same, finished cells are skipped."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _ignore_warning() -> None:
    """Leave submitit's warning to submitit: Slurm sends it to every process of a job, and it would end the command."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


class SlurmArray(Jobs):
    """The elements of an array. They go on without anybody who waits."""

    results_visible = 15.0
    """Seconds that a shared file system may take to show the result of a job that has ended."""
    squeue_every = 15.0
    """Least seconds between two questions to the controller, which serves all users."""

    def __init__(self, commands: Sequence[Sequence[str]], folder: Path, submission: Submission) -> None:
        """Submit the commands.

        Raises:
            UsageError: there is no Slurm or no submitit here, or Slurm refuses the jobs.
            TemporaryError: its controller does not answer.
        """
        with needs_extra("submitit", "slurm"):
            import submitit
        if shutil.which("sbatch") is None:
            raise UsageError("there is no Slurm on this machine", found="no command sbatch", hint="try --submit local")
        executor = submitit.SlurmExecutor(folder)
        executor.update_parameters(**_parameters(submission))
        try:
            with _outside_of_jobs():
                self._jobs = executor.submit_array([Task(words) for words in commands])
        except submitit.core.utils.FailedJobError as error:
            kind = TemporaryError if "contact" in str(error) or "timed out" in str(error) else UsageError
            raise kind("Slurm did not take the jobs", found=str(error)) from error
        self._folder = folder
        self._states = {job.job_id: "PENDING" for job in self._jobs}
        self._asked = -self.squeue_every
        self._without_result: dict[str, float] = {}

    def ends(self) -> Sequence[End | None]:
        """Look for results, and ask Slurm about the jobs without one."""
        there = {path.name for path in self._folder.iterdir()}  # a listing: NFS caches that a file does not exist
        finished = [job.paths.result_pickle.name in there for job in self._jobs]
        now = time.monotonic()
        if not all(finished) and now - self._asked >= self.squeue_every:
            self._states, self._asked = _states(self._jobs[0].job_id.partition("_")[0], self._states), now
        return [
            _result(job) if done else self._end_without_result(job.job_id, now)
            for job, done in zip(self._jobs, finished, strict=True)
        ]

    def leave(self) -> None:
        """Leave the jobs to the queue."""

    def id(self, index: int) -> str:
        """Return a job's id: `1234_5`."""
        return self._jobs[index].job_id

    def log(self, index: int) -> Path:
        """Return what a job printed."""
        return self._jobs[index].paths.stdout

    def _end_without_result(self, job: str, now: float) -> End | None:
        """Return the state in which a job has been, without a result, for as long as that takes to be seen."""
        state = self._states.get(job, "no trace in the queue")
        if state in _GOING:
            self._without_result.pop(job, None)
            return None
        return state if now - self._without_result.setdefault(job, now) > self.results_visible else None


_GOING = frozenset(
    "PENDING RUNNING COMPLETING CONFIGURING REQUEUED REQUEUE_FED REQUEUE_HOLD RESIZING SIGNALING SPECIAL_EXIT "
    "STAGE_OUT STOPPED SUSPENDED".split()
)
"""States of jobs that have not ended, or are to be run again."""


def _parameters(submission: Submission) -> dict[str, Any]:
    """Return what submitit's executor is told."""
    cpus = submission.cpus
    given = {
        "time": submission.minutes,
        "partition": submission.partition,
        "mem": submission.memory,
        "gpus_per_node": submission.gpus,
        "cpus_per_task": cpus,
        "srun_args": cpus and [f"--cpus-per-task={cpus}"],  # which srun does not inherit since Slurm 22.05
    }
    free = {key: value or True for key, value in submission.parameters.items()}
    return {key: value for key, value in given.items() if value is not None} | {
        "job_name": "speechft-merge",
        "array_parallelism": submission.parallelism or submission.jobs,
        "signal_delay_s": _WARNING,
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's own is refused where keys are checked
        "setup": ["export SUBMITIT_LOG_LEVEL=ERROR"],  # else the log of a failure ends with "completed successfully"
        "additional_parameters": {"ntasks": 1, "requeue": True} | free,
    }


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hide the variables of a job in which this runs: sbatch and srun would take them for options of the new jobs."""
    names = [name for name in os.environ if name.startswith("SLURM_") and name not in _KEPT]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _states(array: str, before: dict[str, str]) -> dict[str, str]:
    """Return element -> state, also of elements that ended minutes ago; those of before where Slurm does not answer.

    Of squeue, not sacct, which has nothing to tell where there is no accounting database.
    """
    squeue = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T", f"--jobs={array}"]
    try:
        done = subprocess.run(squeue, capture_output=True, encoding="utf-8", timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return before
    if done.returncode:
        return {} if "Invalid job id" in done.stderr else before
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())


def _result(job: submitit.Job[int]) -> int:
    return job.result() if job.exception() is None else 1
