"""A process run to its end, and what it took. For Linux.

Stays on the standard library, as do all that import it: a child's peak memory starts at its parent's.
"""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# Compiled modules are kept, as an installed package has them: an editable install would compile its own in each run.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


@dataclass(frozen=True)
class Run:
    """What a process took; bytes include those of children that it waited for."""

    wall: float  # seconds
    cpu: float  # seconds, user and system
    rss: int  # bytes, at its peak, with what it maps of files
    read: int  # bytes that read() and its like returned; mapped files are not seen
    fetched: int  # bytes that came from the disk, mapped or read, with read-ahead; 0 if the page cache had them
    written: int  # bytes given to write() and its like
    dirtied: int  # bytes of pages that it wrote in the page cache, mapped or not


def together(runs: Iterable[Run]) -> Run:
    """What runs took, one after the other."""
    each = list(runs)
    sums = {name: sum(getattr(run, name) for run in each) for name in Run.__annotations__ if name != "rss"}
    return Run(rss=max(run.rss for run in each), **sums)


class Failed(SystemExit):
    """A command that did not exit with 0; the message has the end of its log."""

    def __init__(self, command: str, code: int, log: str) -> None:
        super().__init__(f"{command} failed ({code}):\n{log[-2000:]}")
        self.exit_status = code
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        self.last_line = lines[-1].partition(": '")[0] if lines else ""  # without the path that it ends in


def measure(command: list[str], log: Path, environment: dict[str, str] = ENVIRONMENT) -> Run:
    """Run a command to its end, its output going to a log."""
    to_log = [(os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)]
    start = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, environment, file_actions=[*to_log, (os.POSIX_SPAWN_DUP2, 1, 2)])
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    wall = time.perf_counter() - start
    counted = bytes_of(pid)  # it is there until it is waited for
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise Failed(command[0], os.waitstatus_to_exitcode(status), log.read_text(errors="replace"))
    return Run(
        wall,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * 1024,
        counted["rchar"],
        counted["read_bytes"],
        counted["wchar"],
        counted["write_bytes"],
    )


def bytes_of(pid: int) -> dict[str, int]:
    """What the kernel counted for a process."""
    lines = (line.split(":") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return {name: int(value) for name, value in lines}


def warm(paths: Iterable[Path]) -> None:
    """Read files, so that the page cache has them."""
    buffer = bytearray(1 << 20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def evict(paths: Iterable[Path]) -> None:
    """Take files out of the page cache; they must have been synced."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
