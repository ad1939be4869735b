"""An output that is a lab's own file with other numbers in it: the same pickle, the same records, byte for byte.

So whatever else the file holds (configuration, dictionaries, another head) keeps its value, nothing of it has to be
understood, and no pickle is executed or written.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from itertools import pairwise
from pathlib import PurePath
from typing import TYPE_CHECKING

from speechft_merge.checkpoints.dtypes import DType
from speechft_merge.checkpoints.index import TensorSpan
from speechft_merge.checkpoints.torch_zip import MAX_PICKLE, Directory, read_directory
from speechft_merge.errors import CheckpointError, UsageError, quote
from speechft_merge.layouts.structure import Place
from speechft_merge.output.files import Outline, OutputFile
from speechft_merge.plan.plan import Action, PlannedTensor
from speechft_merge.sources.reference import WEIGHT_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from speechft_merge.checkpoints import Checkpoint

STEM = "merged_model"


def make_image(tensors: Sequence[PlannedTensor], owner: Checkpoint) -> Outline:
    """One file of the size of the owner's, in which its tensors stand where they stood.

    Args:
        tensors: of the output, under the names that they have in `owner`.
        owner: the model whose file is the pattern: a torch checkpoint, in one file.

    Raises:
        UsageError: another element type was asked for; it would not fit in the tensor's place.
        CheckpointError: a tensor that is to be merged shares bytes with another, or is no contiguous range.
    """
    (source,) = owner.sources
    placed = _place(tensors, owner)
    directory = read_directory(source) if owner.container == "torch zip" else Directory([], _head_digest(owner, placed))
    foreign = sorted(at for at, tensor in placed.items() if tensor.single is not owner.tensors[tensor.name])
    changed = tuple(r for r in directory.records if bisect_left(foreign, r.offset) < bisect_left(foreign, r.end))
    edges = sorted({0, source.size, *(edge for record in changed for edge in (record.offset, record.end))})
    whole = tuple(_filled(placed, edges, owner))
    return Outline((OutputFile(_name(source.name), b"", whole, source.size, changed, directory.digest),), None)


def _head_digest(owner: Checkpoint, placed: dict[int, PlannedTensor]) -> str:
    """sha256 of what a legacy file holds before its first tensor: the pickles."""
    (source,) = owner.sources
    return hashlib.sha256(source.read(0, min(next(iter(placed), 0), MAX_PICKLE))).hexdigest()


def _name(pattern: str) -> str:
    suffix = PurePath(pattern).suffix
    return STEM + (suffix if suffix in WEIGHT_SUFFIXES else ".pt")


def _place(tensors: Sequence[PlannedTensor], owner: Checkpoint) -> dict[int, PlannedTensor]:
    """Each tensor by its offset in the file, in order; tied ones once, and none that is copied and not contiguous."""
    (source,) = owner.sources
    placed: dict[int, PlannedTensor] = {}
    for tensor in tensors:
        span = owner.tensors[tensor.name]
        if tensor.dtype is not span.dtype:
            raise UsageError(
                f"a file of this kind keeps its element types ({span.dtype.torch_name})",
                hint="for others pass --format safetensors",
            )
        if not tensor.nbytes:
            continue
        if span.source is source:
            there = placed.get(span.offset)
            if there is not None and (there.nbytes, there.inputs, there.alpha) != (
                tensor.nbytes,
                tensor.inputs,
                tensor.alpha,
            ):
                raise _shared(owner, there, tensor)
            placed.setdefault(span.offset, tensor)
        elif tensor.single is not span:
            raise CheckpointError(
                f"{owner.reference}: tensor {quote(tensor.name)} is not contiguous, and cannot be merged in its place",
                hint="pass --format safetensors, or save the file again with .contiguous() tensors",
            )
    for offset, following in pairwise(sorted(placed)):
        if offset + placed[offset].nbytes > following:
            raise _shared(owner, placed[offset], placed[following])
    return dict(sorted(placed.items()))


def _shared(owner: Checkpoint, one: PlannedTensor, other: PlannedTensor) -> CheckpointError:
    return CheckpointError(
        f"{owner.reference}: tensors {quote(one.name)} and {quote(other.name)} share bytes, and cannot be merged in "
        "their place",
        hint="pass --format safetensors",
    )


def _filled(
    placed: dict[int, PlannedTensor], edges: list[int], owner: Checkpoint
) -> Iterator[tuple[PlannedTensor, int]]:
    """The tensors, and between them everything else of the file, cut at the edges."""
    position = 0
    for offset, tensor in [*placed.items(), (edges[-1], None)]:
        inner = edges[bisect_right(edges, position) : bisect_left(edges, offset)]
        for start, stop in pairwise([position, *inner, offset]):
            if stop > start:
                yield _rest(owner, start, stop), start
        if tensor is not None:
            yield tensor, offset
            position = offset + tensor.nbytes


def _rest(owner: Checkpoint, start: int, stop: int) -> PlannedTensor:
    """Bytes of the file that are nothing to us."""
    span = TensorSpan(owner.sources[0], start, DType.U8, (stop - start,))
    return PlannedTensor(
        f"bytes {start} to {stop}", Action.COPIED, "no tensor of the model", Place("other", ""), DType.U8, span.shape,
        span,
    )  # fmt: skip
