"""Compares whole files with the checksums that there are of them: the Hub's, and those inside a zip."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

from speechft_merge.checkpoints import tar
from speechft_merge.checkpoints.torch_zip import MAGIC, open_archive
from speechft_merge.errors import CheckpointError, quote
from speechft_merge.sources.content import has_checksum, has_content

if TYPE_CHECKING:
    from speechft_merge.checkpoints.index import Checkpoint
    from speechft_merge.sources import ByteSource


def verify(checkpoint: Checkpoint) -> list[str]:
    """Read a model's files whole; return the names of those that have no checksum, in or beside them.

    Raises:
        CheckpointError: a file is not what its checksum says.
    """
    return [source.name for source in checkpoint.sources if not _is_verified(source)]


def _is_verified(source: ByteSource) -> bool:
    if has_checksum(source.identity):
        if not has_content(source):
            raise CheckpointError(
                f"{source.name} is damaged: its checksum is not the Hub's",
                hint="remove it from the cache, and run again",
            )
        return True
    start = source.read(0, min(source.size, tar.BLOCK))
    if tar.is_tar(start):
        source = tar.find_weights(source)
    if source.size < len(MAGIC) or source.read(0, len(MAGIC)) != MAGIC:
        return False
    try:
        damaged = open_archive(source).testzip()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{source.name} is a damaged zip file ({error})") from error
    if damaged is not None:
        raise CheckpointError(
            f"{source.name} is damaged: the checksum of its record {quote(damaged)} is wrong",
            hint="copy or download it again",
        )
    return True
