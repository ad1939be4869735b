"""Lays out an output that is a pickled file with other numbers and without what is stale: a zip of torch's, made anew.

The pickle lacks the entries of optimizers, schedulers and copies of the weights, see `checkpoints.pickle_tree`, and the
zip the records that only these named. All other records are those of the file, in its order.
"""

from __future__ import annotations

import hashlib
import zlib
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from speechft_merge.checkpoints.dtypes import DType
from speechft_merge.checkpoints.index import TensorSpan
from speechft_merge.checkpoints.pickle_tree import strip_pickle
from speechft_merge.checkpoints.torch_zip import locate_records, open_archive
from speechft_merge.errors import UsageError
from speechft_merge.output.crc32 import Record, changed_records
from speechft_merge.output.files import OutputFile, OutputFiles
from speechft_merge.output.lab_file import filled, is_changed, name_of_copy, place
from speechft_merge.output.zip_parts import CRC_IN_ENTRY, CRC_IN_HEADER, Entry, end_of_directory
from speechft_merge.plan.operations import Copy, Segment
from speechft_merge.sources.literal import Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from speechft_merge.checkpoints import Checkpoint
    from speechft_merge.plan.plan import PlannedTensor
    from speechft_merge.sources import ByteSource

_PICKLE = "data.pkl"
_STORAGES = "data/"


class _Kept(NamedTuple):
    """A record of the output."""

    entry: Entry
    copied: int
    """Offset of its content in the file that is copied."""
    content: bytes | None
    """Its content, where that is not copied."""

    @property
    def start(self) -> int:
        """Offset of its content."""
        return self.entry.start + len(self.entry.header())


def lay_out_stripped_file(tensors: Sequence[PlannedTensor], owner: Checkpoint) -> OutputFiles:
    """Lay out a copy of the owner's file without what is stale in it.

    Args:
        tensors: of the output, under the names that they have in `owner`.
        owner: the model whose file is copied.

    Raises:
        UsageError: it holds nothing of the kind, or is no plain zip of torch's; see also `lab_file.place`.
        CheckpointError: see `lab_file.place` and `strip_pickle`.
    """
    if not owner.stale:
        raise UsageError(
            f"{owner.reference} holds nothing that --strip leaves out: no optimizer's state, no copy of the weights",
            hint="leave out --strip",
        )
    if owner.container != "torch zip":
        raise UsageError(
            f"--strip cannot leave out anything of a file of the kind {owner.container}",
            hint="load it with torch and save it again (torch.save writes a zip), or leave out --strip",
        )
    (source,) = owner.sources
    placed = place(tensors, owner)
    kept = _keep(source, owner)
    directory = b"".join(record.entry.entry() for record in kept)
    end = kept[-1].start + kept[-1].entry.size
    written = [(record.entry.start, record.entry.header() + (record.content or b"")) for record in kept]
    written.append((end, directory + end_of_directory(len(kept), end, len(directory))))
    edges = sorted({0, source.size, *(edge for r in kept for edge in (r.copied, r.copied + r.entry.size))})
    copied = _moved(filled(placed, edges, owner), [record for record in kept if record.content is None])
    literal = b"".join(content for _, content in written)
    pieces = _literal(written, literal, f"{owner.reference}, without what is stale")
    segments = sorted([*copied, *pieces], key=lambda segment: segment.offset)
    records = _changed(kept, end, [at for at, tensor in placed.items() if is_changed(tensor, at, owner)])
    size, digest = end + len(written[-1][1]), hashlib.sha256(literal).hexdigest()
    return OutputFiles((OutputFile(name_of_copy(source.name), b"", tuple(segments), size, records, digest),))


def _keep(source: ByteSource, owner: Checkpoint) -> list[_Kept]:
    """Return the records that stay, in the file's order, each where it comes to lie."""
    archive = open_archive(source)
    entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    located = locate_records(source, entries, archive.start_dir)
    stripped = strip_pickle(source.read(*located[_PICKLE]), source.name, owner.stale)
    kept: list[_Kept] = []
    for entry in entries:
        name = entry.filename.partition("/")[2]
        if name.startswith(_STORAGES) and name.removeprefix(_STORAGES) not in stripped.storages:
            continue
        content = stripped.content if name == _PICKLE else None
        size, crc = (entry.file_size, entry.CRC) if content is None else (len(content), zlib.crc32(content))
        start = kept[-1].start + kept[-1].entry.size if kept else 0
        kept.append(_Kept(Entry(entry.filename, size, crc, start), located[name][0], content))
    return kept


def _moved(segments: Iterable[Segment], kept: Sequence[_Kept]) -> Iterator[Segment]:
    """Yield the segments of a copied file that lie in records that stay, where these come to lie."""
    starts = [record.copied for record in kept if record.entry.size]
    filled = [record for record in kept if record.entry.size]
    for segment in segments:
        at = bisect_right(starts, segment.offset) - 1
        if at >= 0 and segment.offset < starts[at] + filled[at].entry.size:
            yield segment._replace(offset=segment.offset - starts[at] + filled[at].start)


def _literal(written: Sequence[tuple[int, bytes]], content: bytes, name: str) -> Iterator[Segment]:
    """Yield the segments of bytes that are written as they are."""
    source, position = Literal(name, content), 0
    for offset, piece in written:
        yield Segment(offset, Copy(TensorSpan(source, position, DType.U8, (len(piece),))), DType.U8)
        position += len(piece)


def _changed(kept: Sequence[_Kept], directory: int, offsets: Sequence[int]) -> tuple[Record, ...]:
    """Return the records whose CRC must be renewed; `offsets` are those of changed tensors in the copied file."""
    found: list[Record] = []
    position = directory
    for record in kept:
        crcs = record.entry.start + CRC_IN_HEADER, position + CRC_IN_ENTRY
        if record.content is None and changed_records([Record(record.copied, record.entry.size, crcs)], offsets):
            found.append(Record(record.start, record.entry.size, crcs))
        position += len(record.entry.entry())
    return tuple(found)
