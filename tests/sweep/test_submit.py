"""Jobs on this machine: some at a time, with logs, ended together; and what can be told before any is submitted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speechft_merge.errors import UsageError
from speechft_merge.sweep.jobs import Submission, parse_minutes
from speechft_merge.sweep.submit import submit

TELL = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
RECORD = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[1])
mine = folder / sys.argv[-1].replace("/", "of")
mine.touch()
(folder / (mine.name + ".seen")).write_text(str(len([*folder.glob("*of[0-9]")])))
time.sleep(0.3)
mine.unlink()
"""
SLEEP = """
import signal, sys, time
from pathlib import Path
def end(number, _):
    Path(sys.argv[1], sys.argv[-1].replace("/", "of")).write_text("ended")
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(60)
"""


def python(code: str, *words: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, words)]


def wait(words: list[str], folder: Path, **given: object) -> list[str]:
    jobs = submit(words, folder, Submission("local", **given))  # type: ignore[arg-type]
    return [str(failure) for failure in jobs.wait(lambda done, of: None, every=0.02)]


def test_each_job_is_told_its_share_and_has_a_log(tmp_path: Path) -> None:
    assert wait(python(TELL, "-x"), tmp_path, jobs=3) == []
    told = [json.loads(path.read_text())[0] for path in sorted((tmp_path / "jobs").iterdir())]
    assert told == [["-x", "--task", f"{i}/3"] for i in range(3)]


@pytest.mark.parametrize("most", [1, 2])
def test_no_more_processes_run_at_once_than_asked(most: int, tmp_path: Path) -> None:
    assert wait(python(RECORD, tmp_path), tmp_path, jobs=4, parallelism=most) == []
    seen = [int(path.read_text()) for path in tmp_path.glob("*.seen")]
    assert len(seen) == 4
    assert max(seen) == most


def test_a_failure_has_the_exit_code_and_the_end_of_the_log(tmp_path: Path) -> None:
    code = "import sys; print(*range(99), sep='\\n'); sys.exit('no such model' if sys.argv[-1] == '1/3' else 0)"
    jobs = submit(python(code), tmp_path, Submission("local", 3))
    (failure,) = jobs.wait(lambda done, of: None, every=0.02)
    assert str(failure) == f"job {jobs.id(1)} ended with exit code 1"
    assert (len(failure.tail), failure.tail[-2:]) == (10, ["98", "no such model"])
    assert failure.log.read_text().startswith("0\n")


def test_a_killed_job_has_the_exit_code_that_a_shell_would_give(tmp_path: Path) -> None:
    code = "import os; os.kill(os.getpid(), 9)"
    (told,) = wait(python(code), tmp_path, jobs=1)
    assert told.endswith("ended with exit code 137")


def test_progress_counts_the_jobs_that_have_ended(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    jobs = submit(python("pass"), tmp_path, Submission("local", 3, parallelism=1))
    jobs.wait(lambda done, of: seen.append((done, of)), every=0.02)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == ((0, 3), (3, 3))


def test_the_processes_end_with_whoever_waits_for_them(tmp_path: Path) -> None:
    waiting = f"""
import sys, signal
from pathlib import Path
from speechft_merge.sweep.jobs import Submission
from speechft_merge.sweep.submit import submit
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
jobs = submit({python(SLEEP, tmp_path)!r}, Path({str(tmp_path)!r}), Submission("local", 3, parallelism=2))
jobs.wait(lambda *_: None)
"""
    process = subprocess.Popen([sys.executable, "-c", waiting])
    logs = [tmp_path / f"jobs/local_{i}.log" for i in range(3)]
    while not all(log.exists() and log.read_text() == "ready\n" for log in logs[:2]):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert {path.name for path in tmp_path.glob("*of*")} == {"0of3", "1of3"}
    assert not logs[2].exists()


def variables(tmp_path: Path, name: str, **given: object) -> list[str | None]:
    assert wait(python(TELL), tmp_path, **given) == []
    return [json.loads(path.read_text())[1].get(name) for path in sorted((tmp_path / "jobs").iterdir())]


def test_processes_that_run_at_once_have_gpus_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert variables(tmp_path / "1", "CUDA_VISIBLE_DEVICES", jobs=2, gpus=2) == ["0,1", "2,3"]
    assert variables(tmp_path / "2", "CUDA_VISIBLE_DEVICES", jobs=2, gpus=1, parallelism=1) == ["0", "0"]
    assert variables(tmp_path / "3", "CUDA_VISIBLE_DEVICES", jobs=1) == [None]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert variables(tmp_path / "4", "CUDA_VISIBLE_DEVICES", jobs=2, gpus=1) == ["5", "7"]
    with pytest.raises(UsageError, match=r"3 jobs at once need 3 GPUs.*5,7"):
        submit(python(TELL), tmp_path, Submission("local", 3, gpus=1))


def test_a_process_computes_with_as_many_threads_as_it_is_given_cpus(tmp_path: Path) -> None:
    assert variables(tmp_path, "OMP_NUM_THREADS", jobs=1, cpus=3) == ["3"]


@pytest.mark.parametrize(("jobs", "most"), [(0, None), (-1, None), (2, 0)])
def test_a_number_of_jobs_that_makes_no_sense_is_refused(jobs: int, most: int | None) -> None:
    with pytest.raises(UsageError, match="one job or more"):
        Submission("local", jobs, most)


def test_without_slurm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"no Slurm on this machine.*--submit local"):
        submit(["true"], tmp_path, Submission("slurm", 2))


def test_without_submitit_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match=r"submitit is not installed.*pip install submitit.*\.\[slurm\]"):
        submit(["true"], tmp_path, Submission("slurm", 2))


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("90:00", 90),
        ("0:30", 1),
        ("1:30:00", 90),
        ("01:30:01", 91),
        ("2-0", 2880),
        ("2-12", 3600),
        ("1-1:1", 1501),
        ("1-01:01:01", 1502),
    ],
)
def test_a_time_is_read_as_sbatch_reads_it(text: str, minutes: int) -> None:
    assert parse_minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "0", "0:00:00", "1h", "-5", "1:2:3:4", "1.5", "infinite", "1-"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"no.* time"):
        parse_minutes(text)
