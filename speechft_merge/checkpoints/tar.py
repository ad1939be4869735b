"""Finds the file of weights in a tar archive, such as NVIDIA's `.nemo`, where it lies: nothing is unpacked.

Source of the format: POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar's manual, "Basic Tar Format".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from speechft_merge.checkpoints import torch_legacy, torch_zip
from speechft_merge.errors import CheckpointError, amount
from speechft_merge.sources.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from speechft_merge.sources import ByteSource

BLOCK = 512
MAX_MEMBERS = 2000
"""Most members that are looked at; a `.nemo` has some ten."""
MAX_DESCRIPTION = 1 << 16
"""Most bytes of a member that only describes the next one: a long name, pax records."""
MAX_LISTED = 8

USUAL = "model_weights.ckpt"
"""What NeMo calls the weights."""

_REGULAR = b"0\x007"
"""Types of members: files, those without data (links, devices, folders), and those that describe the next one."""
_WITHOUT_DATA = b"123456"
_PAX, _LONG_NAME = b"x", b"L"
_DESCRIBING = _PAX + _LONG_NAME
_SPARSE = b"S"
_OLD_TORCH = ("sys_info", "pickle", "storages", "tensors")
_PAX_RECORD = re.compile(rb"(\d{1,10}) ([^=\n]{1,100})=")


class Member(NamedTuple):
    """A regular file in an archive."""

    name: str
    offset: int
    size: int


def is_tar(start: bytes) -> bool:
    """Return whether a file begins with the header of a tar's first member, of any of its formats."""
    return len(start) >= BLOCK and any(start[:100]) and _number(start[148:156]) == _checksum(start[:BLOCK])


def find_weights(source: ByteSource) -> Window:
    """Return the one file of torch's in an archive.

    Raises:
        CheckpointError: there is none, or several of which none has the usual name; or the archive is damaged.
    """
    members = list(read_members(source))
    if members and members[0].name in _OLD_TORCH:
        raise CheckpointError(
            f"{source.name} is a tar archive of torch before 0.4", hint="load it with an old torch and save it again"
        )
    held = [member for member in members if _is_of_torch(source, member)]
    usual = [member for member in held if member.name.rpartition("/")[2] == USUAL]
    chosen = usual if len(usual) == 1 else held
    if len(chosen) == 1:
        name, offset, size = chosen[0]
        return Window(source, offset, size, f"{source.name} ({name[:100]})")
    largest = sorted(held or members, key=lambda member: -member.size)
    listed = ", ".join(f"{member.name[:100]} ({member.size:,} bytes)" for member in largest[:MAX_LISTED])
    files = amount(len(held), "file") if held else "no file"
    raise CheckpointError(
        f"{source.name} is a tar archive with {files} that torch.save wrote, expected one (of NeMo, {USUAL})",
        found=(listed or "nothing") + (", ..." if len(largest) > MAX_LISTED else ""),
        hint="unpack it (tar -xf) and give the file of weights",
    )


def read_members(source: ByteSource) -> Iterator[Member]:
    """Yield the regular files in an archive; only headers are read.

    Raises:
        CheckpointError: a header is damaged, a member reaches past the end or is sparse, or there are too many.
    """
    position, name = 0, b""
    records: dict[bytes, bytes] = {}
    for _ in range(MAX_MEMBERS):
        header = source.read(position, BLOCK) if position + BLOCK <= source.size else bytes(BLOCK)
        if not any(header):
            return
        kind, offset = header[156:157], position + BLOCK
        size = _size(header, {} if kind in _DESCRIBING else records)
        if _number(header[148:156]) != _checksum(header) or size is None:
            raise CheckpointError(
                f"{source.name}: the tar archive is damaged at byte {position}", hint="copy or download it again"
            )
        if kind in _REGULAR + _DESCRIBING and offset + size > source.size:
            raise CheckpointError(
                f"{source.name}: a file in the tar archive reaches to byte {offset + size} of {source.size}: cut short",
                hint="copy or download it again",
            )
        if kind == _SPARSE or any(key.startswith(b"GNU.sparse") for key in records):
            raise CheckpointError(f"{source.name}: the tar archive has sparse files", hint="pack it again without -S")
        if kind == _PAX:
            records = _records(_read_description(source, offset, size))
        elif kind == _LONG_NAME:
            name = _read_description(source, offset, size)
        else:
            if kind in _REGULAR:
                yield Member(_text(records.get(b"path") or name or _name(header)), offset, size)
            name, records = b"", {}
        position = offset + -(-size // BLOCK) * BLOCK
    raise CheckpointError(f"{source.name}: the tar archive has more than {MAX_MEMBERS} members: not a model's")


def _is_of_torch(source: ByteSource, member: Member) -> bool:
    start = source.read(member.offset, min(member.size, 32))
    return start.startswith(torch_zip.MAGIC) or torch_legacy.MAGIC in start


def _size(header: bytes, records: dict[bytes, bytes]) -> int | None:
    """Return the bytes of a member's data; None if that is no number."""
    if header[156:157] in _WITHOUT_DATA:
        return 0
    return _decimal(records[b"size"]) if b"size" in records else _number(header[124:136])


def _number(field: bytes) -> int | None:
    """Return the number in a field of a header, octal or in GNU's base 256; None if it is none, or negative."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    return int(digits or b"0", 8) if re.fullmatch(b"[0-7]*", digits) else None


def _checksum(header: bytes) -> int:
    """Return the sum of a header's bytes, those of the checksum itself taken as spaces."""
    return sum(header) - sum(header[148:156]) + 8 * ord(" ")


def _name(header: bytes) -> bytes:
    """Return a member's name; POSIX's header may hold the folder apart, GNU's has other things there."""
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" * bool(prefix) + header[:100].partition(b"\0")[0]


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode(errors="backslashreplace").removeprefix("./")


def _read_description(source: ByteSource, offset: int, size: int) -> bytes:
    if size > MAX_DESCRIPTION:
        raise CheckpointError(
            f"{source.name}: the tar archive has a name or attributes of {size} bytes, at most {MAX_DESCRIPTION} are "
            "allowed"
        )
    return source.read(offset, size)


def _records(content: bytes) -> dict[bytes, bytes]:
    """Return the records of a pax header: `length key=value` and a newline, as far as they are well formed."""
    found: dict[bytes, bytes] = {}
    position = 0
    while record := _PAX_RECORD.match(content, position):
        end = position + int(record[1])
        if end <= record.end():
            break
        found[record[2]] = content[record.end() : end - 1]
        position = end
    return found


def _decimal(text: bytes) -> int | None:
    return int(text) if re.fullmatch(b"[0-9]{1,18}", text) else None
