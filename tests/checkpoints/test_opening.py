import gc
import gzip
import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch
from container_files import Open, Tensors, assert_holds, content, pickled, saved, zip_file
from safetensors.torch import save

from speechft_merge.checkpoints import open_checkpoint
from speechft_merge.checkpoints.companions import read_companion_json
from speechft_merge.errors import CheckpointError, NotFoundError, SpeechFTMergeError

A, B = {"a": torch.arange(3.0)}, {"b": torch.arange(4)}
FILES = {"safetensors": save(A), "torch zip": saved(A), "torch legacy": saved(A, legacy=True)}
SHARDED = b'{"weight_map": {"a": "shard-1"}}'


def filled(folder: Path, *names: str, content: bytes = FILES["safetensors"]) -> str:
    for name in names:
        (folder / name).write_bytes(content)
    return str(folder)


def opened(folder: Path | str) -> Tensors:
    """What is found there: A or B."""
    names = open_checkpoint(str(folder)).tensors.keys()
    return next(tensors for tensors in (A, B) if tensors.keys() == names)


# which file of a directory
USUAL = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"]


@pytest.mark.parametrize(("first", "second"), [(a, b) for i, a in enumerate(USUAL) for b in USUAL[i + 1 :]])
def test_usual_names_are_looked_for_in_transformers_order(first: str, second: str, tmp_path: Path) -> None:
    filled(tmp_path, "shard-1", "other.safetensors")
    filled(tmp_path, second, content=b"not opened")
    (tmp_path / first).write_bytes(SHARDED if first.endswith("json") else FILES["safetensors"])
    assert opened(tmp_path) is A


@pytest.mark.parametrize("name", ["any.safetensors", "any.bin", "checkpoint_best.pt", "wav2vec.pth", "last.ckpt"])
@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_one_file_under_another_name_is_taken(name: str, file: bytes, tmp_path: Path) -> None:
    filled(tmp_path, "config.json", "vocab.txt", "README.md", "weights.txt", content=b"other")
    filled(tmp_path, name, content=file)
    assert opened(tmp_path) is A


@pytest.mark.parametrize("name", ["model.fp16.safetensors.index.json", "x.bin.index.json"])
def test_one_index_under_another_name_goes_before_its_shards(name: str, tmp_path: Path) -> None:
    filled(tmp_path, "shard-1", "model-1.safetensors", "model-2.safetensors")
    filled(tmp_path, name, content=SHARDED)
    assert opened(tmp_path) is A


def test_of_several_candidates_none_is_taken_and_all_are_named(tmp_path: Path) -> None:
    folder = filled(tmp_path, "epoch1.pt", "epoch2.pt", "last.ckpt")
    with pytest.raises(NotFoundError, match=r"3 candidates .* epoch1\.pt, epoch2\.pt, last\.ckpt; name one of them"):
        open_checkpoint(folder)
    assert opened(tmp_path / "epoch2.pt") is A


def test_of_very_many_candidates_some_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as refusal:
        open_checkpoint(filled(tmp_path, *(f"epoch{i:03}.pt" for i in range(100))))
    assert "holds 100 candidates" in str(refusal.value)
    assert "epoch099.pt" not in str(refusal.value)


LEFT_BY_TRAINING = [
    "training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth",
    "rng_state_0.pth", "random_states_0.pkl", "trainer_state.json",
]  # fmt: skip


def test_what_training_leaves_behind_is_passed_over(tmp_path: Path) -> None:
    filled(tmp_path, *LEFT_BY_TRAINING, content=b"not opened")
    with pytest.raises(NotFoundError, match="holds no weights"):
        open_checkpoint(str(tmp_path))
    filled(tmp_path, "anything.pt")
    assert opened(tmp_path) is A


def test_what_training_leaves_behind_opens_when_it_is_named(tmp_path: Path) -> None:
    assert opened(filled(tmp_path, "optimizer.pt") + "/optimizer.pt") is A


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_is_opened_where_it_is_alone(name: str, tmp_path: Path) -> None:
    assert opened(filled(tmp_path, "adapter_config.json", "optimizer.pt", name)) is A


def test_an_adapter_beside_a_model_is_passed_over(tmp_path: Path) -> None:
    assert opened(filled(tmp_path, "adapter_model.safetensors", "model.safetensors")) is A


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"holds no weights \(expected model\.safetensors, .*found nothing$"):
        open_checkpoint(str(tmp_path))


def test_a_directory_without_weights_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"found config\.json, vocab\.txt$"):
        open_checkpoint(filled(tmp_path, "vocab.txt", "config.json"))


def test_weights_in_a_sub_folder_are_not_searched_for(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-500").mkdir()
    filled(tmp_path / "checkpoint-500", "model.safetensors")
    with pytest.raises(NotFoundError, match="holds no weights"):
        open_checkpoint(str(tmp_path))


def test_a_folder_named_like_a_weights_file_is_no_weights_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(NotFoundError, match="holds no weights"):
        open_checkpoint(str(tmp_path))
    assert opened(filled(tmp_path, "pytorch_model.bin")) is A


@pytest.mark.parametrize("given", ["", "/", "/model.safetensors", "/./model.safetensors"])
def test_a_checkpoint_knows_its_folder(given: str, tmp_path: Path) -> None:
    filled(tmp_path, "config.json", "model.safetensors")
    checkpoint = open_checkpoint(f"{tmp_path}{given}")
    assert checkpoint.reference == f"{tmp_path}{given}"
    assert checkpoint.folder is not None
    assert checkpoint.folder.names() == ["config.json", "model.safetensors"]


def test_a_relative_path_and_a_home_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, "model.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for reference in (".", "./", "./model.safetensors", "model.safetensors", "~", "~/model.safetensors"):
        assert opened(reference) is A


# what a file is
@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt", ".txt", ""])
@pytest.mark.parametrize("container", FILES)
def test_the_container_is_told_by_the_bytes_not_by_the_name(container: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(FILES[container])
    checkpoint = open_checkpoint(str(path))
    assert checkpoint.container == container
    assert_holds(checkpoint, A)


def numpy_file() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    return buffer.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 377569754\n"
OTHERS = {
    "an empty file": (b"", "is no checkpoint.*found nothing"),
    "one byte": (b"\0", "is no checkpoint"),
    "a Git LFS pointer": (POINTER, "looks like a Git LFS pointer, not the file itself; git lfs pull"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), r"is weights of TensorFlow only \(HDF5\)"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(100), "is a model of whisper.cpp"),
    "gzip": (gzip.compress(FILES["safetensors"]), "is a compressed archive.*gunzip -c"),
    "bzip2": (b"BZh91AY&SY" + bytes(20), "is compressed; unpack it first"),
    "xz": (b"\xfd7zXZ\0" + bytes(20), "is compressed; unpack it first"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(20), "is compressed; unpack it first"),
    "numpy": (numpy_file(), "is arrays of numpy; python -c"),
    "HTML": (b"<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
    "HTML with a mark": (b"\xef\xbb\xbf<html><body>404</body></html>", "is a web page"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
    "JSON": (b'{"error": "not found"}', "is no checkpoint.*found JSON"),
    "a JSON list": (b'  ["not", "found"]', "is no checkpoint.*found JSON"),
    "a plain pickle": (pickled({"a": 1}), "is a pickle, but not one that torch.save wrote; pickles are never executed"),
    "text": (b"Entry not found", "is no checkpoint.*found b'Entry no' at its start"),
    "zeros": (bytes(1000), "is no checkpoint: expected safetensors or what torch.save writes"),
}


@pytest.mark.parametrize(("file", "reason"), OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "x.pt"])
def test_another_kind_of_file_is_refused_for_what_it_is(file: bytes, reason: str, name: str, tmp_path: Path) -> None:
    folder = filled(tmp_path, name, content=file)
    with pytest.raises(CheckpointError, match=f"{name} {reason}"):
        open_checkpoint(folder)


@pytest.mark.parametrize("length", range(1, 9))
def test_a_few_bytes_of_a_checkpoint_are_refused(length: int, open_bytes: Open) -> None:
    for file in FILES.values():
        with pytest.raises(CheckpointError):
            open_bytes(file[:length])


# what a path leads to
NOWHERE = ["nothing", "nothing/model.safetensors", "a\0b", "x" * 300, "x/" * 3000, "~nobody-of-this-name/x"]


@pytest.mark.parametrize("name", NOWHERE, ids=range(len(NOWHERE)))
@pytest.mark.parametrize("inside", [True, False])
def test_a_path_to_nothing_is_refused(name: str, inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpeechFTMergeError):
        open_checkpoint(f"{tmp_path}/{name}" if inside else f"./{name}" if name[0] != "~" else name)


def test_a_path_through_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpeechFTMergeError):
        open_checkpoint(filled(tmp_path, "model.safetensors") + "/model.safetensors/x")


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(NotFoundError, match="is not a regular file"):
        open_checkpoint(str(tmp_path / "model.safetensors"))
    with pytest.raises(NotFoundError, match="holds no weights"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero"])
def test_a_device_is_refused(device: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(device)
    with pytest.raises(NotFoundError, match="is not a regular file"):
        open_checkpoint(str(tmp_path / "model.safetensors"))
    with pytest.raises(NotFoundError, match="holds no weights"):
        open_checkpoint(str(tmp_path))


def test_links_as_in_a_hub_cache_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abcd"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    filled(blobs, "9f86d081")
    (snapshot / "model.safetensors").symlink_to("../../blobs/9f86d081")
    (snapshot / "config.json").symlink_to("../../blobs/gone")
    checkpoint = open_checkpoint(str(snapshot))
    assert_holds(checkpoint, A)
    assert checkpoint.folder is not None
    assert checkpoint.folder.names() == ["model.safetensors"]
    (tmp_path / "latest").symlink_to(snapshot)
    assert opened(tmp_path / "latest") is A


def test_shards_that_are_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    filled(tmp_path, "blob")
    filled(tmp_path / "model", "model.safetensors.index.json", content=SHARDED)
    (tmp_path / "model" / "shard-1").symlink_to("../blob")
    assert opened(tmp_path / "model") is A


@pytest.mark.parametrize("target", ["gone", "model.safetensors"])
def test_a_link_to_nothing_is_refused(target: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(target)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(NotFoundError):
            open_checkpoint(str(path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything; cli/test_entry.py has a way around it")
@pytest.mark.parametrize("closed", ["model.safetensors", "."])
def test_what_may_not_be_read_is_refused(closed: str, tmp_path: Path) -> None:
    path = tmp_path / "model" / "model.safetensors"
    path.parent.mkdir()
    filled(path.parent, path.name)
    (path.parent / closed).chmod(0)
    try:
        for reference in (path, path.parent):
            with pytest.raises(NotFoundError):
                open_checkpoint(str(reference))
    finally:
        (path.parent / closed).chmod(0o700)


# a file that changes while it is open
@pytest.mark.parametrize("container", FILES)
def test_a_file_cut_short_after_it_was_opened_is_refused_when_it_is_read(container: str, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(FILES[container])
    span = open_checkpoint(str(path)).tensors["a"]
    os.truncate(path, span.offset + span.nbytes - 1)
    with pytest.raises(CheckpointError, match=r"ended at byte \d+; it had \d+ bytes when it was opened"):
        content(span)


def test_a_file_replaced_after_it_was_opened_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(save(A))
    checkpoint = open_checkpoint(str(path))
    (tmp_path / "new").write_bytes(save(B))
    (tmp_path / "new").rename(path)
    assert_holds(checkpoint, A)


def test_a_checkpoint_can_be_closed_twice(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(filled(tmp_path, "model.safetensors"))
    checkpoint.close()
    checkpoint.close()
    with pytest.raises(SpeechFTMergeError):
        content(checkpoint.tensors["a"])


# descriptors
def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def damaged_shard(folder: Path) -> str:
    """One of four is cut short; those before it are open by then."""
    files = {f"shard-{i}": save({f"t{i}": torch.ones(3)}) for i in range(4)}
    for name, file in (files | {"shard-2": files["shard-2"][:-5]}).items():
        filled(folder, name, content=file)
    return indexed(folder, {f"t{i}": f"shard-{i}" for i in range(4)})


def indexed(folder: Path, weight_map: object) -> str:
    return filled(folder, USUAL[1], content=json.dumps({"weight_map": weight_map}).encode())


def shards_that_overlap(folder: Path) -> str:
    filled(folder, "one", "two")
    return indexed(folder, {"a": "one", "b": "two"})


def hostile_pickle(folder: Path) -> str:
    return filled(folder, "x.pt", content=zip_file({"x/data.pkl": b"\x80\x02" + b"(" * 100 + b"R."}))


BAD: dict[str, Callable[[Path], str]] = {
    "a damaged shard": damaged_shard,
    "shards that overlap": shards_that_overlap,
    "a shard of no known kind": lambda folder: indexed(Path(filled(folder, "s", content=b"text")), {"a": "s"}),
    "no index": lambda folder: indexed(folder, None),
    "an index without its shards": lambda folder: indexed(folder, {"a": "s"}),
    "a hostile pickle": hostile_pickle,
    "no tensors": lambda folder: filled(folder, "model.safetensors", content=save({})),
    "half a letter": lambda folder: filled(folder, "x.pt", content=saved({"\ud800": torch.ones(3)})),
    **{
        f"{container} cut short": lambda folder, file=file: filled(folder, "x.pt", content=file[:-5])
        for container, file in FILES.items()
    },
    "an empty file": lambda folder: filled(folder, "x.pt", content=b""),
}


@pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")
@pytest.mark.parametrize("bad", BAD)
def test_a_failed_opening_leaves_no_file_open(bad: str, tmp_path: Path) -> None:
    """Though nothing collects the files: the errors, and with them the frames, are kept."""
    reference = BAD[bad](tmp_path)
    kept: list[BaseException] = []
    gc.disable()
    try:
        before = descriptors()
        for _ in range(5):
            with pytest.raises(SpeechFTMergeError) as failure:
                open_checkpoint(reference)
            kept.append(failure.value)
        assert descriptors() == before
    finally:
        gc.enable()
    assert len(kept) == 5


@pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")
@pytest.mark.parametrize("shards", [False, True])
def test_a_checkpoint_closes_its_files_on_exit(shards: bool, tmp_path: Path) -> None:
    reference = filled(tmp_path, "model.safetensors")
    if shards:
        (tmp_path / "model.safetensors").rename(tmp_path / "one")
        filled(tmp_path, "two", content=save(B))
        indexed(tmp_path, {"a": "one", "b": "two"})
    before = descriptors()
    with open_checkpoint(reference) as checkpoint:
        assert descriptors() == before + 1 + shards
    assert descriptors() == before
    with pytest.raises(SpeechFTMergeError):
        content(checkpoint.tensors["a"])


@pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")
def test_a_companion_that_cannot_be_read_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, "model.safetensors", "config.json")
    monkeypatch.setattr("speechft_merge.checkpoints.companions.MAX_SIZE", 10)
    with open_checkpoint(str(tmp_path)) as checkpoint:
        before = descriptors()
        with pytest.raises(CheckpointError, match="more than 10 bytes") as failure:
            read_companion_json(checkpoint, "config.json")
        assert descriptors() == before
    assert failure.value


def test_a_checkpoint_cannot_be_changed(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(filled(tmp_path, "model.safetensors"))
    with pytest.raises(FrozenInstanceError):
        checkpoint.file = "other"  # type: ignore[misc]
    assert checkpoint.file == "model.safetensors"
