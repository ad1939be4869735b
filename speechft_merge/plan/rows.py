"""Brings together tensors that differ in the number of their rows: a vocabulary that grew, positions that were cut."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from speechft_merge.checkpoints.computed import joined_rows
from speechft_merge.plan.evidence import LEAST_COSINE, LEAST_ELEMENTS, cosine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speechft_merge.checkpoints.index import Checkpoint, TensorSpan
    from speechft_merge.layouts.alignment import Alignment


class Resized(NamedTuple):
    """A tensor outside of the blocks whose length was changed along one axis; the output has that of the owner."""

    name: str
    """In the base."""
    sizes: tuple[int, int]
    """In the base and in the fine-tune."""
    mixed: bool
    """Whether the rows that both have are mixed; else the whole tensor stays the owner's."""

    def in_words(self, keep_head: bool, of: str = "") -> str:
        """Return the sentence for the user.

        Args:
            keep_head: whether the fine-tune's class is written.
            of: which of several fine-tunes it is; the others may move what this one does not.
        """
        (base, finetuned), owner = self.sizes, "the fine-tune's" if keep_head else "the base's"
        change = f"{self.name} {'grew' if finetuned > base else 'shrank'} from {base} to {finetuned}"
        change += f" in {of}" if of else ""
        if not self.mixed:
            return f"{change}, which takes no part in it" if of else f"{change} and stays {owner}"
        common = f"{change}: the first {min(self.sizes)} take part"
        if of:
            return common
        longer = (finetuned if keep_head else base) > min(self.sizes)
        return f"{common}, the others stay {owner}" if longer else f"{common}, the others are left out"


def find_resized(base: Checkpoint, finetuned: Checkpoint, alignment: Alignment) -> list[Resized]:
    """Return the tensors that were resized on purpose: one axis of each, and no tensor of a block among them.

    Rows are mixed where they correspond; a vocabulary that was replaced has rows of other words.
    """
    names = alignment.base_names
    mismatched = {name: other for name, other in alignment.mismatched.items() if not names[name].location.stays}
    if any(names[name].location.block is not None for name in mismatched):
        return []
    found = []
    for name, other in mismatched.items():
        ours, theirs = base.tensors[name], finetuned.tensors[other]
        axes = [i for i, sizes in enumerate(zip(ours.shape, theirs.shape, strict=False)) if sizes[0] != sizes[1]]
        if len(ours.shape) != len(theirs.shape) or len(axes) != 1:
            return []
        sizes = ours.shape[axes[0]], theirs.shape[axes[0]]
        found.append(Resized(name, sizes, len(ours.shape) > 1 and axes[0] == 0 and _correspond(ours, theirs)))
    matrices = {tensor.name.rpartition(".")[0]: tensor for tensor in found if len(base.tensors[tensor.name].shape) > 1}
    return [_with_its_matrix(tensor, matrices) for tensor in found] if matrices else []


def _with_its_matrix(tensor: Resized, matrices: Mapping[str, Resized]) -> Resized:
    """Return a bias as mixed where the rows of its module's matrix are."""
    matrix = matrices.get(tensor.name.rpartition(".")[0], tensor)
    return tensor._replace(mixed=matrix.mixed and matrix.sizes == tensor.sizes)


def _correspond(ours: TensorSpan, theirs: TensorSpan) -> bool:
    if not (ours.dtype.interpolated and theirs.dtype.interpolated) or not min(ours.elements, theirs.elements):
        return False
    alike = cosine(ours, theirs) if min(ours.elements, theirs.elements) >= LEAST_ELEMENTS else None
    return alike is None or alike >= LEAST_COSINE


def with_rows_of(checkpoint: Checkpoint, owner: Checkpoint, names: Mapping[str, str]) -> Checkpoint:
    """Return a checkpoint in which some tensors have the owner's rows: its own first, then the owner's others.

    Args:
        checkpoint: a model.
        owner: the model whose class is written.
        names: name in `checkpoint` -> name in `owner`.
    """
    tensors = dict(checkpoint.tensors)
    for name, theirs in names.items():
        own, span = tensors[name], owner.tensors[theirs]
        if own.shape != span.shape:
            rows = min(own.shape[0], span.shape[0])
            tensors[name] = joined_rows(f"{own.source.name}: {name}", own, span, rows)
    return replace(checkpoint, tensors=tensors)
