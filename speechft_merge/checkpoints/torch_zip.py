"""Reads the container that torch.save writes since torch 1.6: a zip of a pickle and one stored record per storage."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING

from speechft_merge.checkpoints.kinds import TORCHSCRIPT, kind_of
from speechft_merge.checkpoints.pickle_data import read_pickle
from speechft_merge.checkpoints.torch_tensors import CONSTRUCTORS, TorchFile, storage_of
from speechft_merge.errors import CheckpointError, quote
from speechft_merge.sources import SourceReader

if TYPE_CHECKING:
    from speechft_merge.sources import ByteSource

MAGIC = b"PK\x03\x04"
MAX_PICKLE = 64 << 20
"""Most bytes of data.pkl; that of HuBERT Base has 30 KB."""

MAX_DIRECTORY = 8 << 20
"""Most bytes of a zip's directory, which zipfile makes ten times as much of in memory; a record takes some 100."""

ALIGNMENT = 64
"""Bytes; torch pads records to it."""

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")  # APPNOTE.TXT 4.3.7


def read_torch_zip(source: ByteSource) -> TorchFile:
    """Read the pickle and the list of records; no storage is read.

    Raises:
        CheckpointError: it is not such a zip, big-endian, or records that are compressed or overlap.
    """
    archive = open_archive(source)
    entries, central_directory = archive.infolist(), archive.start_dir
    _require_checkpoint(source, [entry.filename.partition("/")[2] for entry in entries])
    records = locate_records(source, entries, central_directory)
    if "byteorder" in records and source.read(*_checked(source, records, "byteorder", 16)) != b"little":
        raise CheckpointError(f"{source.name} was written on a big-endian machine", hint="load and save it with torch")
    pickled = source.read(*_checked(source, records, "data.pkl", MAX_PICKLE))
    if zlib.crc32(pickled) != next(e.CRC for e in entries if e.filename.endswith("/data.pkl")):
        raise CheckpointError(f"{source.name}: the checksum of its data.pkl is wrong", hint="copy or download it again")
    root = read_pickle(io.BytesIO(pickled), source.name, CONSTRUCTORS, storage_of)
    return TorchFile("torch zip", source, root, records, "data/")


def open_archive(source: ByteSource) -> zipfile.ZipFile:
    """Read the directory of a zip.

    Raises:
        CheckpointError: there is none that can be read.
    """
    try:
        return zipfile.ZipFile(SourceReader(source, MAX_DIRECTORY))
    except (
        zipfile.BadZipFile,
        ValueError,
        struct.error,
        NotImplementedError,
        OverflowError,
        EOFError,
        MemoryError,
    ) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{source.name} is a damaged zip file ({error})", hint="copy or download it again"
        ) from error


def locate_records(source: ByteSource, entries: list[zipfile.ZipInfo], end: int) -> dict[str, tuple[int, int]]:
    """Return name without the archive's folder -> (offset, bytes), checked against local headers and neighbours."""
    records: dict[str, tuple[int, int]] = {}
    previous_name, previous_end = "", 0
    entries = sorted(entries, key=lambda e: e.header_offset)
    for entry, following in zip(entries, [*(e.header_offset for e in entries[1:]), end], strict=True):
        name = entry.filename.partition("/")[2]
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise CheckpointError(
                f"{source.name}: record {quote(entry.filename)} is compressed, which torch never does",
                hint="unpack it and pack it again without compression (zip -0)",
            )
        if entry.flag_bits & 1:
            raise CheckpointError(f"{source.name}: record {quote(entry.filename)} is encrypted")
        if entry.header_offset < previous_end:
            raise CheckpointError(
                f"{source.name}: the records {quote(previous_name)} and {quote(entry.filename)} overlap: "
                "damaged or forged"
            )
        offset = following - _descriptor_size(entry) - entry.file_size
        if source.seeks_cheaply or name == "data.pkl" or offset % ALIGNMENT:
            offset = _data_offset(source, entry)
        previous_name, previous_end = entry.filename, offset + entry.file_size
        if offset < entry.header_offset + _LOCAL_HEADER.size or previous_end > end:
            raise CheckpointError(
                f"{source.name}: record {quote(entry.filename)} reaches past the end of the archive's data"
            )
        if name in records:
            raise CheckpointError(f"{source.name}: two records are called {quote(name)}")
        records[name] = offset, entry.file_size
    return records


def _descriptor_size(entry: zipfile.ZipInfo) -> int:
    """Return the bytes between a record's data and the next record as torch writes them, to compute offsets.

    Over a network, reading each record's local header would cost a request for each tensor.
    """
    if not entry.flag_bits & 8 or not entry.file_size:
        return 0
    return 24 if max(entry.file_size, entry.header_offset) >= 0xFFFFFFFF else 16


def _data_offset(source: ByteSource, entry: zipfile.ZipInfo) -> int:
    if not 0 <= entry.header_offset <= source.size - _LOCAL_HEADER.size:
        raise CheckpointError(f"{source.name}: record {quote(entry.filename)} lies outside the file")
    magic, *_, name_length, extra_length = _LOCAL_HEADER.unpack(source.read(entry.header_offset, _LOCAL_HEADER.size))
    if magic != MAGIC:
        raise CheckpointError(f"{source.name}: no record begins where {quote(entry.filename)} should")
    return int(entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length)


def _require_checkpoint(source: ByteSource, names: list[str]) -> None:
    if any(name.startswith("code/") for name in names) or "constants.pkl" in names:
        raise CheckpointError(f"{source.name} is {TORCHSCRIPT.what}", hint=TORCHSCRIPT.hint_for(source.name))
    if "data.pkl" not in names:
        if known := kind_of(source.name.rpartition("/")[2]):
            raise CheckpointError(f"{source.name} looks like {known.what}", hint=known.hint_for(source.name))
        kind = "a zip file, such as numpy's .npz or an archive of several files"
        raise CheckpointError(f"{source.name} is {kind}, not a checkpoint that torch.save wrote (no data.pkl in it)")


def _checked(source: ByteSource, records: dict[str, tuple[int, int]], name: str, limit: int) -> tuple[int, int]:
    offset, size = records[name]
    if size > limit:
        hint = "if it holds arrays of numpy, load it with torch and save them as tensors"
        raise CheckpointError(
            f"{source.name}: its {name} has {size} bytes, at most {limit} are allowed",
            hint=hint if name == "data.pkl" else None,
        )
    return offset, size
