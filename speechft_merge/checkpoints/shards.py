"""Joins a model in several files, by the index that Hugging Face's libraries write beside them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from speechft_merge.checkpoints.json_text import MAX_TEXT, parse_json
from speechft_merge.errors import QUOTED, CheckpointError, NotFoundError, amount, quote

if TYPE_CHECKING:
    from speechft_merge.checkpoints.index import Checkpoint
    from speechft_merge.sources import ByteSource


def read_weight_map(source: ByteSource) -> dict[str, str]:
    """Read an index (`*.index.json`): tensor name -> file name.

    Raises:
        CheckpointError: not such an index, or a file name that leads out of the folder.
    """
    index = parse_json(source.read(0, min(source.size, MAX_TEXT + 1)), source.name)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{source.name} has no weight_map: not an index of shards")
    for file in weight_map.values():
        if not isinstance(file, str) or not file or "/" in file or "\\" in file or "\0" in file or file in (".", ".."):
            raise CheckpointError(f"{source.name} names the file {quote(file)}; shards must be in the index's folder")
    return weight_map


def join_shards(file: str, index_name: str, weight_map: dict[str, str], shards: list[Checkpoint]) -> Checkpoint:
    """Make one checkpoint of many, after checking that index and shards agree.

    Raises:
        CheckpointError: the index names a tensor that its shard lacks, or two shards hold the same name.
    """
    owner: dict[str, str] = {}
    for shard in shards:
        for name in (*shard.tensors, *shard.unreadable):
            if name in owner:
                raise CheckpointError(
                    f"{index_name}: tensor {quote(name)} lies in two shards, {owner[name]} and {shard.file}"
                )
            owner[name] = shard.file
    for name, named in weight_map.items():
        if owner.get(name) != named:
            raise CheckpointError(
                f"{index_name} says that {quote(name)} lies in {named}, but that shard has no such tensor"
            )
    return replace(
        shards[0],
        container=f"sharded {shards[0].container} ({amount(len(shards), 'file')})",
        tensors={name: span for shard in shards for name, span in shard.tensors.items()},
        sources=[source for shard in shards for source in shard.sources],
        unreadable={name: why for shard in shards for name, why in shard.unreadable.items()},
        file=file,
    )


_PLACE = re.compile(r"(.*-)(\d{1,6})-of-(\d{1,6})(\..*)")


def is_shard(name: str) -> bool:
    """Return whether a file is, by its name, one of several that make a model: `model-00001-of-00003.safetensors`."""
    return _PLACE.fullmatch(name) is not None


def require_all_shards(folder: str, names: list[str], beside: list[str]) -> list[str]:
    """Return shards that have no index, in order; they are counted from 1, or from 0.

    Args:
        folder: where they are.
        names: of the shards.
        beside: other files there that may be weights.

    Raises:
        NotFoundError: they are of more than one model, not all there, or other weights are there too.
    """
    models: dict[tuple[str, str, str], dict[int, str]] = {}
    for name in names:
        if (found := _PLACE.fullmatch(name)) is not None:
            stem, number, count, suffix = found.groups()
            models.setdefault((stem, count, suffix), {})[int(number)] = name
    (stem, count, suffix), shards = next(iter(models.items()))
    first = 0 if 0 in shards else 1
    places = range(first, first + int(count))
    missing = [place for place in places if place not in shards]
    if beside:
        raise NotFoundError(
            f"{folder} holds {amount(len(names), 'shard')} without their index (*.index.json), and other weights",
            found=", ".join(beside[:5]),
            hint="copy the index, or name the other file if that is meant",
        )
    if len(models) > 1:
        there = "more than one model: " + ", ".join(f"{stem}*-of-{n}{end}" for stem, n, end in list(models)[:5])
    elif missing or len(names) != len(places):
        listed = ", ".join(f"{stem}{place:0{len(count)}}-of-{count}{suffix}" for place in missing[:5])
        there = amount(len(names), "shard") + (f"; missing: {listed}" if listed else "")
    else:
        return [shards[place] for place in places]
    raise NotFoundError(
        f"{folder} holds shards without their index (*.index.json)", found=there, hint="copy the index and all shards"
    )


def require_shards(index_name: str, weight_map: dict[str, str], listed: list[str]) -> list[str]:
    """Return the shard files in order of their names.

    Raises:
        NotFoundError: one that the index names is not in the folder.
    """
    files = sorted(set(weight_map.values()))
    missing = [file for file in files if file not in listed]
    if missing:
        raise NotFoundError(
            f"{index_name} names {amount(len(files), 'shard')}; "
            f"missing: {', '.join(name[:QUOTED] for name in missing[:5])}"
        )
    return files
