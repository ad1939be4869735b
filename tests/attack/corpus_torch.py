"""Hostile pickles, views and zips: the part of the corpus that is a file of torch's."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpus import ASKED, HARMLESS, MEGA, REFUSED, TUNED, add, put

TOUCH = b"touch pwned"
"""A command that would leave a file where the merge runs."""


def zipped(pickled: bytes, records: Iterable[tuple[str, bytes]] = ()) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in (("data.pkl", pickled), ("byteorder", b"little"), *records):
            file.writestr(f"archive/{name}", content)
    return buffer.getvalue()


STRING = b"U" + bytes([len(TOUCH)]) + TOUCH
PICKLES = {
    "reduce": b"cposix\nsystem\n(" + STRING + b"tR.",
    "inst": b"(S'" + TOUCH + b"'\niposix\nsystem\n.",
    "obj": b"(cposix\nsystem\n" + STRING + b"o.",
    "newobj": b"cposix\nsystem\n(" + STRING + b"t\x81.",
    "newobj_ex": b"\x80\x04cposix\nsystem\n(" + STRING + b"t}\x92.",
    "builtins": b"cbuiltins\nexec\n(" + STRING + b"tR.",
    "stack_global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93(" + STRING + b"tR.",
    "build": b"ccollections\nOrderedDict\n)R}S'__setstate__'\ncposix\nsystem\nsb" + STRING + b"b.",
    "through torch": b"ctorch._utils\nos.system\n(" + STRING + b"tR.",
    "ext": b"\x82\x01.",
    "ext4": b"\x84\0\0\0\0.",
    "a persistent text": b"Pfoo\n.",
    "buffers": b"\x80\x05\x97.",
    "nothing": b"",
    "stop": b".",
    "no stop": b"N",
    "pop": b"0.",
    "a mark": b"(.",
    "a memo that is not there": b"g9999999999\n.",
    "a negative memo": b"Np-1\n.",
    "a huge memo": b"Nr\xff\xff\xff\xff.",
    "a frame that lies": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7fN.",
    "bytes that lie": b"\x8e" + b"\xff" * 7 + b"\x7f.",
    "text that lies": b"\x8d" + b"\xff" * 7 + b"\x7f.",
    "an array that lies": b"\x96" + b"\xff" * 7 + b"\x7f.",
    "a negative string": b"T\xff\xff\xff\xff.",
    "a negative long": b"\x8b\xff\xff\xff\xff.",
    "protocol 99": b"\x80\x63N.",
    "a dictionary in itself": b"}q\0S'a'\nh\0s.",
    "a list in itself": b"]q\0h\0a.",
    "deep tuples": b")" + b"\x85" * MEGA + b".",
    "deep marks": b"(" * 200_000 + b"t" * 200_000 + b".",
    "odd items": b"}(NNNu.",
    "an unhashable key": b"}]Ns.",
    "a float of text": b"F1e999999\n.",
    "a number of text": b"I" + b"9" * 100_000 + b"\n.",
    "a bad escape": b"S'\\x'\n.",
    "laughs": b"\x80\x02]q\0"
    + b"".join(b"(" + (b"h" + bytes([i])) * 10 + b"tq" + bytes([i + 1]) for i in range(99))
    + b".",
    "laughs as a key": b"}q\xff)q\0"
    + b"".join(b"(" + (b"h" + bytes([i])) * 10 + b"tq" + bytes([i + 1]) for i in range(99))
    + b"Nsh\xff.",
    "a long tuple again and again": b"(" + b"K\1" * 400_000 + b"tq\0" + b"ctorch\nSize\nh\0\x85R0" * 100_000 + b"}.",
    "pairs again and again": b"("
    + b"U\1aN\x86" * 300_000
    + b"tq\0"
    + b"ccollections\nOrderedDict\nh\0\x85R0" * 50_000
    + b"}.",
    "two million dictionaries": b"(" + b"}" * 1_990_000 + b"l.",
    "half a million objects": b"ca\nb\nq\0(" + b"h\0)R" * 600_000 + b"l.",
    "a million texts": b"(" + b"U\1a" * MEGA + b"l.",
    "a million numbers by name": b"}(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(500_000)) + b"u.",
}
for name, content in PICKLES.items():
    add(f"pickle-{name}", put("model.bin", zipped(content, [("data/0", bytes(64))])))
    if len(content) < 1000:
        add(f"pickle-legacy-{name}", put("model.bin", pickle.dumps(0x1950A86A20F9469CFC6C, 2) + content))


# views of a storage


class Storage:
    """Pickled by its persistent id."""

    def __init__(self, *identity: Any) -> None:
        self.identity = identity


class Call:
    """Pickled as the call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


class Pickler(pickle._Pickler):  # the one in Python asks for ids of anything
    def persistent_id(self, value: Any) -> Any:
        return value.identity if isinstance(value, Storage) else None


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(value)
    return buffer.getvalue()


def view(count: Any, shape: Any, strides: Any, offset: Any = 0, identity: tuple[Any, ...] | None = None) -> Call:
    storage = Storage(*(identity or ("storage", torch.FloatStorage, "0", "cpu", count)))
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, shape, strides, False, {})


VIEWS: dict[str, tuple[Iterable[int], Call]] = {
    "past the end": (REFUSED, view(16, (16, 2), (1, 1))),
    "huge strides": (REFUSED, view(16, (2, 2), (1 << 62, 1 << 62))),
    "negative strides": (REFUSED, view(16, (2, 2), (-1, 1))),
    "a negative offset": (REFUSED, view(16, (2, 2), (2, 1), -4)),
    "a huge offset": (REFUSED, view(16, (2,), (1,), 1 << 62)),
    "overlapping": (HARMLESS, view(16, (8, 8), (1, 1))),
    "billions of one number": (REFUSED, view(1, (1 << 31, 1 << 31), (0, 0))),
    "other ranks": (REFUSED, view(16, (2, 2), (1,))),
    "a rank of 100": (REFUSED, view(16, (1,) * 100, (1,) * 100)),
    "a shape of text": (REFUSED, view(16, "ab", (1, 1))),
    "a negative count": (REFUSED, view(-5, (1,), (1,))),
    "a count that lies": (HARMLESS, view(10**15, (4,), (1,))),
    "a count of text": (REFUSED, view("5", (1,), (1,))),
    "an id of another kind": (REFUSED, view(1, (1,), (1,), identity=("x",))),
    "an id without a key": (REFUSED, view(1, (1,), (1,), identity=("storage", torch.FloatStorage, 5, "cpu", 1))),
    "an evil class": (REFUSED, view(1, (1,), (1,), identity=("storage", os.system, "0", "cpu", 1))),
    "a missing record": (REFUSED, view(1, (1,), (1,), identity=("storage", torch.FloatStorage, "../x", "cpu", 1))),
}
for name, (codes, made) in VIEWS.items():
    state = {key: view(16, (8, 8), (0, 0)) for key in TUNED if "weight" in key} | {"x": made}
    state["encoder.layer_norm.weight"] = view(16, (8,), (1,))
    add(
        f"view-{name}", put("model.bin", zipped(pickled(state), [("data/0", np.ones(16, np.float32).tobytes())])), codes
    )


def expanded(count: int, distinct: bool) -> Callable[[Path], Path]:
    """Tensors of 50 MB each that are views of one number, on both sides."""

    def build(folder: Path) -> Path:
        for number, path in enumerate((folder.parent / "base", folder)):
            (path / "model.safetensors").unlink(missing_ok=True)
            names = [f"encoder.layers.{i}.x.weight" for i in range(count)]
            state = {name: view(count, (13, 1 << 20), (0, 0), i if distinct else 0) for i, name in enumerate(names)}
            numbers = np.arange(count, dtype=np.float32) + np.float32(number) / 2 + 1
            (path / "model.bin").write_bytes(zipped(pickled(state), [("data/0", numbers.tobytes())]))
        return folder

    return build


add("view-of-one-number-24", expanded(24, distinct=False), ASKED)
add("view-of-distinct-numbers-24", expanded(24, distinct=True), ASKED)
add("view-of-distinct-numbers-200", expanded(200, distinct=True), ASKED)

# zips

RECORDS = [("archive/data/0", np.ones(16, np.float32).tobytes())]
STATE = {key: view(16, values.shape, (0,) * values.ndim) for key, values in TUNED.items()}


def archive(edit: Callable[[dict[str, Any]], None] | None = None, **end: Any) -> bytes:
    """A zip by hand; `edit` changes what is said of the record of the storage."""
    entries = [("archive/data.pkl", pickled(STATE)), *RECORDS]
    body, directory = end.get("prefix", b""), b""
    for name, data in entries:
        said: dict[str, Any] = {
            "name": name.encode(),
            "crc": zlib.crc32(data),
            "size": len(data),
            "flags": 0,
            "method": 0,
            "at": len(body),
            "extra": b"",
            "local_name": name.encode(),
            "local_extra": b"",
            "disk": 0,
        }
        if edit is not None and name.endswith("0"):
            edit(said)
        body += (
            struct.pack(
                "<4s5H3L2H",
                b"PK\3\4",
                20,
                said["flags"],
                said["method"],
                0,
                0,
                said["crc"],
                len(data),
                len(data),
                len(said["local_name"]),
                len(said["local_extra"]),
            )
            + said["local_name"]
            + said["local_extra"]
            + data
        )
        directory += struct.pack(
            "<4s6H3L5H2L",
            b"PK\1\2",
            20,
            20,
            said["flags"],
            said["method"],
            0,
            0,
            said["crc"],
            said["size"],
            said["size"],
            len(said["name"]),
            len(said["extra"]),
            0,
            said["disk"],
            0,
            0,
            said["at"],
        )
        directory += said["name"] + said["extra"]
    count = end.get("count", len(entries))
    return (
        body
        + directory
        + struct.pack(
            "<4s4H2LH", b"PK\5\6", 0, 0, count, count, end.get("size", len(directory)), end.get("at", len(body)), 0
        )
        + end.get("tail", b"")
    )


EDITS: dict[str, tuple[Iterable[int], dict[str, Any]]] = {
    "encrypted": (REFUSED, {"flags": 1}),
    "packed": (REFUSED, {"method": 8}),
    "another disk": (HARMLESS, {"disk": 7}),
    "an offset past the end": (REFUSED, {"at": 1 << 31}),
    "an offset of another record": (REFUSED, {"at": 0}),
    "a size past the end": (REFUSED, {"size": 10**9}),
    "a size of 2^32 - 2": (REFUSED, {"size": 0xFFFFFFFE}),
    "a name that leads out": (REFUSED, {"name": b"archive/../../x"}),
    "an absolute name": (REFUSED, {"name": b"/x"}),
    "an empty name": (REFUSED, {"name": b""}),
    "NUL in a name": (HARMLESS, {"name": b"archive/data/0\0x"}),
    "another local name": (HARMLESS, {"local_name": b"archive/data/9"}),
    "a wrong checksum": (HARMLESS, {"crc": 1}),
    "a long local name": (HARMLESS, {"local_name": b"n" * 5000}),
    "much local extra": (HARMLESS, {"local_extra": bytes(60_000)}),
    "a 64-bit size that lies": (REFUSED, {"size": 0xFFFFFFFF, "extra": struct.pack("<HHQQ", 1, 16, 1 << 63, 1 << 63)}),
    "64-bit extra cut short": (REFUSED, {"size": 0xFFFFFFFF, "extra": struct.pack("<HH", 1, 16)}),
    "bad UTF-8 in a name": (REFUSED, {"flags": 0x800, "name": b"archive/data/\xff"}),
    "the name of the pickle": (REFUSED, {"name": b"archive/data.pkl"}),
    "code": (REFUSED, {"name": b"archive/code/x"}),
}
for name, (codes, changes) in EDITS.items():
    add(f"zip-{name}", put("model.bin", archive(lambda said, changes=changes: said.update(changes))), codes)
ENDS: dict[str, tuple[Iterable[int], dict[str, Any]]] = {
    "whole": ({0}, {}),
    "junk before": (HARMLESS, {"prefix": b"PK\3\4" + b"j" * 500}),
    "junk behind": (HARMLESS, {"tail": b"x" * 999}),
    "a wrong count": (HARMLESS, {"count": 65535}),
    "a directory elsewhere": (HARMLESS, {"at": 5}),
    "a directory of 4 GB": (REFUSED, {"size": 0xFFFFFFF0}),
    "a directory of nothing": (REFUSED, {"size": 0}),
}
for name, (codes, end) in ENDS.items():
    add(f"zip-end-{name}", put("model.bin", archive(**end)), codes)


def million_records(folder: Path) -> Path:
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 45, 45, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0)
    directory = b"".join(entry + b"a/%06d" % i for i in range(MEGA))
    body = b"PK\3\4" + bytes(60)
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, MEGA, MEGA, len(directory), len(body))
    end += struct.pack("<4sLQL", b"PK\6\7", 0, len(body) + len(directory), 1)
    end += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return put("model.bin", body + directory + end)(folder)


add("zip-of-a-million-records", million_records)
