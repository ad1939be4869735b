"""Runs the command in processes forked from one that has imported it, each within limits, and says what they took.

Reads a line of JSON for each request, a list of runs that begin at once, and answers with one.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

from injection import Plan

PRELOADED = """
numpy yaml typer speechft_merge.cli.app speechft_merge.merging speechft_merge.executor.chunk
speechft_merge.executor.executor speechft_merge.cli.show_merge speechft_merge.cli.show_checkpoint
speechft_merge.cli.failure speechft_merge.checkpoints.model_config speechft_merge.output.lab_file
""".split()
"""`inspect` is not asked for the whole of what it imports: what is missing is imported in each process."""
LONGEST = 60.0
"""Seconds after which a process is killed."""
MEMORY = 4 << 30
"""Bytes of address space that a process may have."""


@dataclass
class Job:
    """A command line to run."""

    args: list[str]
    folder: str
    name: str = "job"
    """Of the files that its streams go to."""
    plan: Plan = field(default_factory=Plan)
    watched: str | None = None
    """A folder whose content is read as soon as the process has ended."""
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class Ended:
    """How a process ended."""

    code: int
    """As a shell has it: 128 and the number of a signal that killed it."""
    seconds: float
    """Of wall time."""
    cpu: float
    """Seconds of processor time, which other load on the machine does not lengthen."""
    mb: float
    """Most memory that was resident."""
    out: str
    err: str
    seen: dict[str, str] | None
    """Name -> digest of the files of the watched folder; None if there was none."""


Runs = Callable[[Sequence[Job]], list[Ended]]
"""Runs commands that begin at once, and waits for all."""


def hidden(folder: Path) -> list[str]:
    """What lies in a folder under a hidden name."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def contents(folder: Path) -> dict[str, str] | None:
    """Digests of the files of a folder, all read from what one moment had under its name."""
    while True:
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return None
        try:
            found = {name: sha256(_read(name, fd)).hexdigest() for name in sorted(os.listdir(fd))}  # noqa: PTH208
        except OSError:  # replaced meanwhile
            continue
        finally:
            os.close(fd)
        return found


def _read(name: str, folder: int) -> bytes:
    with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=folder), "rb") as file:
        return file.read()


def _become(job: Job) -> NoReturn:
    os.chdir(job.folder)
    os.environ.update(job.env)
    for number, path in enumerate((os.devnull, f"{job.name}.out", f"{job.name}.err")):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(fd, number)
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    sys.argv = ["speechft-merge", *job.args]
    code = 1
    try:
        from speechft_merge.__main__ import main

        job.plan.apply()
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(jobs: list[Job]) -> list[Ended]:
    started: dict[int, tuple[int, float]] = {}
    for number, job in enumerate(jobs):
        pid = os.fork()
        if not pid:
            _become(job)
        started[pid] = number, time.monotonic()
    ended: dict[int, Ended] = {}
    while started:
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if not pid:
            for late in [pid for pid, (_, since) in started.items() if time.monotonic() - since > LONGEST]:
                os.kill(late, signal.SIGKILL)
            time.sleep(0.002)
            continue
        number, since = started.pop(pid)
        job, code = jobs[number], os.waitstatus_to_exitcode(status)
        seen = contents(Path(job.folder, job.watched)) if job.watched else None
        out, err = (Path(job.folder, f"{job.name}.{stream}").read_text(errors="replace") for stream in ("out", "err"))
        seconds, mb = time.monotonic() - since, usage.ru_maxrss / 1024
        cpu = usage.ru_utime + usage.ru_stime
        ended[number] = Ended(code if code >= 0 else 128 - code, seconds, cpu, mb, out, err, seen)
    return [ended[number] for number in range(len(jobs))]


def serve() -> None:
    """Answer requests until there are no more."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    for name in PRELOADED:
        __import__(name)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        jobs = [Job(**given | {"plan": Plan(**given["plan"])}) for given in json.loads(line)]
        print(json.dumps([asdict(ended) for ended in _run(jobs)]), file=answers, flush=True)


if __name__ == "__main__":
    serve()
