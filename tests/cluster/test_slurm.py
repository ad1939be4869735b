"""A sweep that a Slurm of two nodes shares out is the one that a single process makes, whatever happens to its jobs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from private_slurm import Slurm, eventually

from speechft_merge.errors import TemporaryError, UsageError
from speechft_merge.sweep.jobs import Failure, Jobs, Submission
from speechft_merge.sweep.submit import submit

if TYPE_CHECKING:
    from conftest import Sweep

pytestmark = pytest.mark.slow

SWEEP = Path(__file__).parents[2] / "examples/slurm/sweep.sh"


def wait(jobs: Jobs) -> list[Failure]:
    return jobs.wait(lambda done, of: None, every=0.2)


def run_command(*words: str) -> str:
    """What a command prints."""
    done = subprocess.run(words, capture_output=True, encoding="utf-8", timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "alphas"


@pytest.fixture
def sbatch(slurm: Slurm, sweep: Sweep, folder: Path, tmp_path: Path) -> Callable[..., str]:
    """Submit the script that ships; the array's id."""

    def sbatch(*options: str) -> str:
        return slurm.sbatch(*options, SWEEP, *sweep.script_arguments(folder), cwd=tmp_path)

    return sbatch


@pytest.fixture
def send(slurm: Slurm, sweep: Sweep, folder: Path) -> Callable[..., Jobs]:
    """Submit the sweep by submitit, as the command does: the folder says first what is swept."""

    def send(*options: str, jobs: int = 4, **given: object) -> Jobs:
        run_command(*sweep.words(folder), "--task", "999/1000")
        return submit([*sweep.words(folder), *options], folder, Submission("slurm", jobs, **given))  # type: ignore[arg-type]

    return send


def first_cells(sweep: Sweep, folder: Path) -> None:
    """Wait until both nodes are at work, and all but done."""
    eventually(lambda: len(sweep.cells(folder)) >= 2, "two cells are finished")
    assert sweep.cells(folder).keys() < sweep.expected.keys()


def test_the_script_of_the_example_shares_the_sweep_out(
    sbatch: Callable[..., str], slurm: Slurm, sweep: Sweep, folder: Path
) -> None:
    job = sbatch()
    assert slurm.wait(job) == {f"{job}_{i}": "COMPLETED" for i in range(8)}
    sweep.assert_whole(folder)


def test_any_even_array_is_the_whole_sweep(
    sbatch: Callable[..., str], slurm: Slurm, sweep: Sweep, folder: Path
) -> None:
    slurm.wait(sbatch("--array=1-7:3"))
    sweep.assert_whole(folder)


def test_tasks_of_srun_within_an_array_share_its_elements(
    sbatch: Callable[..., str], slurm: Slurm, sweep: Sweep, folder: Path
) -> None:
    slurm.wait(sbatch("--array=0-1", "--nodes=2", "--ntasks=2"))
    sweep.assert_whole(folder)


def test_an_array_with_gaps_ends_as_a_usage_error(
    sbatch: Callable[..., str], slurm: Slurm, folder: Path, tmp_path: Path
) -> None:
    job = sbatch("--array=3,5")
    assert set(slurm.wait(job).values()) == {"FAILED"}
    assert "not evenly spaced" in (tmp_path / f"sweep_{job}_3.log").read_text()


def test_a_cancelled_array_goes_on_when_it_is_submitted_again(
    sbatch: Callable[..., str], slurm: Slurm, sweep: Sweep, folder: Path
) -> None:
    job = sbatch("--array=0-3")
    first_cells(sweep, folder)
    slurm("scancel", job)
    assert "CANCELLED" in slurm.wait(job).values()
    assert sweep.cells(folder).keys() < sweep.expected.keys()
    assert set(slurm.wait(sbatch("--array=0-1")).values()) == {"COMPLETED"}
    sweep.assert_whole(folder, killed=2)


def test_a_requeued_element_goes_on_with_its_share(
    sbatch: Callable[..., str], slurm: Slurm, sweep: Sweep, folder: Path
) -> None:
    job = sbatch("--array=0-1")
    first_cells(sweep, folder)
    slurm("scontrol", "requeue", f"{job}_0")
    assert set(slurm.wait(job).values()) == {"COMPLETED"}
    assert "Restarts=1" in slurm("scontrol", "show", "job", f"{job}_0")
    sweep.assert_whole(folder, killed=2)


def test_submitted_jobs_make_the_whole_sweep(
    send: Callable[..., Jobs], sweep: Sweep, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[int, int]] = []
    jobs = send(cpus=4, memory="8G", partition="both", parameters={"comment": "alphas"})
    assert jobs.wait(lambda done, of: seen.append((done, of)), every=0.2) == []
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == ((0, 4), (4, 4))
    assert capfd.readouterr() == ("", ""), "stdout is for results, and submitit logs there"
    sweep.assert_whole(folder)


@pytest.mark.parametrize("waits", [True, False])
def test_the_command_submits_itself_and_decides(waits: bool, slurm: Slurm, sweep: Sweep, folder: Path) -> None:
    words = [*sweep.words(folder), "--json"]
    out = run_command(*words, "--submit", "slurm", "--jobs", "2", "--mem", "8G", *([] if waits else ["--no-wait"]))
    if not waits:
        (array,) = {path.name.partition("_")[0] for path in (folder / "jobs").glob("*.pkl")}
        slurm.wait(array)
        out = run_command(*words[:4], "-o", str(folder), "--collect", "--json")
    assert len(json.loads(out)["cells"]) == len(sweep.expected)
    sweep.assert_whole(folder)


def test_a_single_job_is_no_array(send: Callable[..., Jobs], sweep: Sweep, folder: Path) -> None:
    assert wait(send(jobs=1)) == []
    sweep.assert_whole(folder)


def test_no_more_jobs_run_at_once_than_asked(send: Callable[..., Jobs], slurm: Slurm, folder: Path) -> None:
    jobs, running = send(parallelism=1), []
    array = jobs.id(0).partition("_")[0]
    jobs.wait(lambda done, of: running.append([*slurm.states(array).values()].count("RUNNING")), every=0.2)
    assert max(running) == 1


def test_jobs_submitted_from_within_a_job_are_not_those_of_its_variables(
    send: Callable[..., Jobs], sweep: Sweep, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = {"JOB_ID": "7", "NTASKS": "8", "PROCID": "3", "MEM_PER_CPU": "100", "MEM_PER_NODE": "100", "NNODES": "2"}
    for name, value in outer.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert wait(send(memory="8G")) == []
    sweep.assert_whole(folder)


def test_a_failure_tells_job_exit_code_and_the_end_of_its_log(
    send: Callable[..., Jobs], slurm: Slurm, folder: Path
) -> None:
    jobs = send("--alphas", "many", jobs=2)
    failures = wait(jobs)
    assert [str(failure) for failure in failures] == [f"job {jobs.id(i)} ended with exit code 2" for i in range(2)]
    assert "'many'" in "".join(failures[0].tail)
    assert set(slurm.wait(jobs.id(0).partition("_")[0]).values()) == {"FAILED"}, "Slurm's accounting has it as well"


def test_jobs_that_were_cancelled_are_told_as_such(
    send: Callable[..., Jobs], slurm: Slurm, sweep: Sweep, folder: Path
) -> None:
    jobs = send()
    first_cells(sweep, folder)
    slurm("scancel", jobs.id(0).partition("_")[0])
    failures = wait(jobs)
    assert {failure.end for failure in failures} == {"CANCELLED"}
    assert {failure.job for failure in failures} >= {jobs.id(2), jobs.id(3)}, "those that had not begun"
    assert wait(send()) == []
    sweep.assert_whole(folder, killed=2)


@pytest.mark.parametrize("warned", [False, True], ids=["requeued", "out of time"])
def test_a_submitted_job_that_is_requeued_goes_on_and_is_waited_for(
    warned: bool, send: Callable[..., Jobs], slurm: Slurm, sweep: Sweep, folder: Path
) -> None:
    jobs = send(jobs=2, minutes=5)  # submitit takes a warning within the last ten for the end of the time
    first_cells(sweep, folder)
    slurm(*(("scancel", "--signal=USR2") if warned else ("scontrol", "requeue")), jobs.id(0))
    assert wait(jobs) == []
    assert "Restarts=1" in slurm("scontrol", "show", "job", jobs.id(0))
    sweep.assert_whole(folder, killed=2)


@pytest.mark.parametrize("state", ["DRAIN", "DOWN"])
def test_a_node_that_goes_leaves_the_work_to_the_other(
    state: str, send: Callable[..., Jobs], slurm: Slurm, sweep: Sweep, folder: Path
) -> None:
    jobs = send(jobs=6)
    first_cells(sweep, folder)
    slurm("scontrol", "update", "NodeName=n2", f"State={state}", "Reason=test")
    assert wait(jobs) == []
    assert "NodeList=n1" in slurm("scontrol", "show", "job", jobs.id(5))
    sweep.assert_whole(folder, killed=2)


def test_what_slurm_refuses_is_told_in_its_words(send: Callable[..., Jobs], folder: Path) -> None:
    with pytest.raises(UsageError, match="invalid partition specified: nowhere"):
        send(partition="nowhere")
    with pytest.raises(UsageError, match="unrecognized option"):
        send(parameters={"no-such-option": "1"})


@pytest.fixture
def unreachable(slurm: Slurm, tmp_path: Path) -> str:
    """A configuration that names another port than the controller's."""
    conf = Path(slurm.environment["SLURM_CONF"]).read_text()
    (tmp_path / "slurm.conf").write_text(conf.replace("SlurmctldPort=", "MessageTimeout=1\nSlurmctldPort=1#"))
    return str(tmp_path / "slurm.conf")


def test_a_controller_that_does_not_answer_may_answer_later(
    send: Callable[..., Jobs], unreachable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", unreachable)
    with pytest.raises(TemporaryError, match="contact slurm controller"):
        send()


def test_jobs_are_waited_for_while_the_controller_does_not_answer(
    send: Callable[..., Jobs], sweep: Sweep, folder: Path, unreachable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = send(jobs=2)
    monkeypatch.setenv("SLURM_CONF", unreachable)
    assert wait(jobs) == []
    sweep.assert_whole(folder)
