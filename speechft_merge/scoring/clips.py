"""Reads a user's test set: audio files, each with a label and a group, made into inputs once for many models."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from speechft_merge.errors import CheckpointError, quote
from speechft_merge.similarity.audio import read_clip
from speechft_merge.similarity.grouping import read_rows, require_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from speechft_merge.similarity.inputs import Batch, InputMaker


@dataclass(frozen=True, slots=True, order=True)
class Clip:
    """One audio file of a test set."""

    id: str
    """Its path as the test set has it."""
    path: Path
    label: str
    """Its class, or what is said."""
    group: str
    """Its speaker or recording; its own id where none is known."""


def read_table(table: Path, column: str) -> list[Clip]:
    """Read a table, `path<TAB>label` or `path<TAB>label<TAB>group` on each line, with paths from where it lies.

    A first line that names the columns, `path`, `column` and `group`, is passed over, and so are empty lines.

    Args:
        table: UTF-8 text.
        column: what the second column is called.

    Raises:
        NotFoundError: the table, or a file that it names, does not exist.
        CheckpointError: a line is not of this form, or a path occurs twice.
    """
    header = ["path", column, "group"]
    rows = read_rows(table)
    if rows and rows[0][1] == header[: len(rows[0][1])]:
        del rows[0]
    clips: dict[str, Clip] = {}
    for number, row in rows:
        if not all(row) or len(row) not in (2, 3) or len(row) != len(rows[0][1]):
            raise CheckpointError(
                f"{table}, line {number} is not path<TAB>{column}<TAB>group, where all lines or none have a group",
                found=quote("\t".join(row)),
            )
        path, label, group = (*row, row[0])[:3]
        if path in clips:
            raise CheckpointError(f"{table}, line {number}: {quote(path)} occurs twice")
        clips[path] = Clip(path, table.parent / path, label, group)
    require_files(table, clips)
    return sorted(clips.values())


def digest(clips: Iterable[Clip]) -> str:
    """Return the sha256 of a test set: ids, labels, groups and the bytes of all files."""
    total = hashlib.sha256()
    for clip in clips:
        with clip.path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(repr((clip.id, clip.label, clip.group, content)).encode("utf-8", "surrogateescape"))
    return total.hexdigest()


class Recordings:
    """Clips as a model takes them, kept in memory for the next one: 64 KB a second, 1 MB a clip where it is Whisper."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        self.clips = clips
        self._maker: InputMaker | None = None
        self._batches: list[tuple[Batch, list[int]]] = []

    def batches(self, maker: InputMaker) -> list[tuple[Batch, list[int]]]:
        """Return the clips in batches, and which ones are in each: their places in `clips`.

        Raises:
            CheckpointError: a file cannot be read, is silent or too short for the model.
        """
        if maker is not self._maker:
            audio = [read_clip(clip.path, maker.rate) for clip in self.clips]
            for clip, samples in zip(self.clips, audio, strict=True):
                if not maker.frames_of(len(samples)):
                    raise CheckpointError(f"{clip.path} is too short for one frame of the model")
            order = sorted(range(len(audio)), key=lambda place: len(audio[place]))  # the maker's own, where it sorts
            places = iter(order)
            self._batches = [
                (batch, [*itertools.islice(places, len(batch.frames or [0]))])
                for batch in maker.batches([audio[place] for place in order])
            ]
            self._maker = maker
        return self._batches
