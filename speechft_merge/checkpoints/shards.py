"""A model in several files: the index that Hugging Face's libraries write beside them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from speechft_merge.errors import QUOTED, CheckpointError, NotFoundError, quote

if TYPE_CHECKING:
    from speechft_merge.checkpoints.index import Checkpoint
    from speechft_merge.sources import ByteSource

MAX_INDEX = 64 << 20
"""Bytes of an index file."""


def read_weight_map(source: ByteSource) -> dict[str, str]:
    """Tensor name -> file name, as `*.index.json` has it.

    Raises:
        CheckpointError: not such an index, or a file name that leads out of the folder.
    """
    if source.size > MAX_INDEX:
        raise CheckpointError(f"{source.name} has {source.size} bytes; an index of shards has at most {MAX_INDEX}")
    try:
        index = json.loads(source.read(0, source.size).decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source.name} is not valid JSON: {error}") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{source.name} has no weight_map: not an index of shards")
    for file in weight_map.values():
        if not isinstance(file, str) or not file or "/" in file or "\\" in file or "\0" in file or file in (".", ".."):
            raise CheckpointError(f"{source.name} names the file {quote(file)}; shards lie in the index's own folder")
    return weight_map


def join_shards(index_name: str, weight_map: dict[str, str], shards: dict[str, Checkpoint]) -> Checkpoint:
    """One checkpoint of many, after a check that index and shards tell the same.

    Raises:
        CheckpointError: the index names a tensor that its shard lacks, or two shards hold the same name.
    """
    owner: dict[str, str] = {}
    for file, shard in shards.items():
        for name in (*shard.tensors, *shard.unreadable):
            if name in owner:
                raise CheckpointError(
                    f"{index_name}: tensor {quote(name)} lies in two shards, {owner[name]} and {file}"
                )
            owner[name] = file
    for name, file in weight_map.items():
        if owner.get(name) != file:
            raise CheckpointError(
                f"{index_name} says that {quote(name)} lies in {file}, but that shard has no such tensor"
            )
    whole = next(iter(shards.values()))
    for shard in list(shards.values())[1:]:
        whole.tensors |= shard.tensors
        whole.unreadable |= shard.unreadable
        whole.sources += shard.sources
    whole.container = f"sharded {whole.container} ({len(shards)} files)"
    return whole


def require_shards(index_name: str, weight_map: dict[str, str], listed: list[str]) -> list[str]:
    """The shard files in order of their names.

    Raises:
        NotFoundError: one that the index names is not in the folder.
    """
    files = sorted(set(weight_map.values()))
    missing = [file for file in files if file not in listed]
    if missing:
        raise NotFoundError(
            f"{index_name} names {len(files)} shards; missing: {', '.join(name[:QUOTED] for name in missing[:5])}"
        )
    return files
