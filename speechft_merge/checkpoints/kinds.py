"""Lists the kinds of files that are no checkpoint to read: how each is known, and what makes it readable."""

from __future__ import annotations

import posixpath
import re
import shlex
from typing import NamedTuple

from speechft_merge.errors import CheckpointError


class Kind(NamedTuple):
    """A kind of file or folder: names or first bytes that tell it, what it is, and what makes it readable."""

    name: re.Pattern[str]
    what: str
    hint: str
    """A command, where its own toolkit has one, for FILE or FOLDER."""
    beginnings: tuple[bytes, ...] = ()

    def hint_for(self, path: str, is_folder: bool = False) -> str:
        """Return what to do with the one at a path."""
        folder = path if is_folder else posixpath.dirname(path) or "."
        return self.hint.replace("FOLDER", shlex.quote(folder)).replace("FILE", shlex.quote(path))


def _kind(name: str, what: str, hint: str, *beginnings: bytes) -> Kind:
    return Kind(re.compile(name), what, hint, beginnings)


def _saved(made: str) -> str:
    """Return the command of torch that saves a state dict to a file of its own."""
    return f"python -c \"import sys, torch; torch.save({made}, 'weights.pt')\" FILE, and give weights.pt"


_ANY = r"$"
"""A name that no file has."""
TORCHSCRIPT = _kind(_ANY, "a TorchScript program", _saved("torch.jit.load(sys.argv[1]).state_dict()"))
MODULE = _kind(
    _ANY, "a module pickled whole, which cannot be rebuilt without running its code",
    "where its code is installed, and if you trust it: "
    + _saved("torch.load(sys.argv[1], 'cpu', weights_only=False).state_dict()"),
)  # fmt: skip
"""What the records of a zip, or a pickle, tell."""

KINDS = (
    _kind(_ANY, "a Git LFS pointer, not the file itself", "git lfs pull", b"version https://git-lfs"),
    _kind(r"zero_to_fp32\.py|.*zero_pp_rank_.*|.*mp_rank_\d+_model_states\.pt|global_step\d+",
          "a training checkpoint of DeepSpeed, whose weights are spread over the shards of ZeRO (placeholders with "
          "ZeRO-3)",
          "run its zero_to_fp32.py and give what that writes"),
    _kind(r"mp_rank_\d+(_\d+)*|model_optim_rng\.pt|model_rng\.pt|latest_checkpointed_iteration\.txt",
          "a checkpoint of Megatron, whose weights are spread over its ranks",
          "convert it with the tools of the toolkit that wrote it, to one file, and give that file"),
    _kind(r".*\.distcp|pytorch_model_fsdp_\d+|\.metadata",
          "a training checkpoint of torch.distributed.checkpoint (FSDP, Megatron, NeMo 2)",
          "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pt, and give weights.pt"),
    _kind(r".*-shard\d+\.pt",
          "shards of fairseq's FSDP",
          "run fairseq's scripts/consolidate_fsdp_shards.py on it, and give what that writes"),
    _kind(r"consolidated\.\d+\.pth|.*[-_.](rank|part)[-_]?\d+\.(pt|pth|ckpt|bin)",
          "parts of one model, of the ranks of a parallel run",
          "join them with the toolkit that wrote them, and give what that writes"),
    _kind(r".*\.msgpack",
          "weights of Flax only",
          "load them with transformers 4 (from_pretrained(..., from_flax=True)) and save the model again"),
    _kind(r".*\.(h5|keras)|saved_model\.pb",
          "weights of TensorFlow only (HDF5)",
          "load them with transformers 4 (from_pretrained(..., from_tf=True)) and save the model again",
          b"\x89HDF"),
    _kind(r".*\.(onnx|tflite|mlmodel|mlpackage)|onnx|openvino_model\.(xml|bin)",
          "an exported model (ONNX, OpenVINO, TFLite, Core ML)",
          "give the checkpoint that it was exported from"),
    _kind(r".*\.pt2",
          "an exported program of torch",
          _saved("torch.export.load(sys.argv[1]).state_dict")),
    _kind(r".*\.(gguf|ggml)",
          "a model of whisper.cpp (GGML)",
          "give the checkpoint that it was converted from",
          b"GGUF", b"lmgg", b"ggml"),
    _kind(r".*\.np[yz]",
          "arrays of numpy",
          "python -c \"import sys, numpy, safetensors.numpy as s; s.save_file(dict(numpy.load(sys.argv[1])), "
          "'weights.safetensors')\" FILE, and give weights.safetensors",
          b"\x93NUMPY"),
    _kind(r".*\.nemo\.gz|.*\.(tgz|gz)",
          "a compressed archive, which cannot be read in place",
          "unpack it (tar -xzf FILE), and give its model_weights.ckpt; or give what gunzip -c FILE > new.nemo writes",
          b"\x1f\x8b"),
    _kind(r".*\.(7z|rar|bz2|xz|zst)",
          "compressed",
          "unpack it first",
          b"7z\xbc\xaf", b"Rar!", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"),
    _kind(_ANY, "a web page (a failed download?)", "download or copy it again", b"<", b"\xef\xbb\xbf<"),
    _kind(_ANY, "a pickle, but not one that torch.save wrote; pickles are never executed here",
          "load it where it was made, and save the tensors in it with torch.save", b"\x80"),
    _kind(r"snapshots",
          "the cache of huggingface_hub for a model, not the model itself",
          "give the model as org/name, or the folder of a commit in its snapshots/"),
)  # fmt: skip
"""The first that fits is told: of a file by its name or bytes, of a folder without weights by the names in it."""

_CTRANSLATE2 = _kind(r".*model\.bin", "a model of CTranslate2 (faster-whisper)", "give the one it was converted from")


def explain_file(start: bytes, name: str, path: str) -> CheckpointError:
    """Return what is to be told, by its first bytes and its name, of a file that is no checkpoint we can read."""
    pointer, *_ = KINDS
    by_bytes = next((kind for kind in KINDS if start.startswith(kind.beginnings)), None)
    kind = pointer if by_bytes is pointer else kind_of(name)
    if kind is not None:
        return CheckpointError(f"{path} looks like {kind.what}", hint=kind.hint_for(path))
    if _CTRANSLATE2.name.fullmatch(name) and b"\0" < start[:1] < b"\x10" and start[1:4] == b"\0\0\0":
        by_bytes = _CTRANSLATE2
    if by_bytes is not None:
        return CheckpointError(f"{path} is {by_bytes.what}", hint=by_bytes.hint_for(path))
    found = "nothing" if not start else "JSON" if start.lstrip()[:1] in (b"{", b"[") else f"{start[:8]!r} at its start"
    return CheckpointError(f"{path} is no checkpoint: expected safetensors or what torch.save writes", found=found)


def kind_of(name: str) -> Kind | None:
    """Return what a file is by its name; None if that tells nothing."""
    return next((kind for kind in KINDS if kind.name.fullmatch(name)), None)
