"""Defines the options that submit a sweep: to Slurm as one job array, or to this machine."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from speechft_merge.choices import PLACES, choose
from speechft_merge.cli.groups import OptionGroup, one_of
from speechft_merge.cli.progress import ProgressLine
from speechft_merge.errors import UsageError
from speechft_merge.progress import counted

if TYPE_CHECKING:
    from pathlib import Path

    from speechft_merge.cli.sink import Sink
    from speechft_merge.sweep.jobs import Submission


@dataclass(frozen=True)
class SubmitOptions(OptionGroup):
    """Where the shares of a sweep run."""

    panel: ClassVar[str] = "Jobs"
    submit: Annotated[
        str | None,
        one_of(PLACES, "Share the sweep out, to slurm (as one job array; needs submitit) or local (processes here)."),
    ] = None
    jobs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Jobs, each with its share of the cells; default: 4.")
    ] = None
    parallel: Annotated[int | None, typer.Option(min=1, metavar="N", help="Most jobs that run at once.")] = None
    partition: Annotated[str | None, typer.Option(metavar="NAME", help="Slurm's partition.")] = None
    time: Annotated[
        str | None, typer.Option(metavar="TIME", help="Time of a job, as sbatch has it: 90 (minutes) or 4:00:00.")
    ] = None
    mem: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory of a job, as sbatch has it: 16G.")] = None
    gpus: Annotated[int | None, typer.Option(min=0, metavar="N", help="GPUs of a job.")] = None
    cpus: Annotated[int | None, typer.Option(min=1, metavar="N", help="CPUs of a job.")] = None
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Any other option of sbatch: account=speech; may be repeated."),
    ] = None
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait and decide; --no-wait leaves that to sweep --collect.")
    ] = True

    def __post_init__(self) -> None:
        if self.submit is not None:
            choose("submit", self.submit, PLACES)

    def start(self, folder: Path, sink: Sink) -> bool:
        """Submit this very command, once for each share, and wait; return whether all of it is done.

        Raises:
            UsageError: the place does not take the jobs.
            TemporaryError: Slurm does not answer.
        """
        from speechft_merge.sweep.submit import submit  # not for --help

        jobs = submit([sys.executable, "-P", "-m", "speechft_merge", *sys.argv[1:]], folder, self._read())
        if not self.wait:
            return False
        with ProgressLine(sink, f"{folder}: waiting for {self.submit} jobs") as progress:
            failures = jobs.wait(counted(progress, "running", "jobs"))
        for failure in failures:
            print(f"speechft-merge: warning: {failure}: {failure.log}", *failure.tail, sep="\n  ", file=sys.stderr)
        return True

    def _read(self) -> Submission:
        from speechft_merge.sweep.jobs import Submission, parse_minutes  # not for --help

        if self.submit == "local" and not self.wait:
            raise UsageError("processes on this machine end with this one", hint="leave --no-wait out")
        free = [option.partition("=") for option in self.sbatch or ()]
        return Submission(
            where=self.submit,  # type: ignore[arg-type]
            jobs=self.jobs or 4,
            parallelism=self.parallel,
            partition=self.partition,
            memory=self.mem,
            gpus=self.gpus,
            cpus=self.cpus,
            parameters={key.lstrip("-"): value for key, _, value in free},
            **({} if self.time is None else {"minutes": parse_minutes(self.time)}),
        )
