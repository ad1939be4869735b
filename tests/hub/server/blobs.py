"""The contents of files, each stored once under its SHA-256."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LFS_SUFFIXES = (".bin", ".ckpt", ".h5", ".npz", ".onnx", ".pt", ".pth", ".safetensors", ".tar", ".zip")
LARGEST_REGULAR = 10 * 2**20
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"


@dataclass(frozen=True)
class File:
    """A file of a commit. `oid` is git's name of what git holds: the content, or the pointer to it in LFS."""

    sha256: str
    size: int
    oid: str
    lfs: bool
    xet_hash: str | None = None

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def lfs_entry(self, name_of_hash: str) -> dict[str, Any]:
        """The `lfs` part of an answer; the routes differ in how they call the hash."""
        if not self.lfs:
            return {}
        pointer = POINTER.format(sha256=self.sha256, size=self.size)
        return {"lfs": {name_of_hash: self.sha256, "size": self.size, "pointerSize": len(pointer)}}


class Blobs:
    """A folder of contents."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        return self._folder / sha256

    def __contains__(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def add(self, content: bytes) -> File:
        """Store the content of a small file, a regular one of git."""
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 not in self:
            self.path(sha256).write_bytes(content)
        return File(sha256, len(content), _git_oid(content), lfs=False)

    def adopt(self, name: str, source: Path) -> File:
        """Take in a local file; `name` and content decide whether it is LFS's. A large one is hard-linked."""
        size = source.stat().st_size
        if size <= LARGEST_REGULAR:
            content = source.read_bytes()
            file = self.add(content)
            return self.lfs_file(file.sha256) if goes_to_lfs(name, size, content[:512]) else file
        with source.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        self.path(sha256).unlink(missing_ok=True)  # an earlier test may have changed what it was linked to
        try:
            self.path(sha256).hardlink_to(source)
        except OSError:
            shutil.copyfile(source, self.path(sha256))
        return self.lfs_file(sha256)

    def lfs_file(self, sha256: str, xet_hash: str | None = None) -> File:
        """The file of a content that is stored already."""
        size = self.path(sha256).stat().st_size
        pointer = POINTER.format(sha256=sha256, size=size).encode()
        return File(sha256, size, _git_oid(pointer), lfs=True, xet_hash=xet_hash)

    async def receive(self, sha256: str, chunks: AsyncIterator[bytes]) -> bool:
        """Store what arrives; nothing is kept unless it is what its name says."""
        digest = hashlib.sha256()
        descriptor, partial = tempfile.mkstemp(dir=self._folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                async for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
            right = digest.hexdigest() == sha256
            if right:
                Path(partial).replace(self.path(sha256))
            return right
        finally:
            Path(partial).unlink(missing_ok=True)


def goes_to_lfs(name: str, size: int, sample: bytes) -> bool:
    return name.endswith(LFS_SUFFIXES) or size > LARGEST_REGULAR or b"\0" in sample


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
