"""The two commands of a first-time user, tried with stand-ins for Python, pip and apt-get that only say what ran."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ["examples/start.sh", "tests/run.sh"]
TOOLS = "cat cksum cp dirname env grep mkdir rm sh".split()

STAND_IN = """#!/bin/sh
called="$0 $*"
case "$called" in *flock*) exec "$PYTHON3" "$@" ;; esac
printf '%s\\n' "${0##*/} $*" >>"$LOG"
IFS='|'
for pattern in $FAILING; do case "$called" in *"$pattern"*) exit 1 ;; esac; done
case "$called" in
  *" --version") echo Python 3.9.2 ;;
  *print*) echo python3.9-venv ;;
  *"-m venv"*) mkdir -p .venv/bin; for name in python pip speechft-merge; do cp "$0" ".venv/bin/$name"; done ;;
  */id*) echo "${ID:-0}" ;;
esac
"""

NO_TORCH = "import sys, torch"
NO_TORCH_YET = ".venv/bin/python -c import torch"
NO_VENV = "import ensurepip"
OLD = "version_info <"


class Machine:
    """A clone of the repository in a folder with a space, and the programs that the machine has."""

    def __init__(self, folder: Path) -> None:
        self.clone, self.programs, self.log = folder / "a clone", folder / "bin", folder / "log"
        for name in [*SCRIPTS, "examples/environment.sh", "pyproject.toml"]:
            (self.clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.clone / name)
        self.programs.mkdir()
        self.log.touch()
        for name in TOOLS:
            (self.programs / name).symlink_to(str(shutil.which(name)))
        self.add("python3", "id")

    def add(self, *names: str) -> None:
        for name in names:
            (self.programs / name).write_text(STAND_IN)
            (self.programs / name).chmod(0o755)

    def run(self, script: str, *failing: str, arguments: str = "", **environment: str) -> tuple[int, list[str], str]:
        """Call a script from elsewhere.

        Returns:
            The exit code; in order, what was told and which programs were called; what was said on stderr.
        """
        before = len(self.log.read_text())
        failing = (*failing, NO_TORCH_YET) if NO_TORCH in failing else failing
        environment |= {"PATH": str(self.programs), "LOG": str(self.log), "PYTHON3": sys.executable}
        environment["FAILING"] = "|".join(failing)
        with self.log.open("a") as told:
            done = subprocess.run(
                ["sh", str(self.clone / script), *arguments.split()],
                env=environment, cwd="/", stdout=told, stderr=subprocess.PIPE, text=True, check=False,
            )  # fmt: skip
        return done.returncode, self.log.read_text()[before:].splitlines(), done.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def steps(lines: list[str]) -> list[str]:
    """What changes something, of what was called."""
    changing = ("-m venv", "pip install", "apt-get -qq install", "--alpha", "-m pytest")
    return [line for line in lines if any(words in line for words in changing) and not line.startswith("---")]


@pytest.mark.parametrize("shell", ["sh", "bash", "dash"])
@pytest.mark.parametrize("script", [*SCRIPTS, "examples/environment.sh"])
def test_any_shell_reads_the_scripts(shell: str, script: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    assert subprocess.run([shell, "-n", str(ROOT / script)], capture_output=True, check=True).stderr == b""


@pytest.mark.parametrize(
    ("script", "extra", "last"), [(SCRIPTS[0], "cka", "speechft-merge"), (SCRIPTS[1], "test", "python -m pytest")]
)
def test_each_step_is_told_before_it_is_done(script: str, extra: str, last: str, machine: Machine) -> None:
    code, lines, err = machine.run(script, NO_TORCH)
    assert (code, err) == (0, "")
    venv, torch, package, job = steps(lines)
    assert venv == "python3 -m venv .venv"
    assert "torch==2.13.0 --index-url" in torch
    assert package == f"pip install -q -e .[{extra}]"
    assert job.startswith(last)
    told = [n for n, line in enumerate(lines) if line.startswith("--- ") and not line.endswith("complete")]
    done = [lines.index(step) for step in (venv, torch, package, job)]
    assert all(before < step for before, step in zip(told, done, strict=False))
    assert all(step < after for step, after in zip(done, told[1:], strict=False))


def test_a_second_run_goes_straight_to_the_work(machine: Machine) -> None:
    machine.run(SCRIPTS[0])
    machine.run(SCRIPTS[1])
    for script in SCRIPTS:
        code, lines, _ = machine.run(script)
        assert (code, len(steps(lines))) == (0, 1)
        assert lines[1] == "--- the environment .venv is complete"


def test_a_change_of_the_requirements_is_installed(machine: Machine) -> None:
    machine.run(SCRIPTS[0])
    with (machine.clone / "pyproject.toml").open("a") as requirements:
        requirements.write("# another\n")
    assert [step.split()[0] for step in steps(machine.run(SCRIPTS[0])[1])] == ["pip", "speechft-merge"]


def test_arguments_select_tests(machine: Machine) -> None:
    assert steps(machine.run(SCRIPTS[1], arguments="-x tests/cli")[1])[-1] == "python -m pytest -q -n 2 -x tests/cli"


@pytest.mark.parametrize("cut", ["-m venv", "torch==", "install -q -e"])
def test_an_environment_that_was_cut_short_is_made_anew(cut: str, machine: Machine) -> None:
    assert machine.run(SCRIPTS[0], NO_TORCH, cut)[0] != 0
    code, lines, _ = machine.run(SCRIPTS[0], NO_TORCH)
    assert (code, steps(lines)[0]) == (0, "python3 -m venv .venv")


def test_two_runs_at_once_make_one_environment(machine: Machine) -> None:
    """The second waits for the first, and then for nothing."""
    with ThreadPoolExecutor() as threads, (machine.clone / "pyproject.toml").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        runs = [threads.submit(machine.run, SCRIPTS[0]) for _ in range(2)]
        while machine.log.read_text().count("waiting for another run") < 2:
            assert not any(run.done() for run in runs)
            time.sleep(0.01)
        fcntl.flock(held, fcntl.LOCK_UN)
    assert [run.result()[0] for run in runs] == [0, 0]
    assert machine.log.read_text().splitlines().count("python3 -m venv --system-site-packages .venv") == 1


def test_an_environment_of_the_users_own_is_never_removed(machine: Machine) -> None:
    binaries = machine.clone / ".venv/bin"
    binaries.mkdir(parents=True)
    for name in ("python", "pip", "speechft-merge"):
        shutil.copy(machine.programs / "python3", binaries / name)
    (machine.clone / ".venv/own").write_text("")
    for failing in ("install -q -e", "-m pip --version", "nothing"):
        code, lines, _ = machine.run(SCRIPTS[0], failing)
        assert not any("-m venv" in step for step in steps(lines))
        assert (machine.clone / ".venv/own").exists()
    assert code == 0


def test_no_index_of_pytorch_means_pypi(machine: Machine) -> None:
    code, lines, _ = machine.run(SCRIPTS[0], NO_TORCH, "--index-url")
    assert (code, steps(lines)[2]) == (0, "pip install -q torch==2.13.0")


def test_a_gpu_gets_the_torch_for_it(machine: Machine) -> None:
    machine.add("nvidia-smi")
    assert steps(machine.run(SCRIPTS[0], NO_TORCH)[1])[1] == "pip install -q torch>=2.10"


def test_the_torch_of_a_gpu_machine_is_used(machine: Machine) -> None:
    made, package, _ = steps(machine.run(SCRIPTS[0])[1])
    assert (made, package) == ("python3 -m venv --system-site-packages .venv", "pip install -q -e .[cka]")


def test_an_old_python_is_refused_in_one_line(machine: Machine) -> None:
    code, lines, err = machine.run(SCRIPTS[0], OLD)
    assert (code, steps(lines)) == (1, [])
    assert err.startswith("error: python3 is Python 3.9.2, and Python 3.11 or newer is needed:")
    assert err.count("\n") == 1


def test_a_newer_python_beside_an_old_one_is_found(machine: Machine) -> None:
    machine.add("python3.12")
    assert steps(machine.run(SCRIPTS[0], "python3 -c import sys; sys.exit")[1])[0].startswith("python3.12 -m venv")


def test_no_python_is_said(machine: Machine) -> None:
    (machine.programs / "python3").unlink()
    code, _, err = machine.run(SCRIPTS[0])
    assert (code, err.partition(",")[0]) == (1, "error: python3 is missing")


def test_no_venv_and_no_apt_is_said_in_one_line(machine: Machine) -> None:
    code, lines, err = machine.run(SCRIPTS[0], NO_VENV)
    assert (code, steps(lines)) == (1, [])
    assert "(in Debian the package python3.9-venv)" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("user", ["0", "1000"])
def test_apt_installs_venv(user: str, machine: Machine) -> None:
    machine.add("apt-get", "sudo")
    code, lines, _ = machine.run(SCRIPTS[0], NO_VENV, ID=user)
    called = {"0": "apt-get", "1000": "sudo env DEBIAN_FRONTEND=noninteractive apt-get"}[user]
    assert (code, f"{called} -qq install -y python3.9-venv" in lines) == (0, True)


def test_neither_root_nor_sudo_is_said(machine: Machine) -> None:
    machine.add("apt-get")
    code, lines, err = machine.run(SCRIPTS[0], NO_VENV, ID="1000")
    assert (code, steps(lines)) == (1, [])
    assert "install them" in err
