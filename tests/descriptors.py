"""Whether files stay open."""

from __future__ import annotations

import contextlib
import gc
import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


def open_files() -> set[str]:
    """Each descriptor of this process, and what it leads to."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):  # the listing's own
            found.add(f"{fd} -> {os.readlink(f'/proc/self/fd/{fd}')}")  # noqa: PTH115
    return found


@contextlib.contextmanager
def nothing_stays_open() -> Iterator[None]:
    """Fail if the block leaves a descriptor open: no collector may help, and an error that it raises is kept alive."""
    gc.collect()
    gc.disable()
    try:
        before = open_files()
        yield
        assert open_files() - before == set()
    finally:
        gc.enable()


@contextlib.contextmanager
def raising(error: type[BaseException], match: str = "") -> Iterator[None]:
    """`pytest.raises`, after which no descriptor may be open though the error still holds every frame."""
    with nothing_stays_open():
        with pytest.raises(error, match=match) as caught:
            yield
        assert caught.value.__traceback__ is not None
