"""Opens a model by reference: finds the weights, detects the container by its bytes, reads the index."""

from __future__ import annotations

import re
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from speechft_merge.arguments import text_path
from speechft_merge.checkpoints import tar, torch_legacy, torch_zip
from speechft_merge.checkpoints.computed import computed
from speechft_merge.checkpoints.index import Checkpoint, TensorSpan
from speechft_merge.checkpoints.kinds import explain_file, kind_of
from speechft_merge.checkpoints.labs import recognise
from speechft_merge.checkpoints.numpy_arrays import ArrayTensor
from speechft_merge.checkpoints.picking import pick_encoder
from speechft_merge.checkpoints.safetensors import read_safetensors
from speechft_merge.checkpoints.shards import is_shard, join_shards, read_weight_map, require_all_shards, require_shards
from speechft_merge.checkpoints.state_dict import StateDict, find_state_dicts, shorten
from speechft_merge.checkpoints.strangers import explain_folder, list_weights
from speechft_merge.checkpoints.torch_legacy import read_torch_legacy
from speechft_merge.checkpoints.torch_tensors import TensorView, TorchFile, span_of
from speechft_merge.checkpoints.torch_zip import read_torch_zip
from speechft_merge.errors import CheckpointError, NotFoundError, SpeechFTMergeError, quote
from speechft_merge.layouts.structure import is_decoder
from speechft_merge.sources import LocalFolder
from speechft_merge.sources.reference import WEIGHT_SUFFIXES, HubReference, encoder_of, parse_reference, without_path

if TYPE_CHECKING:
    from speechft_merge.sources import Folder
    from speechft_merge.sources.reference import Reference

USUAL_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
"""Where transformers looks for weights, in its order; then peft's adapters."""

MAX_TRIED = 16
"""Most files of a folder that are opened to find the one with an encoder."""
MAX_TENSORS = 100_000
"""Most tensors of all shards; one file is bounded by its header."""

_INDEX = re.compile(
    r"\.(safetensors|bin)\.index\b[^/]*\.json$"
)  # whisper-large-v3 has model.safetensors.index.fp32.json


def open_checkpoint(reference: Reference, download: bool = False) -> Checkpoint:
    """Index the model that `reference` names: a directory, a weights file or an index of shards, on disk or on the Hub.

    All files are closed if this fails; otherwise close the checkpoint, or use it as a context manager.

    Args:
        reference: a path, or `org/name[@revision][:path/in/repo]`; `#name` after it picks one of several encoders.
        download: download a model from the Hub to huggingface_hub's cache first, instead of reading ranges.

    Raises:
        NotFoundError: there is nothing, nothing that looks like weights, several candidates, or no such encoder.
        CheckpointError: the file is damaged, hostile, or of a kind that cannot be read.
        UsageError: the reference is neither text nor a path.

    Example:
        >>> from speechft_merge import open_checkpoint
        >>> with open_checkpoint("examples/pair/base") as checkpoint:
        ...     checkpoint.container, len(checkpoint.tensors), checkpoint.naming.stacks
        ('safetensors', 115, {'encoder': [0, 1, 2, 3, 4, 5]})
    """
    reference = text_path(reference, "reference")
    folder, file = _find_folder(reference, download)
    with ExitStack() as files:
        checkpoint = _open_in(folder, [file] if file else find_weights(folder), reference, files)
        if picked := encoder_of(reference):
            checkpoint = pick_encoder(checkpoint, picked)
        _require_usable(checkpoint)
        files.pop_all()  # from here on the checkpoint closes them
        return checkpoint


def _find_folder(reference: str, download: bool) -> tuple[Folder, str | None]:
    """Return the folder that a reference leads to, and the file in it, if it names one."""
    found = parse_reference(reference)
    if isinstance(found, HubReference):
        from speechft_merge.sources.hub import open_hub_folder

        try:
            return open_hub_folder(found, download)
        except SpeechFTMergeError as error:
            raise without_path(error, reference) from error
    return (LocalFolder(found), None) if found.is_dir() else (LocalFolder(found.parent), found.name)


def find_weights(folder: Folder) -> list[str]:
    """Return the name of the one file in a model directory that holds, or indexes, its weights; of shards all names.

    Raises:
        NotFoundError: there is none, or more than one that is not under a usual name.
    """
    names = folder.names()
    usual = next((usual for usual in USUAL_NAMES if usual in names), None)
    if usual is not None:
        return [usual]
    indexes, loose = _candidates(folder)
    candidates = indexes or loose
    shards = [] if indexes else [name for name in loose if is_shard(name)]
    if shards:
        return require_all_shards(folder.name, shards, [name for name in loose if name not in shards])
    if len(candidates) == 1:
        return candidates
    explained = explain_folder(folder, candidates)
    if explained is not None:
        raise explained
    if candidates:
        return _encoders_among(folder, candidates)
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
    raise NotFoundError(
        f"{folder.name} holds no weights (expected {', '.join(USUAL_NAMES)}, or one "
        f"{', '.join('*' + suffix for suffix in WEIGHT_SUFFIXES)})",
        found=listed,
    )


def other_weights(checkpoint: Checkpoint) -> list[str]:
    """Return the files that could have been opened instead: another precision, another container."""
    if checkpoint.folder is None:
        return []
    indexes, loose = _candidates(checkpoint.folder)
    return [name for name in (*indexes, *loose) if name != checkpoint.file and not is_shard(name)]


def _candidates(folder: Folder) -> tuple[list[str], list[str]]:
    """Return the indexes of shards, and the weights files."""
    return [name for name in folder.names() if _INDEX.search(name)], list_weights(folder)


def _encoders_among(folder: Folder, candidates: list[str]) -> list[str]:
    """Return the one file of several that holds an encoder: SpeechBrain saves each module in a file of its own.

    Raises:
        NotFoundError: several do, or none.
    """
    sizes: dict[str, int] = {}
    encoders: list[str] = []
    for name in candidates if len(candidates) <= MAX_TRIED else ():
        with ExitStack() as files, suppress(CheckpointError):
            held = _open_in(folder, [name], name, files)
            sizes[name] = held.parameters
            if not all(map(is_decoder, held.naming.stacks)):
                encoders.append(name)
    if len(encoders) == 1:
        return encoders
    listed = sorted(sizes, key=lambda name: -sizes[name]) or candidates
    raise NotFoundError(
        f"{folder.name} holds {len(listed)} candidates for the weights: {', '.join(listed[:8])}",
        hint="name one of them",
    )


def _open_in(folder: Folder, names: list[str], reference: str, files: ExitStack) -> Checkpoint:
    """Index a file, all shards of an index, or shards without one; `files` is to close what is opened."""
    file, weight_map, index_name = names[0], {}, folder.name
    if _INDEX.search(file):
        with folder.open(file) as index:
            weight_map, index_name = read_weight_map(index), index.name
        names = require_shards(index_name, weight_map, folder.names())
    elif len(names) == 1:
        return _open_file(folder, file, reference, files)
    shards: list[Checkpoint] = []
    for name in names:
        shards.append(_open_file(folder, name, reference, files))
        if sum(len(shard.tensors) for shard in shards) > MAX_TENSORS:
            raise CheckpointError(f"{index_name}: its shards hold more than {MAX_TENSORS} tensors")
    return join_shards(file, index_name, weight_map, shards)


def _open_file(folder: Folder, file: str, reference: str, files: ExitStack) -> Checkpoint:
    """Index one file; its first bytes say what it is, not its name."""
    source = files.enter_context(folder.open(file))
    start = source.read(0, min(source.size, tar.BLOCK))
    if tar.is_tar(start):
        window = tar.find_weights(source)
        read = read_torch_zip if window.read(0, len(torch_zip.MAGIC)) == torch_zip.MAGIC else read_torch_legacy
        return _from_pickle(read(window).within(source, window.offset, "tar"), reference, file, folder)
    if start.startswith(torch_zip.MAGIC):
        return _from_pickle(read_torch_zip(source), reference, file, folder)
    if start[:1] == b"\x80" and torch_legacy.MAGIC in start[:32]:
        return _from_pickle(read_torch_legacy(source), reference, file, folder)
    if start[8:9] == b"{":
        tensors, metadata = read_safetensors(source)
        # the library's save_model drops a tied tensor and writes of which one it was a copy
        tied = {name: tensors[kept] for name, kept in metadata.items() if kept in tensors and name not in tensors}
        return Checkpoint(reference, "safetensors", tensors | tied, [source], file, folder, metadata)
    raise explain_file(start, file, source.name)


def _from_pickle(opened: TorchFile, reference: str, file: str, folder: Folder) -> Checkpoint:
    """Index the model in a pickled file; other dictionaries of tensors in it become its alternatives."""
    origin = recognise(opened.root, opened.source.name)
    try:
        states = find_state_dicts(opened.root, opened.source.name, origin.path if origin else None)
    except CheckpointError as error:
        if kind := kind_of(file):  # one rank of many
            raise CheckpointError(
                f"{error.message}; it looks like {kind.what}", hint=kind.hint_for(opened.source.name)
            ) from error
        raise
    model, *beside = (_from_state_dict(state, opened, reference, file, folder) for state in states)
    return replace(model, origin=origin, alternatives={state.state_path: state for state in beside})


def _from_state_dict(state: StateDict, opened: TorchFile, reference: str, file: str, folder: Folder) -> Checkpoint:
    tensors: dict[str, TensorSpan] = {}
    spans: dict[TensorView | ArrayTensor, TensorSpan] = {}  # tied tensors share one
    for name, view in state.tensors.items():
        if isinstance(view, ArrayTensor):
            spans[view] = computed(f"{opened.source.name}: {name}", view.dtype, view.shape, (), view.elements)
        elif view not in spans:
            spans[view] = span_of(view, name, opened.source, *opened.locate(view.storage))
        tensors[name] = spans[view]
    odd = {name: tensor.reason for name, tensor in state.odd.items()}
    path = ".".join(map(shorten, state.path)) or ("''" if state.path else "")
    return Checkpoint(
        reference, opened.container, tensors, [opened.source], file, folder, {}, odd, path, state.others, state.modules,
        state.stale,
    )  # fmt: skip


def _require_usable(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError unless there are tensors, under names that are valid text."""
    if not checkpoint.tensors:
        odd = next(iter(checkpoint.unreadable), None)
        why = "" if odd is None else f" (only ones that cannot be read, such as {quote(odd)})"
        raise CheckpointError(f"{checkpoint.reference} holds no tensors{why}")
    for name in (*checkpoint.tensors, *checkpoint.unreadable):
        if not name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in name):
            raise CheckpointError(
                f"{checkpoint.reference}: the tensor name {quote(name)} is not valid text (half a surrogate pair)"
            )
