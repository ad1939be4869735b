import argparse
import io
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from container_files import (
    FOUR_FLOATS,
    VIEWS,
    Call,
    Name,
    Open,
    Tensors,
    assert_holds,
    content,
    loaded,
    names_the_file,
    numbers,
    odd_tensors,
    pickled,
    row_major,
    saved,
    storage,
    tensor,
    torch_zip,
    zip_file,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from speechft_merge.checkpoints import DType
from speechft_merge.checkpoints.torch_tensors import TorchFile
from speechft_merge.checkpoints.torch_zip import read_torch_zip
from speechft_merge.errors import CheckpointError, SpeechFTMergeError
from speechft_merge.output.crc32 import read_records
from speechft_merge.sources import LocalFile


# what torch.save writes
@pytest.mark.parametrize("dtype", DType)
@pytest.mark.parametrize("shape", [(2, 3), (), (0,)], ids=str)
def test_every_dtype_reads_back(dtype: DType, shape: tuple[int, ...], open_bytes: Open) -> None:
    file = saved({"a": numbers(dtype, *shape), "b": torch.ones(2)})
    checkpoint = open_bytes(file)
    assert checkpoint.container == "torch zip"
    assert_holds(checkpoint, loaded(file))


@pytest.mark.parametrize("tensors", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_kind_of_view_reads_back(tensors: Tensors, protocol: int, open_bytes: Open) -> None:
    file = saved(tensors, protocol=protocol)
    assert_holds(open_bytes(file), loaded(file) if protocol == 2 else tensors)


@st.composite
def views(draw: st.DrawFn) -> torch.Tensor:
    """Any strided view that stays inside a storage of 24 elements."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    strides = [draw(st.integers(0, 6)) for _ in shape]
    last = sum((size - 1) * step for size, step in zip(shape, strides, strict=True) if size)
    offset = draw(st.integers(0, max(0, 23 - last)))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64]))
    return torch.arange(max(24, offset + last + 1)).to(dtype).as_strided(shape, strides, offset)


@settings(max_examples=100)
@given(views(), st.booleans())
def test_any_view_of_a_storage_reads_back(open_bytes: Open, view: torch.Tensor, legacy: bool) -> None:
    file = saved({"a": view}, legacy=legacy)
    assert_holds(open_bytes(file), loaded(file))


@settings(max_examples=30)
@given(views(), st.data())
def test_any_part_of_a_view_reads_back(open_bytes: Open, view: torch.Tensor, data: st.DataObject) -> None:
    span = open_bytes(saved({"a": view})).tensors["a"]
    whole = row_major(view)
    for _ in range(3):
        begin = data.draw(st.integers(0, span.nbytes))
        end = data.draw(st.integers(begin, span.nbytes))
        assert span.source.read(span.offset + begin, end - begin) == whole[begin:end]


@pytest.mark.parametrize("name", ["tied", "parameter", "with attributes", "expanded"])
def test_a_module_s_ordered_state_with_its_metadata_reads_back(name: str, open_bytes: Open) -> None:
    state = OrderedDict(VIEWS[name])
    state._metadata = OrderedDict({"": {"version": 1}, "layer": {"version": 2}})  # type: ignore[attr-defined]
    assert_holds(open_bytes(saved(state)), state)


def test_a_layer_s_own_state_reads_back(open_bytes: Open) -> None:
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(4, 4, 3), dim=2)
    assert_holds(open_bytes(saved(layer.state_dict())), layer.state_dict())


def test_tied_tensors_have_one_place_and_count_once(open_bytes: Open) -> None:
    checkpoint = open_bytes(saved({**VIEWS["tied"], "c": torch.ones(60)}))
    places = {name: span.storage_key for name, span in checkpoint.tensors.items()}
    assert places["a"] == places["b"] != places["c"]
    assert checkpoint.parameters == 60 + 60


def test_tied_tensors_that_are_not_contiguous_have_one_place_too(open_bytes: Open) -> None:
    transposed = torch.arange(6.0).reshape(2, 3).T
    checkpoint = open_bytes(saved({"a": transposed, "b": transposed}))
    assert checkpoint.tensors["a"].storage_key == checkpoint.tensors["b"].storage_key
    assert checkpoint.parameters == 6


def test_two_views_of_one_matrix_have_two_places(open_bytes: Open) -> None:
    square = torch.arange(9.0).reshape(3, 3)
    spans = open_bytes(saved({"a": square, "b": square.T})).tensors
    assert spans["a"].storage_key != spans["b"].storage_key


def test_a_lightning_checkpoint_opens_at_its_state_dict(open_bytes: Open) -> None:
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    file = saved(
        {
            "epoch": 3,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": model.state_dict(),
            "optimizer_states": [optimizer.state_dict()],
            "hyper_parameters": argparse.Namespace(lr=1e-4, betas=(0.9, 0.98)),
        }
    )
    checkpoint = open_bytes(file)
    assert_holds(checkpoint, model.state_dict())
    assert checkpoint.state_path == "state_dict"
    assert checkpoint.others == {
        "epoch": "3",
        "pytorch-lightning_version": "'2.4.0'",
        "optimizer_states": "list of 1",
        "hyper_parameters": "argparse.Namespace (not rebuilt)",
    }


def test_a_fairseq_checkpoint_opens_at_its_model(open_bytes: Open) -> None:
    model = torch.nn.Linear(3, 4).state_dict()
    exp_avg = {0: {"exp_avg": torch.ones(4, 3), "step": 1}, 1: {"exp_avg": torch.ones(4)}}
    args = argparse.Namespace(arch="hubert", model=argparse.Namespace(layers=12))
    file = saved(
        {
            "args": args,
            "cfg": {"model": args, "task": {"labels": ["km"]}},
            "model": model,
            "last_optimizer_state": {"state": exp_avg, "param_groups": [{"lr": 1e-4, "params": [0, 1]}]},
        }
    )
    checkpoint = open_bytes(file)
    assert_holds(checkpoint, model)
    assert checkpoint.state_path == "model"
    assert checkpoint.others == {
        "args": "argparse.Namespace (not rebuilt)",
        "cfg": "dict of 2",
        "last_optimizer_state": "dict of 2",
    }


@pytest.mark.parametrize("kind", odd_tensors())
def test_a_tensor_that_is_no_byte_range_is_told_apart_with_the_reason(kind: str, open_bytes: Open) -> None:
    odd, reason = odd_tensors()[kind]
    plain = torch.ones(2)
    checkpoint = open_bytes(saved({"plain": plain, "odd": odd}))
    assert_holds(checkpoint, {"plain": plain})
    assert checkpoint.unreadable.keys() == {"odd"}
    assert reason in checkpoint.unreadable["odd"]


def test_a_subclass_with_its_own_way_of_pickling_is_told_apart(open_bytes: Open) -> None:
    call = Call(
        Name("torch._tensor", "_rebuild_from_type_v2"), (Name("os", "system"), Name("odd", "Tensor"), ("true",), {})
    )
    assert open_bytes(torch_zip({"a": tensor(), "b": call})).unreadable == {"b": "it is rebuilt by os.system"}


@pytest.mark.parametrize("view", [torch.arange(600.0).reshape(2, 300).T, torch.tensor(1.0).expand(600)], ids=["T", "x"])
def test_a_large_view_that_is_not_contiguous_is_refused_by_name_with_the_way_out(
    view: torch.Tensor, open_bytes: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speechft_merge.checkpoints.strided.LIMIT", 2399)
    with pytest.raises(CheckpointError, match=r"tensor 'conv\.weight' is not contiguous .* call \.contiguous\(\)"):
        open_bytes(saved({"conv.weight": view}))
    assert open_bytes(saved({"conv.weight": view.contiguous()}))


def test_a_huge_expanded_shape_costs_nothing(open_bytes: Open) -> None:
    with pytest.raises(CheckpointError, match="not contiguous"):
        open_bytes(torch_zip({"a": tensor((1 << 62,) * 60, (0,) * 60)}))


def test_storages_of_gpus_and_of_old_torch_open(open_bytes: Open) -> None:
    held = storage("0", 4, Name("torch.cuda", "FloatStorage"))
    old = Call(Name("torch._utils", "_rebuild_tensor"), (storage("0", 4), 1, (3,), (1,)))
    spans = open_bytes(torch_zip({"a": tensor(held=held), "b": old})).tensors
    assert (content(spans["a"]), content(spans["b"])) == (FOUR_FLOATS, FOUR_FLOATS[4:])


# the zip file around it
STATE = {"a": tensor()}


def rewritten(file: bytes, **changes: bytes | None) -> bytes:
    """A zip packed anew, with records replaced, added or (None) left out."""
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        records: dict[str, bytes | None] = {name: archive.read(name) for name in archive.namelist()}
    folder = next(iter(records)).partition("/")[0]
    records |= {f"{folder}/{name.replace('__', '/').replace('_pkl', '.pkl')}": new for name, new in changes.items()}
    return zip_file({name: record for name, record in records.items() if record is not None})


def patched(file: bytes, name: str, offset: int, layout: str, value: int) -> bytes:
    """A field of one record's entry in the central directory, overwritten (APPNOTE.TXT 4.3.12)."""
    at = file.rindex(f"model/{name}".encode()) - 46
    assert file[at : at + 4] == b"PK\x01\x02"
    changed = bytearray(file)
    struct.pack_into(layout, changed, at + offset, value)
    return bytes(changed)


GOOD = torch_zip(STATE)
FLAGS, CRC, PACKED, SIZE, EXTRA, PLACE = 8, 16, 20, 24, 30, 42


def test_a_zip_packed_anew_without_compression_opens(open_bytes: Open) -> None:
    file = saved(VIEWS["plain"])
    assert_holds(open_bytes(rewritten(file)), VIEWS["plain"])
    assert content(open_bytes(GOOD).tensors["a"]) == FOUR_FLOATS


def two_archives() -> bytes:
    return zip_file({"one/data.pkl": pickled(STATE), "two/data.pkl": pickled(STATE), "one/data/0": FOUR_FLOATS})


REFUSED = {
    "a missing record": (rewritten(GOOD, data__0=None), "record data/0 is missing"),
    "a record past the end": (patched(patched(GOOD, "data/0", SIZE, "<I", 999), "data/0", PACKED, "<I", 999), "past"),
    "a record that begins past the end": (patched(GOOD, "data/0", PLACE, "<I", 1 << 30), "outside the file"),
    "a record that begins inside another": (patched(GOOD, "data/0", PLACE, "<I", 4), "overlap"),
    "two records in one place": (patched(GOOD, "data/0", PLACE, "<I", 0), "overlap"),
    "a record where none begins": (patched(GOOD, "data.pkl", PLACE, "<I", 1), "no record begins"),
    "a record that is encrypted": (patched(GOOD, "data/0", FLAGS, "<H", 1), "encrypted"),
    "a pickle that is encrypted": (patched(GOOD, "data.pkl", FLAGS, "<H", 1), "encrypted"),
    "two sizes of one record": (patched(GOOD, "data/0", SIZE, "<I", 15), "compressed"),
    "a wrong checksum of the pickle": (patched(GOOD, "data.pkl", CRC, "<I", 0), "checksum of its data.pkl is wrong"),
    "an entry whose length lies": (patched(GOOD, "data.pkl", EXTRA, "<H", 3), "damaged zip"),
    "another byte order": (rewritten(GOOD, byteorder=b"big"), "big-endian"),
    "a byte order of many bytes": (rewritten(GOOD, byteorder=b"little" * 3), "byteorder has 18 bytes"),
    "two archives in one": (two_archives(), "two records are called 'data.pkl'"),
    "no pickle": (rewritten(GOOD, data_pkl=None), "is a zip file.*not a checkpoint"),
    "an empty pickle": (rewritten(GOOD, data_pkl=b""), "malformed"),
    "an end of archive in the middle": (GOOD[:100] + GOOD[-22:], "damaged zip"),
    "a storage whose type is no type": (torch_zip({"a": tensor(held=storage(kind="Float"))}), "one of torch's"),
    "a storage of another library": (torch_zip({"a": tensor(held=storage(kind=Name("os", "X")))}), "torch's"),
    "a tensor without storage": (torch_zip({"a": tensor(held=3)}), "storage is missing"),
    "more strides than sizes": (torch_zip({"a": tensor((4,), (4, 1))}), "not a valid view"),
    "an offset that is no number": (torch_zip({"a": tensor(offset="0")}), "not a valid view"),
    "a negative offset": (torch_zip({"a": tensor(offset=-1)}), "not a valid view"),
    "an offset past 64 bits": (torch_zip({"a": tensor(offset=1 << 70)}), "not a valid view"),
    "a negative stride": (torch_zip({"a": tensor((2,), (-1,), 3)}), "is not a shape or stride"),
    "a negative size": (torch_zip({"a": tensor((-1,))}), "is not a shape or stride"),
    "a shape of text": (torch_zip({"a": tensor("4")}), "is not a shape or stride"),
    "100 dimensions": (torch_zip({"a": tensor((1,) * 100, (1,) * 100)}), "is not a shape or stride"),
    "a view past its storage": (torch_zip({"a": tensor((5,))}), "'a' reaches past the end of its storage"),
    "a view that starts past it": (torch_zip({"a": tensor((1,), (1,), 4)}), "past the end of its storage"),
    "a view that steps past it": (torch_zip({"a": tensor((2,), (4,))}), "past the end of its storage"),
    "a view that steps far past it": (torch_zip({"a": tensor((2,), (1 << 62,))}), "past the end of its storage"),
    "a huge view": (torch_zip({"a": tensor((1 << 40, 1 << 40), (1 << 40, 1))}), "past the end of its storage"),
    "a storage that claims more than it holds": (torch_zip({"a": tensor((8,), held=storage(count=8))}), "past the end"),
    "too few arguments": (torch_zip(Call(Name("torch._utils", "_rebuild_tensor_v2"), (storage(),))), "malformed"),
    "a name that is half a surrogate pair": (torch_zip({"\ud800": tensor()}), "weights"),
    "a negative count": (torch_zip({"a": tensor(held=storage(count=-4))}), "expected one of torch's"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_zip_that_lies_is_refused(file: bytes, reason: str, open_bytes: Open) -> None:
    with pytest.raises(CheckpointError, match=reason):
        open_bytes(file)


def test_every_refusal_of_a_zip_names_the_file(open_bytes: Open) -> None:
    assert [why for why, (file, _) in REFUSED.items() if not names_the_file(open_bytes, file)] == []


@pytest.mark.parametrize("record", ["data.pkl", "data/0"])
def test_a_compressed_record_is_refused_with_the_way_out(record: str, open_bytes: Open) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, part in {"data.pkl": pickled(STATE), "data/0": FOUR_FLOATS}.items():
            packing = zipfile.ZIP_DEFLATED if name == record else zipfile.ZIP_STORED
            archive.writestr(f"model/{name}", part, packing)
    with pytest.raises(CheckpointError, match=rf"'model/{record}' is compressed.*zip -0"):
        open_bytes(buffer.getvalue())


def test_a_view_may_end_where_its_storage_ends(open_bytes: Open) -> None:
    spans = open_bytes(torch_zip({"a": tensor((2,), (3,)), "b": tensor((1,), (9,), 3), "c": tensor((0, 9), (9, 9), 9)}))
    assert [content(span) for span in spans.tensors.values()] == [
        FOUR_FLOATS[:4] + FOUR_FLOATS[12:],
        FOUR_FLOATS[12:],
        b"",
    ]


def test_the_stride_of_a_dimension_of_one_does_not_matter(open_bytes: Open) -> None:
    span = open_bytes(torch_zip({"a": tensor((1, 2), (1 << 62, 2))})).tensors["a"]
    assert content(span) == FOUR_FLOATS[:4] + FOUR_FLOATS[8:12]


def test_a_pickle_above_the_bound_is_refused(open_bytes: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechft_merge.checkpoints.torch_zip.MAX_PICKLE", 10)
    with pytest.raises(CheckpointError, match=r"its data\.pkl has \d+ bytes, at most 10 are allowed"):
        open_bytes(GOOD)


def test_a_zip_cut_short_anywhere_is_refused(open_bytes: Open) -> None:
    for length in range(0, len(GOOD), 3):
        with pytest.raises(CheckpointError):
            open_bytes(GOOD[:length])


def test_a_large_file_cut_short_is_refused(open_bytes: Open) -> None:
    file = saved({"a": torch.zeros(50_000)})
    for part in range(20):
        with pytest.raises(CheckpointError):
            open_bytes(file[: len(file) * part // 20])


def test_a_pickle_torn_out_of_its_folder_is_refused(open_bytes: Open) -> None:
    with pytest.raises(CheckpointError, match=r"is a zip file.*not a checkpoint"):
        open_bytes(zip_file({"data.pkl": pickled(STATE), "data/0": FOUR_FLOATS}))


# over a network
class Distant(LocalFile):
    """A file of which every read is a request."""

    seeks_cheaply = False
    requests = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.requests += 1
        super().read_into(offset, buffer)


def distant(file: bytes, folder: Path) -> tuple[TorchFile, TorchFile, int]:
    """What is found in a file nearby, in the same far away, and with how many requests."""
    path = folder / "weights"
    path.write_bytes(file)
    source = Distant(path)
    return read_torch_zip(LocalFile(path)), read_torch_zip(source), source.requests


@pytest.mark.parametrize("tensors", VIEWS.values(), ids=VIEWS)
def test_records_far_away_lie_where_they_do_nearby(tensors: Tensors, tmp_path: Path) -> None:
    for file in (saved(tensors), rewritten(saved(tensors))):
        near, far, _ = distant(file, tmp_path)
        assert near.records == far.records


def test_records_far_away_are_not_asked_for_one_by_one(tmp_path: Path) -> None:
    few, many = (saved({f"layer.{i}": torch.ones(1) for i in range(count)}) for count in (2, 200))
    assert distant(many, tmp_path)[2] <= distant(few, tmp_path)[2] + 2


def spaced() -> bytes:
    """A zip file with a gap between two records, which zip allows."""
    pair = {"a": tensor(), "b": tensor(held=storage("1"))}
    file = torch_zip(pair, {"data/0": FOUR_FLOATS, "data/1": FOUR_FLOATS[::-1]})
    at = file.index(b"PK\x03\x04", file.index(FOUR_FLOATS))
    file = file[:at] + b"gap gap " + file[at:]
    file = patched(file, "data/1", PLACE, "<I", at + 8)
    (directory,) = struct.unpack("<I", file[-6:-2])
    return file[:-6] + struct.pack("<I", directory + 8) + file[-2:]


def without_signature() -> bytes:
    """A zip file whose last record has its sizes after it, without the four bytes that may stand before them."""
    at = GOOD.index(b"PK\x01\x02")
    file = GOOD[:at] + bytes(12) + GOOD[at:]
    file = patched(file, "data/0", FLAGS, "<H", 8)
    (directory,) = struct.unpack("<I", file[-6:-2])
    return file[:-6] + struct.pack("<I", directory + 12) + file[-2:]


@pytest.mark.parametrize("file", [spaced(), without_signature()], ids=["a gap", "no signature"])
def test_records_that_torch_would_place_otherwise_are_found_far_away_too(file: bytes, tmp_path: Path) -> None:
    near, far, _ = distant(file, tmp_path)
    assert near.source.read(*near.records["data/0"]) == FOUR_FLOATS
    assert near.records == far.records


# zip files that are something else
def torchscript(module: torch.nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    return buffer.getvalue()


def numpy_archive(write: Any, arrays: int) -> bytes:
    buffer = io.BytesIO()
    write(buffer, **{f"k{i}": np.ones(3) for i in range(arrays)})
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")  # from torch 2.14 on
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("module", [torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.GELU())])
def test_a_torchscript_program_is_told_from_a_checkpoint(module: torch.nn.Module, open_bytes: Open) -> None:
    with pytest.raises(CheckpointError, match=r"is a TorchScript program; python -c .*torch\.jit\.load"):
        open_bytes(torchscript(module))


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("arrays", [1, 2])
def test_a_numpy_archive_is_told_from_a_checkpoint(write: Any, arrays: int, open_bytes: Open) -> None:
    with pytest.raises(CheckpointError, match="npz"):
        open_bytes(numpy_archive(write, arrays))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("records", [1, 2])
def test_any_other_zip_is_told_from_a_checkpoint(compression: int, records: int, open_bytes: Open) -> None:
    file = zip_file({f"page {i}.txt": b"text " * 9 for i in range(records)}, compression)
    with pytest.raises(CheckpointError, match=r"is a zip file.*not a checkpoint that torch"):
        open_bytes(file)


def test_an_empty_zip_is_refused(open_bytes: Open) -> None:
    with pytest.raises(SpeechFTMergeError):
        open_bytes(zip_file({}))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_module_is_refused_with_the_way_out(legacy: bool, open_bytes: Open) -> None:
    file = saved(torch.nn.Sequential(torch.nn.Linear(2, 2)), legacy=legacy)
    with pytest.raises(CheckpointError, match=r"pickled torch\.nn\.modules\.container\.Sequential .*\.state_dict\(\)"):
        open_bytes(file)


# where the archive keeps the checksums
class Stream(io.BytesIO):
    """Where no zip program can go back to the header: it puts the CRC behind the data."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise io.UnsupportedOperation

    def tell(self) -> int:
        raise io.UnsupportedOperation


def streamed(zip64: bool) -> bytes:
    file = Stream()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in (("data.pkl", pickled({"a": 1})), ("data/0", b"x" * 100), ("version", b"3\n")):
            with archive.open(f"archive/{name}", "w", force_zip64=zip64) as record:
                record.write(data)
    return file.getvalue()


ZIPS = {
    "torch": saved({"a": torch.arange(50.0), "b": torch.arange(3), "c": torch.empty(0)}),
    "python": torch_zip({"a": 1}, {"0": b"x" * 100}),
    "streamed": streamed(zip64=False),
    "streamed with 8-byte sizes": streamed(zip64=True),
    "behind something else": b"#!/bin/sh\n" + torch_zip({"a": 1}, {"0": b"x" * 100}),
}


@pytest.mark.parametrize("kind", ZIPS)
def test_the_offsets_of_every_checksum_are_found(kind: str, tmp_path: Path) -> None:
    """Two each: in the directory, and before or behind the data."""
    path = tmp_path / "file"
    path.write_bytes(ZIPS[kind])
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        data = {name: archive.read(name) for name in entries}
    records, _ = read_records(LocalFile(path))
    assert len(records) == len(entries)
    for record, (name, entry) in zip(records, entries.items(), strict=True):
        assert ZIPS[kind][record.offset : record.end] == data[name]
        crcs = [struct.unpack_from("<L", ZIPS[kind], offset)[0] for offset in record.crc_offsets]
        assert crcs == [entry.CRC] * 2
