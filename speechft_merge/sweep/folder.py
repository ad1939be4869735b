"""Keeps a sweep in a folder: what is swept, and a file for each finished cell, so that any number of runs share it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from speechft_merge.checkpoints.json_text import read_json
from speechft_merge.errors import NotFoundError, OutputError, SpeechFTMergeError, quote
from speechft_merge.output.folder import explained, write_whole
from speechft_merge.sources.nearby import nearest
from speechft_merge.sweep.grid import Cell, in_order
from speechft_merge.sweep.results import CellResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

NAME, CELLS = "sweep.json", "cells"
_MADE = (NAME, CELLS, "jobs")
SCHEMA = 1
"""Version of `sweep.json`."""
_KINDS = {"models": list, "fingerprints": list, "recipe": dict}
"""What it has in any case."""
_MAY_DIFFER = frozenset({"cells", "models"})
"""What two runs of one sweep may say differently: a grid is extended, a model called by another name."""


class SweepFolder:
    """The folder of one sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digest = ""
        """Of what is swept: that of results which are this sweep's."""

    def begin(self, description: dict[str, Any], cells: Sequence[Cell], overwrite: bool = False) -> None:
        """Say what is swept here; cells of an earlier run of the same sweep stay, and count.

        Args:
            description: all that decides about the figures, for JSON; `models` is what they are called.
            cells: of the grid.
            overwrite: whether another sweep's results may be removed, and cells that are not of this grid forgotten.

        Raises:
            OutputError: the folder holds another sweep, or something else; or it cannot be written.
        """
        described = json.loads(json.dumps({"schema": SCHEMA} | description))  # as it will be read
        if not (self.path / NAME).exists() and self.path.exists() and not self._is_new():
            raise OutputError(f"{self.path} exists and is no sweep's folder", hint="choose another folder (-o)")
        self._digest = _digest(described)
        with explained(self.path):
            (self.path / CELLS).mkdir(parents=True, exist_ok=True)
        with self._locked():
            if (self.path / NAME).exists() and not overwrite:
                cells = [*self._like(described), *cells]
            elif overwrite:
                self._remove_others(self._digest)
            document = described | {"cells": [cell.to_json() for cell in in_order(cells)]}
            write_whole(self.path / NAME, (json.dumps(document, indent=2) + "\n").encode())

    def _like(self, described: dict[str, Any]) -> tuple[Cell, ...]:
        """Return the cells of an earlier run, after checking that it was of the same sweep."""
        known, cells = self.read()
        differing = sorted(
            key for key in (known.keys() | described.keys()) - _MAY_DIFFER if known.get(key) != described.get(key)
        )
        if differing:
            raise OutputError(
                f"{self.path} holds another sweep: they differ in {', '.join(differing)}",
                hint="choose another folder (-o), or pass --overwrite to remove its results",
            )
        return cells

    def _remove_others(self, digest: str) -> None:
        """Remove the results of another sweep; what one that still runs puts here later does not count."""
        for path in (self.path / CELLS).iterdir():
            with suppress(OSError):
                if path.is_file() and _read(path).get("sweep") != digest:
                    path.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one run at a time extend the grid, where the file system has locks."""
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _is_new(self) -> bool:
        """Return whether there is nothing yet but what another run that begins has made."""
        if not self.path.is_dir():
            return False
        return all(path.name.startswith(".") or path.name in _MADE for path in self.path.iterdir())

    def read(self) -> tuple[dict[str, Any], tuple[Cell, ...]]:
        """Return what is swept here, and the cells.

        Raises:
            NotFoundError: no sweep began here.
            OutputError: its description cannot be used.
        """
        if not (self.path / NAME).is_file():
            raise NotFoundError(
                f"{self.path} holds no {NAME}",
                found=nearest(str(self.path)),
                hint="run the sweep with -o, then collect from there",
            )
        try:
            document = read_json(self.path / NAME)
            cells = tuple(map(Cell.from_json, document.pop("cells")))
            for key, kind in _KINDS.items():
                if not isinstance(document[key], kind):
                    raise TypeError(f"{key} is {quote(document[key])}")
        except (SpeechFTMergeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise OutputError(f"{self.path / NAME} cannot be used: {error}", hint="pass --overwrite") from error
        if document.get("schema") != SCHEMA:
            raise OutputError(f"{self.path / NAME} is of schema {quote(document.get('schema'))}, {SCHEMA} is read")
        self._digest = _digest(document)
        return document, cells

    def is_done(self, cell: Cell) -> bool:
        """Return whether a cell has a result."""
        return self._load(cell) is not None

    def put(self, result: CellResult) -> None:
        """Keep the result of a cell: whole, or not at all.

        Raises:
            OutputError, WriteError: the folder cannot be written.
        """
        content = {"sweep": self._digest} | result.to_json()
        write_whole(self._path(result.cell), (json.dumps(content) + "\n").encode())

    def results(self, cells: Iterable[Cell]) -> list[CellResult]:
        """Return the results of those cells that have one, in their order."""
        return [result for cell in cells if (result := self._load(cell)) is not None]

    def _path(self, cell: Cell) -> Path:
        return self.path / CELLS / f"{cell.key}.json"

    def _load(self, cell: Cell) -> CellResult | None:
        """Return a cell's result; None where there is none that can be used: it is measured again."""
        if not self._digest:
            self.read()
        try:
            content = _read(self._path(cell))
            result = CellResult.from_json(content)
            return result if (content.get("sweep"), result.cell) == (self._digest, cell) else None
        except (OSError, RecursionError, KeyError, TypeError, ValueError, AttributeError):
            return None


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a result; a million utterances are more than `read_json` allows."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = {}
    return content if isinstance(content, dict) else {}


def _digest(description: dict[str, Any]) -> str:
    """Return a digest of what decides about the figures."""
    decisive = {key: value for key, value in description.items() if key not in _MAY_DIFFER}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
