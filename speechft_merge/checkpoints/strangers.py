"""Explains files and folders that are no checkpoint to read: what they are, and what makes them readable."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from speechft_merge.checkpoints import torch_legacy, torch_zip
from speechft_merge.errors import NotFoundError
from speechft_merge.sources.reference import AMBIGUOUS_SUFFIXES, WEIGHT_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from speechft_merge.sources import Folder

MAX_LISTED = 8
"""Names that a message lists."""
MAX_FOLDERS = 200
"""Folders in a folder that are looked into for weights."""
MAX_LOOKED = 32
"""Files of which a folder's listing does not tell whether they are weights, and that are looked into."""
MAX_DEPTH = 3
"""How deep; Lightning has its checkpoints in lightning_logs/version_0/checkpoints."""

NOT_WEIGHTS = re.compile(
    r"training_args\.bin|(optimizer|scheduler|scaler)\.|rng_state|random_states|.*_optim_states\.pt"
    r"|common\.pt"  # Megatron's, beside *.distcp
)
"""What training code leaves beside the weights under the same suffixes."""

_TORCH_SUFFIXES = (".tar", ".t7", ".pkl")
"""Suffixes under which torch's files lie, too; a folder's weights are not looked for under them."""

_NUMBERED = re.compile(r"(checkpoint|ckpt|epoch|step|iter|version)s?[-_+=]?\d.*", re.IGNORECASE)
"""Folders in which trainers leave checkpoints: transformers' Trainer, accelerate, SpeechBrain, Lightning."""


class Kind(NamedTuple):
    """A kind of file or folder: names that tell it, what it is, and what makes it readable."""

    name: re.Pattern[str]
    what: str
    hint: str


def _kind(name: str, what: str, hint: str) -> Kind:
    return Kind(re.compile(name), what, hint)


_KINDS = (
    _kind(r"zero_to_fp32\.py|.*zero_pp_rank_.*|.*mp_rank_\d+_model_states\.pt|global_step\d+",
          "a training checkpoint of DeepSpeed, whose weights are spread over the shards of ZeRO (placeholders with "
          "ZeRO-3)",
          "run its zero_to_fp32.py and give what that writes"),
    _kind(r"mp_rank_\d+(_\d+)*|model_optim_rng\.pt|model_rng\.pt|latest_checkpointed_iteration\.txt",
          "a checkpoint of Megatron, whose weights are spread over its ranks",
          "convert it with the tools of the toolkit that wrote it, to one file, and give that file"),
    _kind(r".*\.distcp|pytorch_model_fsdp_\d+|\.metadata",
          "a training checkpoint of torch.distributed.checkpoint (FSDP, Megatron, NeMo 2)",
          "python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR FILE, and give that file"),
    _kind(r".*-shard\d+\.pt",
          "shards of fairseq's FSDP",
          "run consolidate_fsdp_shards.py and give what that writes"),
    _kind(r"consolidated\.\d+\.pth|.*[-_.](rank|part)[-_]?\d+\.(pt|pth|ckpt|bin)",
          "parts of one model, of the ranks of a parallel run",
          "join them with the toolkit that wrote them, and give what that writes"),
    _kind(r".*\.msgpack",
          "weights of Flax only",
          "load them with transformers 4 (from_flax=True) and save the model again"),
    _kind(r".*\.(h5|keras)|saved_model\.pb",
          "weights of TensorFlow only",
          "load them with transformers 4 (from_tf=True) and save the model again"),
    _kind(r".*\.(onnx|tflite|mlmodel|mlpackage)|onnx|openvino_model\.(xml|bin)",
          "an exported model (ONNX, OpenVINO, TFLite, Core ML)",
          "give the checkpoint that it was exported from"),
    _kind(r".*\.(gguf|ggml)",
          "a model of whisper.cpp (GGML)",
          "give the checkpoint that it was converted from"),
    _kind(r".*\.np[yz]",
          "arrays of numpy",
          "load them with numpy and save them with safetensors or torch.save"),
    _kind(r"snapshots",
          "the cache of huggingface_hub for a model, not the model itself",
          "give the model as org/name, or the folder of a commit in its snapshots/"),
)  # fmt: skip
"""The first that fits is told: of a file by its name, of a folder without weights by the names in it."""

_GZIP = b"\x1f\x8b"
_BEGINNINGS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself (git lfs pull)"),
    (b"\x89HDF", "is an HDF5 file (TensorFlow weights?)"),
    (b"GGUF", "is a GGUF file: give the checkpoint that it was converted from"),
    (b"lmgg", "is a GGML file: give the checkpoint that it was converted from"),
    (b"ggml", "is a GGML file: give the checkpoint that it was converted from"),
    (b"\x93NUMPY", "is an array of numpy: give the checkpoint that it belongs to"),
    (b"7z\xbc\xaf", "is compressed; unpack it first"),
    (b"Rar!", "is compressed; unpack it first"),
    (_GZIP, "is compressed; unpack it first"),
    (b"BZh", "is compressed; unpack it first"),
    (b"\xfd7zXZ", "is compressed; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed; unpack it first"),
    (b"<", "looks like a web page (a failed download?)"),
    (b"\xef\xbb\xbf<", "looks like a web page (a failed download?)"),
    (b"\x80", "is a pickle, but not one that torch.save wrote; pickles are never executed here"),
)
"""What the first bytes of a file tell where its name does not."""


def describe_file(start: bytes, name: str) -> str:
    """Describe, by its first bytes and its name, a file that is not a checkpoint we can read."""
    if not start:
        return "is empty"
    if start.startswith(_BEGINNINGS[0][0]):  # whatever it points to
        return _BEGINNINGS[0][1]
    if kind := kind_of(name):
        return f"looks like {kind.what}: {kind.hint}"
    if name.endswith(".nemo") and start.startswith(_GZIP):
        return (
            "is a compressed archive, which cannot be read in place: unpack it (tar -xzf) and give its "
            "model_weights.ckpt, or give what gunzip -c FILE > NEW.nemo writes"
        )
    if name.endswith("model.bin") and b"\0" < start[:1] < b"\x10" and start[1:4] == b"\0\0\0":
        return "is a model of CTranslate2 (faster-whisper): give the one that it was converted from"
    if start.lstrip()[:1] in (b"{", b"["):
        return "looks like JSON"
    told = (text for beginning, text in _BEGINNINGS if start.startswith(beginning))
    return next(told, f"is not a checkpoint (it begins with {start[:8]!r})")


def is_weights(name: str) -> bool:
    """Return whether a file may be a model's weights, by its name."""
    return (
        name.endswith(WEIGHT_SUFFIXES) and not name.startswith(("adapter_", "adapter.")) and not NOT_WEIGHTS.match(name)
    )


def list_weights(folder: Folder) -> list[str]:
    """Return the files of a folder that may be a model's weights: by their names or, where these do not tell, bytes."""
    names = folder.names()
    unclear = [name for name in names if name.endswith(AMBIGUOUS_SUFFIXES)][:MAX_LOOKED]
    return [name for name in names if is_weights(name) or (name in unclear and _is_torch_file(folder, name))]


def explain_folder(folder: Folder, candidates: Sequence[str]) -> NotFoundError | None:
    """Return what is to be told of a folder that has no single file of weights; None if nothing is known of it.

    Args:
        folder: the folder.
        candidates: its files that may be weights; where there are some, only what they are is told.
    """
    names, folders = folder.names(), folder.folders()
    for kind in _KINDS:
        if any(map(kind.name.fullmatch, candidates or (*names, *folders))):
            return NotFoundError(f"{folder.name} holds {kind.what}", hint=kind.hint)
    if candidates:
        return None
    inner = sorted(_hold_weights(folder), key=lambda path: (_numbers(path), path))
    if inner:
        return _explain_inner(folder, inner)
    others = [name for name in names if name.endswith(_TORCH_SUFFIXES)][:MAX_LISTED]
    others = [name for name in others if _is_torch_file(folder, name)]
    if others:
        return NotFoundError(
            f"{folder.name} holds no weights under a usual name",
            found=", ".join(others),
            hint="name the file that holds them" if len(others) > 1 else f"name that file, {folder.inside(others[0])}",
        )
    return None


def kind_of(name: str) -> Kind | None:
    """Return what a file is by its name; None if that tells nothing."""
    return next((kind for kind in _KINDS if kind.name.fullmatch(name)), None)


def _is_torch_file(folder: Folder, name: str) -> bool:
    with folder.open(name) as source:
        start = source.read(0, min(source.size, 32))
    return start.startswith(torch_zip.MAGIC) or torch_legacy.MAGIC in start


def _hold_weights(folder: Folder) -> Iterator[str]:
    """Yield the paths of folders in a folder that hold weights, or are called as a trainer's checkpoints are."""
    left, level = MAX_FOLDERS, [""]
    for _ in range(MAX_DEPTH):
        level = [f"{outer}/{name}".lstrip("/") for outer in level for name in folder.folders(outer)][:left]
        left -= len(level)
        holders = [path for path in level if _holds_weights(folder, path)]
        yield from holders
        level = [path for path in level if path not in holders]


def _holds_weights(folder: Folder, path: str) -> bool:
    inner = _list(folder, path)
    told = any(is_weights(name) or name.startswith("adapter_model.") or kind_of(name) for name in inner)
    return told or (_NUMBERED.match(path.rpartition("/")[2]) is not None and not folder.folders(path))


def _list(folder: Folder, path: str) -> list[str]:
    """Return the names of files and folders in one of the folders of a folder."""
    return [name.rpartition("/")[2] for name in folder.names(path)] + folder.folders(path)


def _numbers(path: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d{1,18}", path)]


def _explain_inner(folder: Folder, inner: list[str]) -> NotFoundError:
    """Return the error for a folder whose weights are in folders of it, sorted by their numbers."""
    numbered = [path for path in inner if _NUMBERED.match(path.rpartition("/")[2])]
    if not numbered and len({re.sub(r"\d+", "0", path) for path in inner}) == 1:
        numbered = inner  # 100, 200, 300
    last = (numbered or inner)[-1]
    given, there = folder.inside(last), _list(folder, last)
    if not any(map(is_weights, there)):
        for kind in filter(None, map(kind_of, there)):
            return NotFoundError(f"{given} holds {kind.what}", hint=kind.hint)
    which = "the last one," if numbered else "one of them, such as"
    return NotFoundError(
        f"{folder.name} holds no weights itself, only folders of checkpoints",
        found=", ".join(inner[-MAX_LISTED:]),
        hint=f"give {given}" if len(inner) == 1 else f"give {which} {given}",
    )
