"""Reads the container that torch.save wrote before torch 1.6: five pickles, then the storages one after another.

Layout (torch/serialization.py, _legacy_save): magic number, protocol version, system information, the object, the list
of storage keys; then for each key the element count as int64 and the raw elements.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from speechft_merge.checkpoints.pickle_data import read_pickle
from speechft_merge.checkpoints.torch_tensors import CONSTRUCTORS, Storage, TorchFile, storage_of
from speechft_merge.errors import CheckpointError
from speechft_merge.sources import SourceReader

if TYPE_CHECKING:
    from speechft_merge.sources import ByteSource

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
MAGIC = b"\x8a\x0a" + MAGIC_NUMBER.to_bytes(10, "little") + b"."
"""What follows the pickle protocol's two bytes."""
PROTOCOL_VERSION = 1001


def read_torch_legacy(source: ByteSource) -> TorchFile:
    """Read the five pickles and the element counts; no storage is read.

    Raises:
        CheckpointError: it is not such a file, big-endian, or cut short.
    """
    storages: dict[str, Storage] = {}

    def remember(persistent_id: object) -> object:
        storage = storage_of(persistent_id)
        if isinstance(storage, Storage) and storages.setdefault(storage.key, storage) != storage:
            raise CheckpointError(f"{source.name}: the storage {storage.key[:80]} is described in two ways")
        return storage

    stream = SourceReader(source)
    magic, version, system, root, keys = (read_pickle(stream, source.name, CONSTRUCTORS, remember) for _ in range(5))
    if magic != MAGIC_NUMBER or version != PROTOCOL_VERSION:
        raise CheckpointError(f"{source.name} is not a checkpoint that torch.save wrote")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"{source.name} was written on a big-endian machine", hint="load and save it with torch")
    if (
        not isinstance(keys, list)
        or not all(isinstance(key, str) for key in keys)
        or len(set(keys)) != len(keys)
        or not storages.keys() <= set(keys)
    ):
        raise CheckpointError(f"{source.name}: its list of storages does not match its tensors")
    return TorchFile(
        "torch legacy", source, root, _place_storages(source, stream.tell(), [storages.get(key) for key in keys])
    )


def _place_storages(source: ByteSource, offset: int, storages: list[Storage | None]) -> dict[str, tuple[int, int]]:
    records: dict[str, tuple[int, int]] = {}
    for storage in storages:
        if storage is None or (storage.dtype is None and storage.type_name != "UntypedStorage"):
            kind = storage.type_name if storage else "a storage that no tensor uses"
            raise CheckpointError(
                f"{source.name}: cannot tell the size of {kind}", hint="load the file with torch and save it again"
            )
        if offset + 8 > source.size:
            raise CheckpointError(
                f"{source.name} is cut short (storage {storage.key} at byte {offset} of {source.size})"
            )
        # over a network the counts would cost a request each; then the sizes must add up to the file's, see below
        (count,) = struct.unpack("<q", source.read(offset, 8)) if source.seeks_cheaply else (storage.count,)
        if count != storage.count or offset + 8 + count * storage.itemsize > source.size:
            raise CheckpointError(
                f"{source.name}: storage {storage.key} holds {count} elements by its own count, {storage.count} by "
                f"the pickle's, in a file of {source.size} bytes: damaged or cut short"
            )
        records[storage.key] = offset + 8, count * storage.itemsize
        offset += 8 + count * storage.itemsize
    if not source.seeks_cheaply and offset != source.size:
        raise CheckpointError(
            f"{source.name} has {source.size} bytes, its pickle describes {offset}: damaged or cut short"
        )
    return records
