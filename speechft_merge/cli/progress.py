"""Shows the progress of a command on stderr."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from speechft_merge.text import megabytes

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from speechft_merge.cli.sink import Sink


class ProgressLine:
    """Progress on stderr: a bar on a terminal, else a plain line every ten percent. A context manager."""

    def __init__(self, sink: Sink, unit: str = "bytes") -> None:
        self._unit = unit
        self._shown = not sink.quiet and "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ
        self._started = time.monotonic()
        self._tenths = 0
        self._bar: Bar | None = None

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` units are done."""
        if not self._shown or (self._unit == "bytes" and total < 100_000_000):  # done before anyone could read it
            return
        if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
            self._update_bar(done, total)
        elif done * 10 // total > self._tenths:
            self._tenths = done * 10 // total
            seconds = time.monotonic() - self._started
            if seconds < 5 and self._unit != "bytes":
                return
            whole = megabytes(total) if self._unit == "bytes" else f"{total} {self._unit}"
            print(f"{self._tenths * 10:3d} % of {whole}, {seconds:.1f} s", file=sys.stderr, flush=True)

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _update_bar(self, done: int, total: int) -> None:
        if self._bar is None:
            if time.monotonic() - self._started < 0.5:  # most merges are done before the bar could be imported
                return
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                MofNCompleteColumn,
                ProgressColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )
            from rich.progress import Progress as Bar

            counts: tuple[ProgressColumn, ...] = (DownloadColumn(), TransferSpeedColumn())
            if self._unit != "bytes":
                counts = (MofNCompleteColumn(),)
            columns = (BarColumn(), *counts, TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task("", total=total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done)
