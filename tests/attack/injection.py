"""Events at the calls with which a process changes the file system: a signal at one of them, or delays at random."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CALLS = "rename link unlink rmdir mkdir fsync ftruncate posix_fallocate pwrite write".split()


@dataclass
class Plan:
    """What happens to one process."""

    at: int | None = None
    """Number of the call before which the signal comes, counted from 0."""
    signal: int = signal.SIGKILL
    seed: int | None = None
    """Of the delays; None for none."""
    longest: float = 0.0
    """Most seconds of a delay."""
    exchange: bool = True
    """Whether the file system can swap two folders."""
    counted: str | None = None
    """File that gets the number of calls."""

    def apply(self) -> None:
        """Let it happen to this process."""
        dice = random.Random(self.seed)
        lock, done = threading.Lock(), [0]

        def before() -> None:
            with lock:
                number, wait = done[0], self.seed is not None and dice.random() < 0.3
                done[0] += 1
                seconds = dice.uniform(0, self.longest)
            if self.counted:
                Path(self.counted).write_text(str(number + 1))
            if number == self.at:
                os.kill(os.getpid(), self.signal)
            if wait:
                time.sleep(seconds)

        def injected(call: Callable[..., Any]) -> Callable[..., Any]:
            def carried_out(*args: Any, **kwargs: Any) -> Any:
                before()
                return call(*args, **kwargs)

            return carried_out

        def opened(*args: Any, **kwargs: Any) -> int:
            if args[1] & os.O_CREAT:
                before()
            return open_file(*args, **kwargs)

        from speechft_merge.output import staging

        open_file = os.open
        os.open = opened  # type: ignore[assignment]
        for name in CALLS:
            setattr(os, name, injected(getattr(os, name)))
        staging.exchange = injected(staging.exchange) if self.exchange else lambda *_: False  # ctypes calls it
