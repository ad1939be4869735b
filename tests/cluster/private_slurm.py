"""A Slurm of two nodes on this machine, from Debian's packages, with keys, ports and folders of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
NODES = ("n1", "n2")
USER = pwd.getpwuid(os.getuid()).pw_name

CONFIGURATION = """\
ClusterName=private
SlurmctldHost=localhost(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# a job that was requeued waits until credentials have expired, 120 s otherwise
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdSpoolDir={folder}/spool.%n
# nodes are what is said below, as much as an element of the example's array asks for, whatever this machine is
SlurmdParameters=config_overrides
# cgroups are the host's, not a container's
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
MpiDefault=none
ReturnToService=0
KillWait=5
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=8192
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=8192
PartitionName=both Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """What a Slurm needs and this machine lacks."""
    return [program for program in PROGRAMS if shutil.which(program, path=search_path()) is None]


def search_path() -> str:
    """PATH with the folders of daemons, which an ordinary user's lacks."""
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Slurm:
    """The Slurm while it runs; commands find it by the variable SLURM_CONF."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": search_path()}

    def __call__(self, *words: object, env: Mapping[str, str] = {}, cwd: Path | None = None) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(
            [str(word) for word in words], env=os.environ | self.environment | dict(env), cwd=cwd, capture_output=True,
            encoding="utf-8", timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout.strip()

    def sbatch(self, *words: object, env: Mapping[str, str] = {}, cwd: Path | None = None) -> str:
        """The id of a job."""
        return self("sbatch", "--parsable", *words, env=env, cwd=cwd)

    def states(self, job: str) -> dict[str, str]:
        """The state of each element of an array, also of those that have ended."""
        lines = self("squeue", "--noheader", "--array", "--states=all", "-o", "%i %T", "--jobs", job).splitlines()
        return dict(line.split() for line in lines)

    def wait(self, job: str) -> dict[str, str]:
        """The states in the end."""
        going = {"PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING", "SUSPENDED"}
        eventually(lambda: not going & {*self.states(job).values()}, f"job {job} has ended", self.log)
        return self.states(job)

    def is_idle(self) -> bool:
        """Both nodes are up and have no job."""
        try:
            return self("sinfo", "--noheader", "-N", "-o", "%T").split() == ["idle"] * len(NODES)
        except AssertionError:  # the controller does not listen yet
            return False

    def end_jobs(self) -> None:
        self("scancel", "--user", USER)
        eventually(lambda: self("squeue", "--noheader") == "", "all jobs have ended", self.log)

    def log(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(self.folder.glob("*.log")))


class RunningSlurm:
    """Starts the daemons and ends them, and every job of theirs; a test run that is killed takes them along."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._slurm = Slurm(folder)
        self._stack = ExitStack()

    def __enter__(self) -> Slurm:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self._slurm

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        folder, socket_path = self._folder, self._folder / "munge.socket"
        folder.chmod(0o755)  # munged lets nobody into a socket in a folder that others cannot enter
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        (folder / "state").mkdir()
        conf = folder / "slurm.conf"
        conf.write_text(CONFIGURATION.format(folder=folder, user=USER, ports=free_ports(3)))
        files = {"key-file": "munge.key", "pid-file": "munge.pid", "log-file": "munge.log", "seed-file": "munge.seed"}
        options = [f"--{option}={folder / name}" for option, name in files.items()]
        self._daemon(stack, "munged", "--foreground", "--force", f"--socket={socket_path}", *options)
        eventually(socket_path.exists, "munged has a socket", self._slurm.log)
        self._daemon(stack, "slurmctld", "-D", "-c", "-f", conf)
        for node in NODES:
            (folder / f"spool.{node}").mkdir()
            self._daemon(stack, "slurmd", "-D", "-N", node, "-f", conf)
        stack.callback(self._slurm.end_jobs)
        eventually(self._slurm.is_idle, "both nodes are idle", self._slurm.log)

    def _daemon(self, stack: ExitStack, *words: object) -> None:
        output = stack.enter_context((self._folder / f"{words[0]}.output.log").open("a"))
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig=TERM", *map(str, words)], env=os.environ | self._slurm.environment,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        stack.callback(_end, process)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def eventually(condition: Callable[[], bool], what: str, log: Callable[[], str] = str, seconds: float = 60) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}\n{log()}"
        time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
