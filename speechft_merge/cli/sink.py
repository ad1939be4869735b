"""The one place that prints: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.progress import Progress as Bar


def clean(text: str) -> str:
    """Text of foreign origin (tensor names, paths) without characters that a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def emit(text: str) -> None:
    """Print to stdout. A reader that has gone (`| head`) ends the program as it ends any other: by SIGPIPE's code."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more when it ends
        raise SystemExit(128 + signal.SIGPIPE) from None


def megabytes(count: int) -> str:
    """Bytes for people."""
    return (
        f"{count / 1e9:.2f} GB" if count >= 10**9 else f"{count / 1e6:.1f} MB" if count >= 10**5 else f"{count} bytes"
    )


@dataclass(frozen=True, slots=True)
class Output:
    """What the user wants to see: one document with `json`, the bare result with `quiet`, tables otherwise."""

    json: bool = False
    quiet: bool = False
    verbose: int = 0

    @property
    def human(self) -> bool:
        """Whether tables and sentences are wanted."""
        return not (self.json or self.quiet)

    def document(self, content: dict[str, Any]) -> None:
        """The one JSON document of `--json`."""
        if self.json:
            emit(json.dumps(content, indent=2, ensure_ascii=True))

    def result(self, text: str) -> None:
        """The bare result: the last line on stdout, the only one with `-q`."""
        if not self.json:
            emit(clean(text))

    def say(self, text: str) -> None:
        """A sentence on stdout."""
        if self.human:
            emit(clean(text))

    def detail(self, text: str) -> None:
        """A sentence on stderr that `-v` asks for."""
        if self.verbose:
            print(clean(text), file=sys.stderr)

    def warn(self, text: str) -> None:
        """A warning on stderr; in every mode."""
        print(f"speechft-merge: warning: {clean(text)}", file=sys.stderr)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table on stdout; columns after the first are aligned right if they hold numbers."""
        if not self.human:
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        width = None if sys.stdout.isatty() else 200  # a job's log has no width; 80 columns would fold every line
        console = Console(highlight=False, markup=False, emoji=False, width=width, force_terminal=sys.stdout.isatty())
        table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
        for i, column in enumerate(columns):
            numeric = i > 0 and all(row[i][:1] in "0123456789-+." for row in rows)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(clean(cell)) for cell in row))
        with console.capture() as drawn:
            console.print(table)
        emit(drawn.get().rstrip("\n"))


class ProgressLine:
    """Progress on stderr: a bar on a terminal, else a plain line every ten percent."""

    def __init__(self, output: Output, unit: str = "bytes") -> None:
        self._unit = unit
        self._shown = not output.quiet and "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ
        self._started = time.monotonic()
        self._tenths = 0
        self._bar: Bar | None = None

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` bytes, or whatever the unit is, are done."""
        if not self._shown or (self._unit == "bytes" and total < 100_000_000):  # done before anyone could read it
            return
        if sys.stderr.isatty():
            self._update_bar(done, total)
        elif done * 10 // total > self._tenths:
            self._tenths = done * 10 // total
            seconds = time.monotonic() - self._started
            if seconds < 5 and self._unit != "bytes":
                return
            whole = megabytes(total) if self._unit == "bytes" else f"{total} {self._unit}"
            print(f"{self._tenths * 10:3d} % of {whole}, {seconds:.1f} s", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Take the bar away."""
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
