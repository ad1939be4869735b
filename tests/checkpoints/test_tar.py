"""The file of weights in a tar is found where it lies; no archive, however made, is unpacked or ends in a traceback."""

from __future__ import annotations

import io
import random
import re
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from speechft_merge import open_checkpoint
from speechft_merge.checkpoints.tar import BLOCK, MAX_DESCRIPTION, MAX_MEMBERS, read_members
from speechft_merge.errors import CheckpointError
from speechft_merge.sources import LocalFile
from speechft_merge.sources.window import Window

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "GNU": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
USUAL = "./model_weights.ckpt"
LONG = f"./{'folder/' * 20}{'x' * 120}.txt"


def saved(legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a.weight": torch.arange(6.0)}, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def packed(files: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


NEMO = {"./": b"", "./model_config.yaml": b"target: x", "./spm.model": b"\n\x0e" * 600, USUAL: saved(), "./z": b"z"}


def message(content: bytes, tmp_path: Path) -> str:
    (tmp_path / "x.nemo").write_bytes(content)
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(tmp_path / "x.nemo")
    return str(refused.value)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("form", FORMATS)
def test_the_weights_are_read_where_they_lie(form: str, legacy: bool, tmp_path: Path) -> None:
    (tmp_path / "x.nemo").write_bytes(packed(NEMO | {USUAL: saved(legacy)}, FORMATS[form]))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.container == f"torch {'legacy' if legacy else 'zip'} in tar"
        (span,) = checkpoint.tensors.values()
        assert span.source is checkpoint.sources[0]
        assert span.source.read(span.offset, 24) == torch.arange(6.0).numpy().tobytes()


@pytest.mark.parametrize("form", ["GNU", "pax"])
def test_members_are_those_that_tarfile_finds(form: str, tmp_path: Path) -> None:
    content = packed({**NEMO, LONG: b"long", "ä.txt": b"", "last": b"x" * BLOCK}, FORMATS[form])
    (tmp_path / "x.tar").write_bytes(content)
    with LocalFile(tmp_path / "x.tar") as source, tarfile.open(tmp_path / "x.tar") as archive:
        wanted = [(m.name.removeprefix("./"), m.offset_data, m.size) for m in archive.getmembers() if m.isreg()]
        assert list(read_members(source)) == wanted


def test_an_archive_of_before_posix_is_one(tmp_path: Path) -> None:
    content = bytearray(packed({USUAL: saved()}, tarfile.USTAR_FORMAT))
    content[257:265] = bytes(8)
    content[:BLOCK] = signed(content[:BLOCK])
    (tmp_path / "x.tar").write_bytes(content)
    with open_checkpoint(tmp_path / "x.tar") as checkpoint:
        assert list(checkpoint.tensors) == ["a.weight"]


def test_of_several_files_of_torch_the_one_with_the_usual_name_is_meant(tmp_path: Path) -> None:
    files = {"a.pt": saved() + bytes(9), "sub/b.pt": saved(), "notes": b"x"}
    told = message(packed(files), tmp_path)
    assert "2 files that torch.save wrote, expected one" in told
    assert f"found a.pt ({len(saved()) + 9:,} bytes), sub/b.pt" in told
    assert "notes" not in told
    (tmp_path / "x.nemo").write_bytes(packed(files | {USUAL: saved()}))
    open_checkpoint(tmp_path / "x.nemo").close()


def header(kind: bytes = b"0", size: bytes = b"0", name: bytes = b"a") -> bytes:
    block = bytearray(
        name.ljust(124, b"\0") + size.rjust(12, b"\0" if size[:1] == b"\x80" else b"0") + b" " * 20 + kind
    )
    return signed(block.ljust(BLOCK, b"\0"))


def signed(block: bytearray) -> bytes:
    """A header with the right checksum."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


PAX = b"30 GNU.sparse.realsize=100000\n"
HOSTILE: dict[str, tuple[bytes, str]] = {
    "past the end": (header(size=b"7777"), "reaches to byte 4607 of 512: cut short"),
    "past any end": (header(size=b"\x80" + b"\xff" * 11), "cut short"),
    "a negative size": (header(size=b"\xff" * 12), "damaged at byte 0"),
    "a size that is no number": (header(size=b"12z"), "damaged at byte 0"),
    "damaged further on": (header() + b"x" * BLOCK, "damaged at byte 512"),
    "a header that is not what its checksum says": (header() + header().replace(b"a", b"b"), "damaged at byte 512"),
    "sparse": (header(b"S"), "sparse"),
    "sparse by pax": (header(b"x", b"36") + PAX.ljust(BLOCK, b"\0") + header(), "sparse"),
    "a link": (header(b"2", b"7777"), "no file that torch.save wrote.*found nothing"),
    "members without end": (header() * (MAX_MEMBERS + 1), f"more than {MAX_MEMBERS} members"),
    "names without end": (header(b"L", b"400000") + bytes(1 << 17), f"at most {MAX_DESCRIPTION} are allowed"),
    "a record without end": (header(b"x", b"12") + b"9999999999 path=b\n".ljust(BLOCK, b"\0") + header(), "no file"),
    "a size by pax past the end": (header(b"x", b"14") + b"12 size=999\n".ljust(BLOCK, b"\0") + header(), "cut short"),
    "weights cut short": (packed(NEMO)[: packed(NEMO).index(b"data.pkl") + 40], "cut short"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_for_what_it_is(kind: str, tmp_path: Path) -> None:
    content, told = HOSTILE[kind]
    assert re.search(told, message(content, tmp_path))


def test_no_damaged_archive_ends_in_a_traceback(tmp_path: Path) -> None:
    chance, outcomes = random.Random(0), set()
    good = packed(NEMO | {LONG: b"long"})
    headers = [i for i in range(0, len(good), BLOCK) if good[i + 257 : i + 262] == b"ustar"]
    for _ in range(200):
        bad = bytearray(good)
        at = chance.choice(headers)
        for _ in range(chance.randrange(1, 3)):
            bad[at + chance.choice([chance.randrange(BLOCK), 124 + chance.randrange(12)])] = chance.randrange(256)
        if chance.random() < 0.7:
            bad[at : at + BLOCK] = signed(bad[at : at + BLOCK])
        (tmp_path / "x.nemo").write_bytes(bad)
        try:
            open_checkpoint(tmp_path / "x.nemo").close()
            outcomes.add("read")
        except CheckpointError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_a_window_ends_where_it_ends(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"0123456789")
    with LocalFile(tmp_path / "x") as source:
        window = Window(source, 3, 4, "w")
        assert window.read(1, 3) == b"456"
        for offset, length in ((1, 4), (-1, 2)):
            with pytest.raises(CheckpointError):
                window.read_into(offset, memoryview(bytearray(length)))
