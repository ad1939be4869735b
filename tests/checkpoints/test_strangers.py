"""Files and folders that are no checkpoint: what they are, and what makes them readable; never a wrong word."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import torch

from speechft_merge import open_checkpoint
from speechft_merge.checkpoints.opening import other_weights
from speechft_merge.errors import CheckpointError, NotFoundError

FOLDERS: dict[str, tuple[list[str], str]] = {
    "DeepSpeed's top": (["latest", "zero_to_fp32.py", "global_step9/x"], "DeepSpeed.*zero_to_fp32"),
    "DeepSpeed's ranks": (["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"], "DeepSpeed.*zero_to_fp32"),
    "ZeRO's shards": (["bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"], "DeepSpeed.*zero_to_fp32"),
    "distributed": (["__0_0.distcp", ".metadata"], "torch.distributed.checkpoint.*dcp_to_torch"),
    "accelerate's FSDP": (["pytorch_model_fsdp_0/__0_0.distcp", "trainer_state.json"], "dcp_to_torch"),
    "fairseq's FSDP": (["checkpoint_last-shard0.pt", "checkpoint_last-shard1.pt"], "consolidate_fsdp_shards"),
    "Flax": (["flax_model.msgpack", "config.json"], "Flax only.*from_flax"),
    "TensorFlow": (["tf_model.h5"], "TensorFlow only.*from_tf"),
    "ONNX": (["model.onnx"], "ONNX.*exported from"),
    "whisper.cpp": (["ggml-base.gguf"], "whisper.cpp.*converted from"),
    "a Trainer's": (
        ["checkpoint-90/model.safetensors", "checkpoint-400/x", "runs/y"],
        "give the last one, .*checkpoint-400$",
    ),
    "accelerate's": (["checkpoint_2/x", "checkpoint_10/x"], "give the last one, .*checkpoint_10$"),
    "SpeechBrain's": (
        ["CKPT+2025-01-02+12-00-00+00/w.ckpt", "CKPT+2025-01-01+12-00-00+01/w.ckpt"],
        r"give the last one, .*CKPT\+2025-01-02\+12-00-00\+00$",
    ),
    "epochs": (["epoch9/m.pt", "epoch10/m.pt", "logs/x"], "found epoch9, epoch10; give the last one, .*epoch10$"),
    "numbers only": (["30/m.pt", "200/m.pt"], "give the last one, .*200$"),
    "names only": (["best/model.safetensors", "last/model.safetensors"], "give one of them, such as .*last$"),
    "Lightning's": (["lightning_logs/version_0/checkpoints/a.ckpt"], "give .*lightning_logs/version_0/checkpoints$"),
    "Lightning's of DeepSpeed": (
        ["step=100.ckpt/zero_to_fp32.py", "step=100.ckpt/latest"],
        "step=100.ckpt holds .*zero_to",
    ),
    "NeMo 2": (["context/io.json", "weights/__0_0.distcp", "weights/common.pt"], "weights holds .*dcp_to_torch"),
    "Megatron": (
        ["iter_0000100/mp_rank_00/model_optim_rng.pt", "latest_checkpointed_iteration.txt"],
        "Megatron.*convert",
    ),
    "Megatron's distributed": (["__0_0.distcp", "common.pt", "metadata.json"], "dcp_to_torch"),
    "an adapter's checkpoints": (
        ["checkpoint-5/adapter_model.safetensors", "checkpoint-10/adapter_model.safetensors"],
        "give the last one, .*checkpoint-10$",
    ),
    "parts": (["consolidated.00.pth", "consolidated.01.pth"], "parts of one model.*join them"),
    "ranks": (["model_rank0.pt", "model_rank1.pt"], "parts of one model.*join them"),
    "a shard lost": (["m-00001-of-00003.bin", "m-00003-of-00003.bin"], "missing: m-00002-of-00003.bin; copy the index"),
    "shards and more": (
        ["m-00001-of-00002.bin", "m-00002-of-00002.bin", "x.pt"],
        "2 shards .*found x.pt; copy the index",
    ),
    "exports in a folder": (["onnx/model.onnx", "config.json"], "exported from"),
    "a cache": (["refs/main", "snapshots/0123/model.safetensors", "blobs/0123"], "cache of huggingface_hub.*org/name"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_is_explained_and_nobody_is_told_to_name_a_part(kind: str, tmp_path: Path) -> None:
    names, told = FOLDERS[kind]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(NotFoundError, match=told) as refused:
        open_checkpoint(tmp_path)
    assert "name one of them" not in str(refused.value)


@pytest.mark.parametrize("name", ["net.t7", "net.pkl", "net.tar"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_torch_under_another_suffix_is_offered(name: str, zipped: bool, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e words")
    with pytest.raises(NotFoundError, match=r"holds no weights \(expected"):
        open_checkpoint(tmp_path)
    torch.save({"a.weight": torch.ones(2)}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    with pytest.raises(NotFoundError, match=f"name that file, .*/{name}$"):
        open_checkpoint(tmp_path)
    torch.save({}, tmp_path / "older.t7")
    with pytest.raises(NotFoundError, match="name the file that holds them"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model_best.pth.tar", "best.model", "last.th"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_tokenizer_is_no_candidate_beside_a_file_of_torch(name: str, zipped: bool, tmp_path: Path) -> None:
    (tmp_path / "spm.model").write_bytes(b"\n\x0e words")
    torch.save({"a.weight": torch.ones(2)}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.file == name
        assert other_weights(checkpoint) == []
    torch.save({"a.weight": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(NotFoundError, match=f"2 candidates for the weights: {name}, other.pt; name one of them"):
        open_checkpoint(tmp_path)


STACK = {f"model.encoder.layers.{i}.{part}.weight": torch.ones(4, 4) for i in range(2) for part in ("fc1", "fc2")}
SPEECHBRAIN: dict[str, dict[str, torch.Tensor]] = {
    "wav2vec2.ckpt": STACK,
    "model.ckpt": {"0.linear.w.weight": torch.ones(90, 90), "1.w.weight": torch.ones(9, 9)},
    "wav2vec_opt.ckpt": {"exp_avg": torch.ones(9, 9)},
    "tokenizer.ckpt": {},
}


def test_the_one_file_with_an_encoder_is_opened_of_a_folder_of_speechbrain(tmp_path: Path) -> None:
    for name, weights in SPEECHBRAIN.items():
        torch.save(weights, tmp_path / name)
    for name in ("brain.ckpt", "counter.ckpt"):
        (tmp_path / name).write_text("step: 5")
    (tmp_path / "optimizer.ckpt").write_bytes(b"x")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.file == "wav2vec2.ckpt"
    decoder = {name.replace("encoder", "decoder"): tensor for name, tensor in STACK.items()}
    torch.save(decoder, tmp_path / "decoder.ckpt")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.file == "wav2vec2.ckpt"
    torch.save(STACK, tmp_path / "enc.ckpt")
    listed = "5 candidates for the weights: model.ckpt, wav2vec_opt.ckpt, decoder.ckpt, enc.ckpt, wav2vec2.ckpt; name"
    with pytest.raises(NotFoundError, match=listed):
        open_checkpoint(tmp_path)


def test_other_files_beside_candidates_tell_nothing(tmp_path: Path) -> None:
    for name in ("feats_stats.npz", "1epoch.pth", "valid.acc.ave.pth", "decoder.onnx", "old/x.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(NotFoundError, match=r"2 candidates .*1epoch\.pth, valid\.acc\.ave\.pth; name one of them"):
        open_checkpoint(tmp_path)


def test_the_search_for_folders_of_weights_ends(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"a{number:03}/b/c/d").mkdir(parents=True)
    (tmp_path / "a299/model.pt").write_bytes(b"x")
    with pytest.raises(NotFoundError, match=r"holds no weights \(expected"):
        open_checkpoint(tmp_path)


def packed(mode: str, member: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        archive.addfile(tarfile.TarInfo(member), io.BytesIO())
    return buffer.getvalue()


FILES: dict[str, tuple[str, bytes, str]] = {
    "NeMo, without weights": (
        "a.nemo",
        packed("w", "./model_config.yaml"),
        "no file .*found model_config.yaml.*tar -xf",
    ),
    "NeMo, packed": (
        "a.nemo",
        packed("w:gz", "./model_config.yaml"),
        "compressed.*tar -xzf.*gunzip -c .*a.nemo > new.nemo",
    ),
    "torch before 0.4": ("a.pt", packed("w", "sys_info"), "torch before 0.4"),
    "another archive": ("a.tar", packed("w", "model/weights.pt"), "is a tar archive with no file.*unpack it"),
    "CTranslate2": ("model.bin", b"\x06\0\0\0" + b"x" * 600, "CTranslate2.*converted from"),
    "GGML": ("ggml-base.bin", b"lmgg" + b"x" * 600, "GGML.*converted from"),
    "ONNX": ("a.onnx", b"\x08\x07" + b"x" * 600, "ONNX.*exported from"),
    "OpenVINO": ("openvino_model.xml", b"<?xml version" + b"x" * 600, "OpenVINO.*exported from"),
    "Flax": ("flax_model.msgpack", b"\x84\xa5model" + b"x" * 600, "Flax only.*from_flax"),
    "TensorFlow": ("tf_model.h5", b"\x89HDF\r\n\x1a\n" + b"x" * 600, "TensorFlow only.*from_tf"),
    "HDF5 of any name": ("weights.bin", b"\x89HDF\r\n\x1a\n" + b"x" * 600, "HDF5"),
    "an array": ("weights.npy", b"\x93NUMPY\x01\0" + b"x" * 600, "arrays of numpy.*numpy.load"),
    "a pointer to an archive": ("a.nemo", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_explained(kind: str, tmp_path: Path) -> None:
    name, content, told = FILES[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=told):
        open_checkpoint(tmp_path / name)


RANKS = {
    "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt": "DeepSpeed.*zero_to_fp32",
    "__0_0.distcp": "dcp_to_torch",
    "net_rank0.pt": "parts of one model.*join them",
}


@pytest.mark.parametrize("name", RANKS)
def test_one_rank_without_a_model_is_told_as_such(name: str, tmp_path: Path) -> None:
    with (tmp_path / name).open("wb") as file:
        torch.save({"optimizer_state_dict": {"fp32_flat_groups": [torch.ones(9)]}}, file)
    with pytest.raises(CheckpointError, match=f"holds no state dict.*looks like.*{RANKS[name]}"):
        open_checkpoint(tmp_path / name)


def test_one_rank_of_deepspeed_beside_its_optimizer_is_opened(tmp_path: Path) -> None:
    torch.save({"module": {"a.weight": torch.ones(2)}}, tmp_path / "mp_rank_00_model_states.pt")
    (tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"x")
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["a.weight"]
