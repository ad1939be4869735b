"""Lays out an output that is a lab's own file with other numbers in it: the same pickle, the same records.

Everything else in the file (configuration, dictionaries, another head) is copied byte for byte, so it need not be
understood, and no pickle is executed or written.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from speechft_merge.checkpoints.dtypes import DType
from speechft_merge.checkpoints.index import TensorSpan
from speechft_merge.checkpoints.strided import as_held, in_order
from speechft_merge.checkpoints.tar import find_weights
from speechft_merge.checkpoints.torch_zip import MAX_PICKLE
from speechft_merge.errors import CheckpointError, UsageError, quote
from speechft_merge.output.crc32 import changed_records, read_records
from speechft_merge.output.files import OutputFile, OutputFiles
from speechft_merge.plan.findings import Finding, Level
from speechft_merge.plan.operations import Copy, Segment
from speechft_merge.sources.reference import weight_suffix
from speechft_merge.sources.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from speechft_merge.checkpoints import Checkpoint
    from speechft_merge.output.crc32 import Record
    from speechft_merge.plan.operations import Operation
    from speechft_merge.plan.plan import PlannedTensor
    from speechft_merge.sources import ByteSource

STEM = "merged_model"
MAX_LISTED = 8


def lay_out_lab_file(tensors: Sequence[PlannedTensor], owner: Checkpoint) -> OutputFiles:
    """Lay out a copy of the owner's file, with its tensors where they were.

    Args:
        tensors: of the output, under the names that they have in `owner`.
        owner: the model whose file is copied: a torch checkpoint, in one file.

    Raises:
        UsageError: another element type is requested; it would not fit in the tensor's range.
        CheckpointError: a tensor that is to be merged shares bytes with another, or is not a contiguous range.
    """
    (source,) = owner.sources
    placed = place(tensors, owner)
    records, rest = _read_rest(source, owner.container, next(iter(placed), 0))
    records = changed_records(records, [at for at, tensor in placed.items() if is_changed(tensor, at, owner)])
    edges = sorted({0, source.size, *(edge for record in records for edge in (record.offset, record.end))})
    segments = tuple(filled(placed, edges, owner))
    digest = hashlib.sha256(rest).hexdigest()
    return OutputFiles((OutputFile(name_of_copy(source.name), b"", segments, source.size, records, digest),))


def note_stale(owner: Checkpoint) -> tuple[Finding, ...]:
    """Return a note on what the copied file holds that belongs to the weights before the merge."""
    if not owner.stale:
        return ()
    told = [f"{quote('.'.join(path))} ({what})" for path, what in owner.stale.items()]
    listed = ", ".join(told[:MAX_LISTED]) + (", ..." if len(told) > MAX_LISTED else "")
    where = f"those under {quote(owner.state_path)}" if owner.state_path else "the model's tensors"
    text = f"the output has {listed} of {owner.reference} as before the merge: only {where} are merged"
    return (Finding(Level.NOTE, text),)


def _read_rest(source: ByteSource, container: str, first: int) -> tuple[tuple[Record, ...], bytes]:
    """Return the records of a zip, and bytes that identify what the file holds beside tensors.

    A zip tells in its directory what its records are; a legacy file has its pickles before its first tensor, which is
    at `first`; a tar has other files before and after.
    """
    in_tar = container.endswith(" in tar")
    window = find_weights(source) if in_tar else Window(source, 0, source.size, source.name)
    start, end = window.offset, window.offset + window.size
    around = source.read(0, min(start, MAX_PICKLE)) + source.read(end, min(source.size - end, MAX_PICKLE))
    if container.startswith("torch legacy"):
        return (), window.read(0, min(max(first - start, 0), MAX_PICKLE)) + around
    records, directory = read_records(window)
    return tuple(record.moved(start) for record in records), directory + around


def name_of_copy(copied: str) -> str:
    """Return what a copy of a file is called: it keeps the suffix."""
    return STEM + (weight_suffix(copied) or ".pt")


def is_changed(tensor: PlannedTensor, at: int, owner: Checkpoint) -> bool:
    """Return whether a tensor becomes other bytes than there are at its place in the owner's file."""
    match tensor.at(at).operation:
        case Copy(span):
            return (span.source, span.offset) != (owner.sources[0], at)
    return True


def place(tensors: Sequence[PlannedTensor], owner: Checkpoint) -> dict[int, PlannedTensor]:
    """Return offset in the file -> tensor, in order: tied ones once, none that is copied and not contiguous."""
    (source,) = owner.sources
    placed: dict[int, PlannedTensor] = {}
    for tensor in tensors:
        span = owner.tensors[tensor.name]
        if (held := as_held(span)) is not None and tensor.operation is not None:
            span, tensor = held[0], replace(tensor, operation=_in_order(tensor.operation, held[1]))
        if tensor.dtype is not span.dtype:
            raise UsageError(
                f"a file of this kind keeps its element types ({span.dtype.torch_name})",
                hint="pass --format safetensors to change them",
            )
        if not tensor.nbytes:
            continue
        if span.source is source:
            there = placed.setdefault(span.offset, tensor)
            if there.at(0).operation != tensor.at(0).operation:
                raise _shared(owner, there, tensor)
        elif tensor.at(0).operation != Copy(span):
            raise CheckpointError(
                f"{owner.reference}: tensor {quote(tensor.name)} is a numpy array, or a part of a larger one, and "
                "cannot be merged in its place",
                hint="pass --format safetensors, or save the file again with tensors, made .contiguous()",
            )
    for offset, following in pairwise(sorted(placed)):
        if offset + placed[offset].nbytes > following:
            raise _shared(owner, placed[offset], placed[following])
    return dict(sorted(placed.items()))


def _in_order(operation: Operation, order: tuple[int, ...]) -> Operation:
    """Return an operation on tensors with their axes in another order: as the file holds them, element by element."""
    if isinstance(operation, Copy):
        return Copy(in_order(operation.span, order))
    terms = tuple(term._replace(span=in_order(term.span, order)) for term in operation.terms)
    return operation._replace(base=in_order(operation.base, order), terms=terms)


def _shared(owner: Checkpoint, one: PlannedTensor, other: PlannedTensor) -> CheckpointError:
    return CheckpointError(
        f"{owner.reference}: tensors {quote(one.name)} and {quote(other.name)} share bytes, and cannot be merged in "
        "their place",
        hint="pass --format safetensors",
    )


def filled(placed: dict[int, PlannedTensor], edges: list[int], owner: Checkpoint) -> Iterator[Segment]:
    """Yield the tensors, and between them copies of everything else in the file, cut at the edges."""
    (source,) = owner.sources
    position = 0
    for offset, tensor in [*placed.items(), (edges[-1], None)]:
        inner = edges[bisect_right(edges, position) : bisect_left(edges, offset)]
        for start, stop in pairwise([position, *inner, offset]):
            if stop > start:
                yield Segment(start, Copy(TensorSpan(source, start, DType.U8, (stop - start,))), DType.U8)
        if tensor is not None:
            yield tensor.at(offset)
            position = offset + tensor.nbytes
