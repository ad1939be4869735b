"""`sweep` on the command line: what is measured, decided, written, and with which exit code it ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from speechft_merge.similarity.probe import BUILT_IN

if TYPE_CHECKING:
    from conftest import Ran, Run

PAIR = Path(__file__).parents[2] / "examples/pair"
MODELS = [str(PAIR / "base"), str(PAIR / "finetuned")]
SIZE = "size=du -sb {model} | cut -f1"
GRID = ["--alphas", "0,0.5,1", "--no-cka", "--score", SIZE, "-o", "out"]
CELLS = 3


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / "out/cells").iterdir())]


@pytest.fixture
def swept(run: Run) -> Ran:
    """A sweep by the size of the files, which is the same in every cell."""
    ran = run("sweep", *MODELS, *GRID, "--maximize", "size", "--json")
    assert ran.code == 0, ran.err
    return ran


@pytest.fixture
def languages(tmp_path: Path) -> Path:
    """The built-in probe as a task: which language."""
    for path in BUILT_IN.glob("*.flac"):
        language, speaker, _ = path.stem.split("-")
        group = speaker if language in ("en", "ru") else path.stem
        target = tmp_path / "languages" / language / group / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return tmp_path / "languages"


def test_the_document_has_every_cell_the_decision_and_the_folder(swept: Ran, tmp_path: Path) -> None:
    document = json.loads(swept.out)
    assert [cell["alpha"] for cell in document["cells"]] == [0.0, 0.5, 1.0]
    assert document["decision"]["goal"] == "size"
    assert document["folder"] == str(tmp_path / "out")
    assert document == json.loads((tmp_path / "out/report.json").read_text()) | {
        key: document[key] for key in ("folder", "output", "pushed")
    }


def test_a_probe_task_decides_and_the_table_fits_a_terminal(languages: Path, run: Run, tmp_path: Path) -> None:
    ran = run(
        "sweep", *MODELS, "--alphas", "0,0.25,1", "--tilts", "-0.5,0.5", "--probe-task", f"language={languages}",
        "--probe-seconds", "15", "--maximize", "language", "--gate", "language.last>=base-1", "-o", "out",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    table = ran.out.partition("* the pick")[0].splitlines()
    assert max(map(len, table)) <= 80
    assert ran.out.count("language, higher is better") == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "sweep.json", "cells", "cells.jsonl", "report.json", "report.csv", "report.png", "report.svg", "report.html",
    }  # fmt: skip
    assert "alphas above 1, which the tilts of 2 cells ask for, are clipped" in ran.err


def test_no_cell_that_meets_the_gates_is_exit_code_3_after_the_report(swept: Ran, run: Run, tmp_path: Path) -> None:
    ran = run("sweep", "--collect", "-o", "out", "--maximize", "size", "--gate", "size>=base+1e9")
    assert ran.code == 3
    assert "no cell of" in ran.err
    assert "None of the 3 cells meets the gates" in ran.out
    assert json.loads((tmp_path / "out/report.json").read_text())["decision"]["pick"] is None


def test_shares_decide_nothing_and_collect_says_what_is_missing(run: Run, tmp_path: Path) -> None:
    ran = run("sweep", *MODELS, *GRID, "--task", "0/2")
    assert (ran.code, len(lines_of(tmp_path))) == (0, 2)
    assert "task 0/2: 2 of 2 cells measured" in ran.out
    assert not (tmp_path / "out/report.json").exists()
    ran = run("sweep", "--collect", "-o", "out", "--maximize", "size", "--merge-best", "best")
    assert ran.code == 75
    assert "1 of 3 cells" in ran.err
    assert not (tmp_path / "best").exists()
    assert run("sweep", *MODELS, *GRID, "--task", "1/2").code == 0
    ran = run("sweep", "--collect", "-o", "out", "--maximize", "size", "--merge-best", "best", "-q")
    assert (ran.code, ran.out.strip()) == (0, str(tmp_path / "best"))


def test_the_share_is_taken_from_the_environment(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ID": "5", "MIN": "4", "MAX": "6", "COUNT": "3"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert run("sweep", *MODELS, *GRID, "--task", "auto").code == 0
    assert [line["cell"]["alpha"] for line in lines_of(tmp_path)] == [0.5]


@pytest.mark.slow
def test_submitted_to_this_machine_it_ends_as_a_serial_run(run: Run, spawn: Run, tmp_path: Path) -> None:
    serial = tmp_path / "serial"
    serial.mkdir()
    assert run("sweep", *MODELS, *GRID, "--maximize", "size", cwd=serial).code == 0
    ran = spawn("sweep", *MODELS, *GRID, "--maximize", "size", "--submit", "local", "--jobs", "2", "--json")
    assert ran.code == 0, ran.err
    assert [line["scores"] for line in lines_of(tmp_path)] == [line["scores"] for line in lines_of(serial)]
    assert json.loads(ran.out)["missing"] == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--maximize", "wer"], "no score is called 'wer'"),
        (["--gate", "phones>=base"], "no score is called 'phones'"),
        (["--gate", "size"], "is not a gate"),
        (["--maximize", "size", "--minimize", "size"], "name one score each"),
        (["--merge-best", "best"], "nothing to go by"),
        (["--maximize", "size", "--push-to-hub", "a/b"], "nothing to push"),
        (["--probe-seconds", "3"], "has no effect with --no-cka"),
        (["--jobs", "3"], "has no effect without --submit"),
        (["--submit", "lsf"], "submit 'lsf' is unknown"),
        (["--task", "3/2"], "is not a share"),
        (["--task", "0/2", "--collect"], "pass one of them"),
        (["--collect"], "has no effect with --collect"),
        (["--score", SIZE], "two scores are called size"),
        (["--score", "cka_base=echo {model}"], "what every sweep measures"),
    ],
)
def test_a_wrong_word_is_a_usage_error_before_anything_is_measured(
    words: list[str], told: str, run: Run, tmp_path: Path
) -> None:
    ran = run("sweep", *MODELS, *GRID, *words)
    assert ran.code == 2
    assert told in " ".join(ran.err.split())
    assert not (tmp_path / "out/cells").exists() or lines_of(tmp_path) == []


def test_the_wrong_direction_of_a_probe_is_told_before_anything_is_measured(
    languages: Path, run: Run, tmp_path: Path
) -> None:
    ran = run("sweep", *MODELS, "--probe-task", f"language={languages}", "--minimize", "language", "-o", "out")
    assert ran.code == 2
    assert "higher is better" in ran.err
    assert not (tmp_path / "out").exists()


def test_nothing_to_measure_is_a_usage_error(run: Run) -> None:
    ran = run("sweep", *MODELS, "--no-cka", "-o", "out")
    assert ran.code == 2
    assert "nothing to measure" in ran.err


def test_the_wrong_direction_is_told_and_what_was_measured_stays(run: Run, tmp_path: Path) -> None:
    ran = run("sweep", *MODELS, *GRID, "--minimize", "size")
    assert ran.code == 2
    assert "higher is better" in ran.err
    assert len(lines_of(tmp_path)) == CELLS


def test_another_sweep_in_the_folder_is_refused_without_overwrite(swept: Ran, run: Run, tmp_path: Path) -> None:
    other = [word.replace("size=", "bytes=") for word in GRID]
    ran = run("sweep", *MODELS, *other)
    assert ran.code == 73
    assert "they differ in scorers" in ran.err
    assert run("sweep", *MODELS, *other, "--overwrite").code == 0
    assert {line["scores"][0]["name"] for line in lines_of(tmp_path)} == {"bytes"}
