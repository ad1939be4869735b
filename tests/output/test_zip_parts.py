"""The parts of a zip are as zipfile and torch read them, beyond 4 GiB too."""

from __future__ import annotations

import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import pytest
import torch

from speechft_merge.output.zip_parts import Entry, end_of_directory

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = b"3 is a number"


def write(path: Path, sizes: dict[str, int]) -> list[Entry]:
    """A zip of records that begin with some content, the rest of each a hole."""
    entries: list[Entry] = []
    with path.open("wb") as file:
        for name, size in sizes.items():
            entry = Entry(name, size, zlib.crc32(CONTENT), file.tell())
            file.write(entry.header())
            assert file.tell() % 64 == 0
            file.write(CONTENT)
            file.seek(size - len(CONTENT), 1)
            entries.append(entry)
        start, directory = file.tell(), b"".join(entry.entry() for entry in entries)
        file.write(directory + end_of_directory(len(entries), start, len(directory)))
    return entries


@pytest.mark.parametrize("size", [len(CONTENT), 0xFFFFFFFE, 0xFFFFFFFF, 5 << 30])
def test_records_of_any_size_are_found(size: int, tmp_path: Path) -> None:
    names = {"a/version": len(CONTENT), "a/data.pkl": len(CONTENT), "a/data/0": size, "a/data/ä": len(CONTENT)}
    entries = write(tmp_path / "x", names)
    with zipfile.ZipFile(tmp_path / "x") as archive:
        found = [(e.filename, e.file_size, e.compress_size, e.header_offset, e.CRC) for e in archive.infolist()]
        assert found == [(e.name, e.size, e.size, e.start, e.crc) for e in entries]
        with archive.open("a/data/0") as record:
            assert record.read(len(CONTENT)) == CONTENT
        assert archive.read("a/data/ä") == CONTENT
    reader: Any = torch._C.PyTorchFileReader(str(tmp_path / "x"))
    assert reader.get_record("data.pkl") == CONTENT
    assert reader.get_record_offset("data/0") == entries[2].start + len(entries[2].header())


def test_more_records_than_two_bytes_count_are_found(tmp_path: Path) -> None:
    entries = write(tmp_path / "x", {f"a/{i}": len(CONTENT) for i in range(70_000)})
    with zipfile.ZipFile(tmp_path / "x") as archive:
        assert archive.namelist() == [entry.name for entry in entries]
        assert archive.read("a/69999") == CONTENT
