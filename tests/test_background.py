"""A call in a thread gives what it gives, and the wait for it can end before it does."""

from __future__ import annotations

import contextvars
import os
import signal
import threading
import time
from types import FrameType
from typing import NoReturn

import pytest

from speechft_merge import background
from speechft_merge.background import is_any_left, wait_for

VARIABLE = contextvars.ContextVar("VARIABLE", default=0)


def test_what_the_call_returns_or_raises() -> None:
    assert wait_for(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        wait_for(lambda: 1 // 0)
    VARIABLE.set(7)
    assert wait_for(VARIABLE.get) == 7


def test_the_wait_has_an_end_and_what_is_left_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_LEFT", [])
    gate = threading.Event()
    with pytest.raises(TimeoutError, match=r"no end within 0\.1 s"):
        wait_for(gate.wait, 0.1)
    assert is_any_left()
    gate.set()
    for _ in range(100):
        if not is_any_left():
            return
        time.sleep(0.05)
    raise AssertionError


def test_a_signal_ends_the_wait_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thread.join would take the thread for ended when the handler raises (CPython issue 90882)."""
    monkeypatch.setattr(background, "_LEFT", [])
    gate = threading.Event()

    def stop(_: int, __: FrameType | None) -> NoReturn:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        started = time.monotonic()
        with pytest.raises(SystemExit):
            wait_for(gate.wait)
        assert time.monotonic() - started < 5
        assert is_any_left()
    finally:
        signal.signal(signal.SIGTERM, before)
        gate.set()
