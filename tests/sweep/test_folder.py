"""A sweep's folder keeps each result whole, is shared by any number of runs, and is no other sweep's."""

from __future__ import annotations

import json
import math
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from speechft_merge.errors import NotFoundError, OutputError
from speechft_merge.record.layers import LayerKey
from speechft_merge.scoring.scores import Better, Score, Unit
from speechft_merge.sweep.folder import SweepFolder
from speechft_merge.sweep.grid import Cell, lay_out
from speechft_merge.sweep.results import CellResult, LayerFigures

CELLS = lay_out([0.0, 0.5, 1.0])
DESCRIPTION = {"models": ["a", "b"], "fingerprints": ["1", "2"], "recipe": {}, "scorers": [{"kind": "command"}]}


def result(cell: Cell) -> CellResult:
    units = (Unit("a", "anna", 1.0), Unit("b", "ben", 0.0, 2.0))
    layers = (LayerFigures(LayerKey("layers", block=3), 0.9, math.nan, None),)
    return CellResult(
        cell, (Score.of("phones", Better.HIGHER, units), Score("wer", Better.LOWER, 0.1)), layers, {"x": 1.0}
    )


def test_what_is_put_comes_back(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    folder.begin(DESCRIPTION, CELLS)
    folder.put(result(CELLS[1]))
    (found,) = folder.results(CELLS)
    assert repr(found) == repr(result(CELLS[1]))  # nan is not equal to itself
    assert [folder.is_done(cell) for cell in CELLS] == [False, True, False]


def test_a_second_run_extends_the_grid_and_keeps_what_is_done(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    folder.begin(DESCRIPTION, CELLS)
    folder.put(result(CELLS[0]))
    folder.begin(DESCRIPTION | {"models": ["./a", "b"]}, lay_out([0.25]))
    assert {*folder.read()[1]} == {*CELLS, Cell(0.25)}
    assert folder.is_done(CELLS[0])


@pytest.mark.parametrize("key", ["fingerprints", "scorers"])
def test_another_sweep_is_refused_and_says_what_differs(tmp_path: Path, key: str) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    folder.begin(DESCRIPTION, CELLS)
    folder.put(result(CELLS[0]))
    with pytest.raises(OutputError, match=f"differ in {key}"):
        folder.begin(DESCRIPTION | {key: []}, CELLS)
    assert folder.is_done(CELLS[0])
    folder.begin(DESCRIPTION | {key: []}, CELLS, overwrite=True)
    assert not folder.is_done(CELLS[0])


def test_a_folder_that_is_no_sweeps_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputError, match="no sweep's folder"):
        SweepFolder(tmp_path).begin(DESCRIPTION, CELLS, overwrite=True)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"cell": 3}', json.dumps({"cell": {"alpha": 1}, "scores": []})]
)
def test_a_damaged_result_is_measured_again(tmp_path: Path, content: str) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    folder.begin(DESCRIPTION, CELLS)
    folder.put(result(CELLS[0]))
    (path,) = (tmp_path / "sweep" / "cells").iterdir()
    path.write_text(content)
    assert not folder.is_done(CELLS[0])
    assert folder.results(CELLS) == []


def test_runs_that_begin_at_once_do_not_take_each_other_for_strangers(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        for number in range(40):
            folder, barrier = SweepFolder(tmp_path / str(number)), threading.Barrier(8)

            def begin(_: int, folder: SweepFolder = folder, barrier: threading.Barrier = barrier) -> None:
                barrier.wait()
                folder.begin(DESCRIPTION, CELLS)

            assert [*pool.map(begin, range(8))] == [None] * 8


def test_a_folder_without_a_sweep_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no sweep\.json"):
        SweepFolder(tmp_path).read()


@pytest.mark.parametrize(
    "change", [{"models": 3}, {"fingerprints": None}, {"recipe": []}, {"cells": "x"}, {"schema": 9}]
)
def test_a_description_that_cannot_be_used_is_told_and_overwritten_if_asked(
    tmp_path: Path, change: dict[str, object]
) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    folder.begin(DESCRIPTION, CELLS)
    path = tmp_path / "sweep/sweep.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(OutputError, match=r"sweep\.json"):
        folder.read()
    folder.begin(DESCRIPTION, CELLS, overwrite=True)
    assert folder.read()[1] == CELLS


def test_what_another_sweep_put_here_or_another_cell_is_does_not_count(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    folder.begin(DESCRIPTION, CELLS)
    running = SweepFolder(tmp_path / "sweep")
    running.begin(DESCRIPTION | {"scorers": []}, CELLS, overwrite=True)
    folder.put(result(CELLS[0]))  # of the sweep that was overwritten, and still runs
    assert not running.is_done(CELLS[0])
    running.put(result(CELLS[1]))
    shutil.copy(running._path(CELLS[1]), running._path(CELLS[2]))
    assert [one.cell for one in running.results(CELLS)] == [CELLS[1]]
    assert not running.is_done(CELLS[2])
