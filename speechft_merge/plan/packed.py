"""Takes query, key and value of torchaudio's WavLM out of the one tensor that has them, as ranges of its rows.

In a copy of its file they stand one after another, as before, so nothing has to be put together again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from speechft_merge.layouts import torchaudio

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from speechft_merge.checkpoints.index import Checkpoint, TensorSpan

_PICKLED = ("torch zip", "torch legacy")


def unpack(models: Sequence[Checkpoint], keep_head: bool) -> list[Checkpoint]:
    """Return base and fine-tunes in forms that can meet: unchanged if all of them are packed, or none is.

    Args:
        models: the base, then the fine-tunes.
        keep_head: whether the first fine-tune is the owner; its tensors stay as they are where an output cannot be a
            copy of its file.
    """
    packed = [model for model in models if is_packed(model)]
    if len(packed) in (0, len(models)):
        return list(models)
    owner = models[1] if keep_head else models[0]
    return [_unpacked(m) if m in packed and (m is not owner or m.container in _PICKLED) else m for m in models]


def is_packed(model: Checkpoint) -> bool:
    """Return whether a model has query, key and value in one tensor."""
    return model.naming.layout == torchaudio.NAME and any(map(torchaudio.PACKED.fullmatch, model.tensors))


def _unpacked(model: Checkpoint) -> Checkpoint:
    tensors: dict[str, TensorSpan] = {}
    for name, span in model.tensors.items():
        rows = span.shape[0] if span.shape else 0
        if torchaudio.PACKED.fullmatch(name) and rows % len(torchaudio.PARTS) == 0:
            tensors |= zip(torchaudio.parts_of(name), _thirds(span), strict=True)
        else:
            tensors[name] = span
    return replace(model, tensors=tensors)


def _thirds(span: TensorSpan) -> Iterator[TensorSpan]:
    rows, *rest = span.shape
    count = len(torchaudio.PARTS)
    for part in range(count):
        offset = span.offset + part * span.nbytes // count
        yield replace(span, offset=offset, shape=(rows // count, *rest))
