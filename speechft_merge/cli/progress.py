"""Shows on stderr what a command is about to do, how far it is, and how long it took."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING

from speechft_merge.foreign import clean
from speechft_merge.progress import Step
from speechft_merge.text import columns_of, wrapped

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from speechft_merge.cli.sink import Sink

HIDDEN = "HF_HUB_DISABLE_PROGRESS_BARS"
"""Environment variable of huggingface_hub: if it is true (`1`, `yes`, `on`, `true`), no progress is shown."""
SOON, LATE = 3.0, 30.0
"""Seconds: no log is silent longer than the first where something new can be told, and than the second at all."""
UNSEEN = 0.5
"""Seconds before a bar is drawn: most merges are done before rich could be imported."""


def is_due(step: Step, told: Step | None, silence: float) -> bool:
    """Return whether a step is worth a line in a log.

    Args:
        step: how far the work is.
        told: what the log's last line said of it; None for nothing.
        silence: seconds since that line.
    """
    same = told is not None and step.stage == told.stage
    if same and told is not None and step.done == step.total != told.done:
        return True  # 100 % of what was told before
    news = not same or (told is not None and step.tenths > told.tenths)
    return silence >= (SOON if news else LATE)


class ProgressLine:
    """Progress on stderr: a bar on a terminal, else a plain line now and then. A context manager, and `Progress`.

    Args:
        sink: says what else is printed.
        title: what is done: `base + finetuned -> merged`.
    """

    def __init__(self, sink: Sink, title: str) -> None:
        drawn = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        hidden = os.environ.get(HIDDEN, "").upper() in ("1", "YES", "ON", "TRUE")
        self._shown = not (sink.quiet or hidden) and (drawn or not sink.json)
        self._drawn, self._title = drawn, title
        self._step: Step | None = None
        self._told: Step | None = None
        self._bar: Bar | None = None
        self._began = self._spoke = time.monotonic()
        self._seconds: dict[str, float] = {}
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> ProgressLine:
        if self._shown:
            self._say(self._title)
            self._ticker.start()
        return self

    def __call__(self, step: Step) -> None:
        """Take note of a step; it is shown if it is time for it."""
        if not self._shown:
            return
        with self._lock:
            if self._step is None or step.stage != self._step.stage:
                self._close_stage()
                self._since = time.monotonic()
            self._step = step
            self._show()

    def __exit__(self, kind: object, *_: object) -> None:
        if not self._shown:
            return
        self._ended.set()
        self._ticker.join()
        if self._bar is not None:
            self._bar.stop()
        if kind is None:
            self._close_stage()
            parts = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self._seconds.items() if seconds >= 0.1)
            self._say(f"done in {time.monotonic() - self._began:.1f} s" + (f": {parts}" if parts else ""))

    def _tick(self) -> None:
        """Show, now and then, what nobody reports: that a stage goes on."""
        while not self._ended.wait(0.2):
            with self._lock:
                self._show()

    def _close_stage(self) -> None:
        if self._step is not None:
            spent = time.monotonic() - self._since
            self._seconds[self._step.stage] = self._seconds.get(self._step.stage, 0.0) + spent

    def _show(self) -> None:
        if self._step is None or self._ended.is_set():
            return
        if self._drawn:
            self._draw(self._step)
        elif is_due(self._step, self._told, time.monotonic() - self._spoke):
            self._told = self._step
            self._say(str(self._step))

    def _say(self, text: str) -> None:
        self._spoke = time.monotonic()
        stamp = "" if self._drawn else time.strftime("[%H:%M:%S] ")
        print(wrapped(stamp + clean(text), columns_of(sys.stderr), "  "), file=sys.stderr, flush=True)

    def _draw(self, step: Step) -> None:
        if self._bar is None:
            if time.monotonic() - self._began < UNSEEN:
                return
            self._bar = _make_bar()
            self._bar.add_task("", total=None, amount="")
            self._bar.start()
        task, stage = self._bar.tasks[0], clean(step.stage)
        if task.description != stage:
            self._bar.reset(task.id, description=stage, total=None, amount="")
        self._bar.update(task.id, completed=step.done, total=step.total or None, amount=step.amount)


def _make_bar() -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    words = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[amount]}"))
    return Bar(*words, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True)
