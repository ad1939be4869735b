"""Files and folders that are no checkpoint: what they are, and what makes them readable; never a wrong word."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import torch

from speechft_merge import open_checkpoint
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
    "NeMo": (["asr.nemo"], "NeMo archive.*model_weights.ckpt"),
    "an adapter": (["adapter_model.safetensors", "adapter_config.json"], "an adapter .PEFT.*merge_and_unload"),
    "a Trainer's": (
        ["checkpoint-90/model.safetensors", "checkpoint-400/x", "runs/y"],
        "give the last one, .*checkpoint-400$",
    ),
    "accelerate's": (["checkpoint_2/x", "checkpoint_10/x"], "give the last one, .*checkpoint_10$"),
    "another suffix": (["model_best.pth.tar", "log.txt"], "if model_best.pth.tar holds them, name that file"),
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


def packed(mode: str, member: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        archive.addfile(tarfile.TarInfo(member), io.BytesIO())
    return buffer.getvalue()


FILES: dict[str, tuple[str, bytes, str]] = {
    "NeMo, plain": ("a.nemo", packed("w", "./model_config.yaml"), "NeMo archive.*tar -xf"),
    "NeMo, packed": ("a.nemo", packed("w:gz", "./model_config.yaml"), "NeMo archive.*tar -xf"),
    "torch before 0.4": ("a.pt", packed("w", "sys_info"), "torch before 0.4"),
    "another archive": ("a.tar", packed("w", "model/weights.pt"), "is a tar archive: unpack it"),
    "CTranslate2": ("model.bin", b"\x06\0\0\0" + b"x" * 600, "CTranslate2.*converted from"),
    "GGML": ("ggml-base.bin", b"lmgg" + b"x" * 600, "GGML file.*converted from"),
    "ONNX": ("a.onnx", b"\x08\x07" + b"x" * 600, "ONNX model.*exported from"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_explained(kind: str, tmp_path: Path) -> None:
    name, content, told = FILES[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=told):
        open_checkpoint(tmp_path / name)


def test_one_rank_of_deepspeed_beside_its_optimizer_is_opened(tmp_path: Path) -> None:
    torch.save({"module": {"a.weight": torch.ones(2)}}, tmp_path / "mp_rank_00_model_states.pt")
    (tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"x")
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["a.weight"]
