"""Xet on loopback: the file-system store that hf_xet has for its own tests, behind `local://` addresses."""

from __future__ import annotations

import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .blobs import Blobs

# A shard begins with a header of one record's size. After it comes for each file: a record (hash, flags, n), n records
# of segments, as many of verification if the first flag is set, and one with the SHA-256 if the second is.
RECORD = 48
FILE = struct.Struct("<32sII8x")
SEGMENT = struct.Struct("<36xI8x")
VERIFIED, DESCRIBED = 1 << 31, 1 << 30
END_OF_FILES = b"\xff" * 32


class Stored(NamedTuple):
    """A file in the store."""

    sha256: str
    xet_hash: str
    size: int


class Cas:
    """The store that clients write to; they name a commit's files by their SHA-256 only."""

    def __init__(self, folder: Path, blobs: Blobs) -> None:
        self.url = f"local://{folder}"
        self._xorbs = folder / "xet" / "xorbs"
        self._blobs = blobs

    def take_in(self, sha256: str) -> str | None:
        """Copy an uploaded file to the blobs; its Xet hash, None if it has not been uploaded here."""
        for stored in self._files():
            if stored.sha256 == sha256:
                if sha256 not in self._blobs:
                    self._assemble(stored)
                return stored.xet_hash
        return None

    def _files(self) -> Iterator[Stored]:
        for shard in self._xorbs.glob("shards/*.mdb"):
            yield from _files_of(shard.read_bytes())

    def _assemble(self, stored: Stored) -> None:
        """Through a copy of the index, as the client holds the lock of the original."""
        import hf_xet  # type: ignore[import-untyped]

        with tempfile.TemporaryDirectory() as folder:
            view = Path(folder, "xet", "xorbs")
            view.mkdir(parents=True)
            for part in ("xorbs", "shards"):
                (view / part).symlink_to(self._xorbs / part)
            shutil.copy(self._xorbs / "global_dedup_lookup.redb", view)
            partial = Path(folder, "assembled")
            info = hf_xet.XetFileInfo(stored.xet_hash, stored.size)
            with (
                hf_xet.XetSession().new_download_stream_group(endpoint=f"local://{folder}") as group,
                partial.open("wb") as file,
            ):
                file.writelines(group.download_stream(info, 0, stored.size))
            shutil.move(partial, self._blobs.path(stored.sha256))


def _files_of(shard: bytes) -> Iterator[Stored]:
    at = RECORD
    while not shard.startswith(END_OF_FILES, at):
        file_hash, flags, segments = FILE.unpack_from(shard, at)
        at += RECORD
        size = sum(SEGMENT.unpack_from(shard, at + i * RECORD)[0] for i in range(segments))
        at += segments * RECORD * (2 if flags & VERIFIED else 1)
        if flags & DESCRIBED:
            yield Stored(_hexadecimal(shard[at : at + 32]), _hexadecimal(file_hash), size)
            at += RECORD


def _hexadecimal(value: bytes) -> str:
    """Xet writes hashes as four little-endian words."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", value))
