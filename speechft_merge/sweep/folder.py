"""Keeps a sweep in a folder: what is swept, and a file for each finished cell, so that any number of runs share it."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from speechft_merge.checkpoints.json_text import read_json
from speechft_merge.errors import NotFoundError, OutputError, SpeechFTMergeError, quote
from speechft_merge.output.folder import write_whole
from speechft_merge.sweep.grid import Cell
from speechft_merge.sweep.results import CellResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

NAME, CELLS = "sweep.json", "cells"
SCHEMA = 1
"""Version of `sweep.json`."""
_LIKE = frozenset({"cells", "models"})
"""What two runs of one sweep may say differently: a grid is extended, a model called by another name."""


class SweepFolder:
    """The folder of one sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, description: dict[str, Any], cells: Sequence[Cell], overwrite: bool = False) -> None:
        """Say what is swept here; cells of an earlier run of the same sweep stay, and count.

        Args:
            description: all that decides about the figures, for JSON; `models` is what they are called.
            cells: of the grid.
            overwrite: whether another sweep's results may be removed.

        Raises:
            OutputError: the folder holds another sweep, or something else; or it cannot be written.
        """
        described = json.loads(json.dumps({"schema": SCHEMA} | description))  # as it will be read
        if (self.path / NAME).exists():
            known, earlier = self.read()
            differing = sorted(
                key for key in (known.keys() | described.keys()) - _LIKE if known.get(key) != described.get(key)
            )
            if not differing:
                cells = [*dict.fromkeys([*earlier, *cells])]
            elif overwrite:
                shutil.rmtree(self.path / CELLS, ignore_errors=True)
            else:
                raise OutputError(
                    f"{self.path} holds another sweep: they differ in {', '.join(differing)}",
                    hint="choose another folder (-o), or pass --overwrite to remove its results",
                )
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise OutputError(f"{self.path} exists and is no sweep's folder", hint="choose another folder (-o)")
        document = described | {"cells": [cell.to_json() for cell in cells]}
        (self.path / CELLS).mkdir(parents=True, exist_ok=True)
        write_whole(self.path / NAME, (json.dumps(document, indent=2) + "\n").encode())

    def read(self) -> tuple[dict[str, Any], tuple[Cell, ...]]:
        """Return what is swept here, and the cells.

        Raises:
            NotFoundError: no sweep began here.
            OutputError: its description cannot be used.
        """
        if not (self.path / NAME).is_file():
            raise NotFoundError(f"{self.path} holds no {NAME}", hint="run the sweep with -o, then collect from there")
        try:
            document = read_json(self.path / NAME)
            cells = tuple(map(Cell.from_json, document.pop("cells")))
        except (SpeechFTMergeError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(f"{self.path / NAME} cannot be used: {error}", hint="pass --overwrite") from error
        if document.get("schema") != SCHEMA:
            raise OutputError(f"{self.path / NAME} is of schema {quote(document.get('schema'))}, {SCHEMA} is read")
        return document, cells

    def is_done(self, cell: Cell) -> bool:
        """Return whether a cell has a result."""
        return self._load(cell) is not None

    def put(self, result: CellResult) -> None:
        """Keep the result of a cell: whole, or not at all.

        Raises:
            OutputError, WriteError: the folder cannot be written.
        """
        write_whole(self._path(result.cell), (json.dumps(result.to_json()) + "\n").encode())

    def results(self, cells: Iterable[Cell]) -> list[CellResult]:
        """Return the results of those cells that have one, in their order."""
        return [result for cell in cells if (result := self._load(cell)) is not None]

    def _path(self, cell: Cell) -> Path:
        return self.path / CELLS / f"{cell.key}.json"

    def _load(self, cell: Cell) -> CellResult | None:
        """Return a cell's result; None where there is none that can be used: it is measured again."""
        try:
            return CellResult.from_json(read_json(self._path(cell)))
        except (SpeechFTMergeError, KeyError, TypeError, ValueError, AttributeError):
            return None
