"""Explains files and folders that are no checkpoint to read: what they are, and what makes them readable."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from speechft_merge.errors import NotFoundError

if TYPE_CHECKING:
    from speechft_merge.sources import Folder

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")

_NUMBERED = re.compile(r"(?:checkpoint|epoch|step|CKPT)[-_+].*?(\d+)?\D*")
"""Folders in which trainers leave checkpoints: transformers' Trainer, accelerate, SpeechBrain."""

_TORCH_SUFFIXES = (".tar", ".model", ".th", ".t7", ".pkl")
"""Suffixes under which torch's files lie, too; a folder's weights are not looked for under them."""

_ZERO = (
    "a training checkpoint of DeepSpeed, whose weights are spread over the shards of ZeRO (placeholders with ZeRO-3)",
    "run its zero_to_fp32.py and give what that writes",
)
_DISTRIBUTED = (
    "a training checkpoint of torch.distributed.checkpoint (FSDP)",
    "python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR FILE, and give that file",
)
_FOLDERS: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (re.compile(r"adapter_model\.(safetensors|bin)"), "an adapter (PEFT), not a whole model",
     "merge it into its base first (merge_and_unload) and save the result"),
    (re.compile(r"zero_to_fp32\.py|.*zero_pp_rank_.*|.*mp_rank_\d+_model_states\.pt|global_step\d+"), *_ZERO),
    (re.compile(r".*\.distcp|pytorch_model_fsdp_\d+|\.metadata"), *_DISTRIBUTED),
    (re.compile(r".*-shard\d+\.pt"), "shards of fairseq's FSDP",
     "run consolidate_fsdp_shards.py and give what that writes"),
    (re.compile(r"flax_model.*\.msgpack"), "weights of Flax only",
     "load them with transformers 4 (from_flax=True) and save the model again"),
    (re.compile(r"tf_model.*\.h5"), "weights of TensorFlow only",
     "load them with transformers 4 (from_tf=True) and save the model again"),
    (re.compile(r".*\.onnx"), "an ONNX model", "give the checkpoint that it was exported from"),
    (re.compile(r".*\.(gguf|ggml)"), "a model of whisper.cpp (GGML)", "give the checkpoint that it was converted from"),
    (re.compile(r".*\.nemo"), "a NeMo archive", "unpack it (tar -xf) and give its model_weights.ckpt"),
)  # fmt: skip
"""A name in a folder without weights, what that tells, and what to do; the first that fits is told."""


def describe_file(start: bytes, name: str) -> str:
    """Describe, by its first bytes and its name, a file that is not a checkpoint we can read."""
    tar = start[257:262] == b"ustar"
    kinds = (
        (not start, "is empty"),
        (start.startswith(b"version https://git-lfs"), "is a Git LFS pointer, not the file itself (git lfs pull)"),
        (name.endswith(".nemo"), "is a NeMo archive: unpack it (tar -xf) and give its model_weights.ckpt"),
        (start.startswith(b"\x89HDF"), "is an HDF5 file (TensorFlow weights?)"),
        (start.startswith(b"GGUF"), "is a GGUF file: give the checkpoint that it was converted from"),
        (start.startswith((b"lmgg", b"ggml")), "is a GGML file: give the checkpoint that it was converted from"),
        (name.endswith(".onnx"), "is an ONNX model: give the checkpoint that it was exported from"),
        (name.endswith("model.bin") and b"\0" < start[:1] < b"\x10" and start[1:4] == b"\0\0\0",
         "is a model of CTranslate2 (faster-whisper): give the one that it was converted from"),
        (start.startswith(_COMPRESSED), "is compressed; unpack it first"),
        (tar and start[:100].strip(b"\0./").startswith((b"sys_info", b"pickle", b"storages", b"tensors")),
         "is a tar archive of torch before 0.4: load it with an old torch and save it again"),
        (tar, "is a tar archive: unpack it (tar -xf) and give the file of weights in it"),
        (start[:1] == b"\x80", "is a pickle, but not one that torch.save wrote; pickles are never executed here"),
        (start.lstrip()[:1] in (b"{", b"["), "looks like JSON"),
        (start.startswith((b"<", b"\xef\xbb\xbf<")), "looks like a web page (a failed download?)"),
    )  # fmt: skip
    return next((text for matches, text in kinds if matches), f"is not a checkpoint (it begins with {start[:8]!r})")


def explain_folder(folder: Folder) -> NotFoundError | None:
    """Return what is to be told of a folder that has no single file of weights; None if nothing is known of it."""
    names, folders = folder.names(), folder.folders()
    for pattern, what, hint in _FOLDERS:
        if any(map(pattern.fullmatch, (*names, *folders))):
            return NotFoundError(f"{folder.name} holds {what}", hint=hint)
    inner = sorted((int(found[1] or 0), name) for name in folders if (found := _NUMBERED.fullmatch(name)))
    if inner:
        listed = ", ".join(name for _, name in inner[-8:])
        return NotFoundError(
            f"{folder.name} holds no weights itself, only folders of checkpoints",
            found=listed,
            hint=f"give the last one, {folder.name.rstrip('/')}/{inner[-1][1]}",
        )
    others = [name for name in names if name.endswith(_TORCH_SUFFIXES)]
    if len(others) == 1:
        return NotFoundError(
            f"{folder.name} holds no weights under a usual name", hint=f"if {others[0]} holds them, name that file"
        )
    return None
