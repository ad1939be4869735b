"""Keeps what a merge reads of some tensors, so that whoever needs them next need not read them again."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from speechft_merge.checkpoints.index import TensorSpan
from speechft_merge.sources import ByteSource

if TYPE_CHECKING:
    from collections.abc import Iterable


class Kept:
    """The bytes of some tensors, filled while a merge reads them; `add` may be called from several threads.

    Args:
        spans: the tensors that are kept, if they are read.
    """

    def __init__(self, spans: Iterable[TensorSpan]) -> None:
        self._wanted = {span.storage_key for span in spans if span.nbytes}
        self._memory: dict[tuple[int, int, int], bytearray] = {}
        self._there: dict[tuple[int, int, int], dict[int, int]] = {}
        self._lock = threading.Lock()

    def add(self, span: TensorSpan, start: int, data: memoryview) -> None:
        """Keep bytes from byte `start` of a tensor on; those of other tensors are passed over."""
        key = span.storage_key
        if key not in self._wanted:
            return
        with self._lock:
            if key not in self._memory:
                self._memory[key] = bytearray(span.nbytes)
            memory = self._memory[key]
            self._there.setdefault(key, {})[start] = len(data)
        memory[start : start + len(data)] = data

    def take(self, span: TensorSpan) -> TensorSpan:
        """Return a tensor in the memory that it was kept in, which goes with it; as it is, if it was not read whole."""
        key = span.storage_key
        if sum(self._there.pop(key, {}).values()) != span.nbytes or not span.nbytes:
            return span
        return TensorSpan(_KeptBytes(span.source.name, self._memory.pop(key)), 0, span.dtype, span.shape)


class _KeptBytes(ByteSource):
    seeks_cheaply = True

    def __init__(self, name: str, content: bytearray) -> None:
        self.name, self.size, self._content = name, len(content), content

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = memoryview(self._content)[offset : offset + len(buffer)]
