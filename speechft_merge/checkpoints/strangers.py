"""Finds the weights in a folder by names, and explains a folder that has no single file of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from speechft_merge.checkpoints import torch_legacy, torch_zip
from speechft_merge.checkpoints.kinds import KINDS, kind_of
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
    for kind in KINDS:
        if any(map(kind.name.fullmatch, candidates or (*names, *folders))):
            return NotFoundError(f"{folder.name} holds {kind.what}", hint=kind.hint_for(folder.name, True))
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
            return NotFoundError(f"{given} holds {kind.what}", hint=kind.hint_for(given, True))
    which = "the last one," if numbered else "one of them, such as"
    return NotFoundError(
        f"{folder.name} holds no weights itself, only folders of checkpoints",
        found=", ".join(inner[-MAX_LISTED:]),
        hint=f"give {given}" if len(inner) == 1 else f"give {which} {given}",
    )
