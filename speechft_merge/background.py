"""Runs a call in a thread, so that the wait for it can end before the call does."""

from __future__ import annotations

import contextvars
import math
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_Result = TypeVar("_Result")
_LEFT: list[threading.Event] = []
_TO_UNDO: list[Callable[[], object]] = []
_LEAVING = threading.Event()


def wait_for(call: Callable[[], _Result], seconds: float = math.inf) -> _Result:
    """Return what a call returns, or raise what it raises; a signal that comes meanwhile is handled at once.

    Args:
        call: carried out in a thread; if the wait for it ends early, it is left to itself.
        seconds: the longest wait.

    Raises:
        TimeoutError: it takes longer.
    """
    done: list[_Result] = []
    failed: list[BaseException] = []
    ended = threading.Event()  # not Thread.join, which takes a thread for ended when a signal's handler raises in it

    def work() -> None:
        try:
            done.append(call())
        except BaseException as error:
            failed.append(error)
        finally:
            ended.set()

    deadline = time.monotonic() + seconds
    _LEFT.append(ended)  # before the thread may keep a signal's handler waiting
    threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True).start()
    while not ended.wait(min(deadline - time.monotonic(), 0.2)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no end within {seconds:g} s")
    _LEFT.remove(ended)
    if failed:
        raise failed[0]
    return done[0]


def is_any_left() -> bool:
    """Return whether a call still runs that nobody waits for any more."""
    return not all(ended.is_set() for ended in _LEFT)


@contextmanager
def undone_if_left(undo: Callable[[], object]) -> Iterator[None]:
    """Have something undone should the process end while this lasts, in a call that nobody waits for any more."""
    _TO_UNDO.append(undo)
    try:
        if _LEAVING.is_set():
            raise RuntimeError("the process ends")
        yield
    finally:
        _TO_UNDO.remove(undo)


def leave() -> None:
    """Undo what calls that are left to themselves would have, before the process ends without them."""
    _LEAVING.set()  # nothing more to be undone begins
    for undo in [*_TO_UNDO]:
        with suppress(Exception):
            undo()
