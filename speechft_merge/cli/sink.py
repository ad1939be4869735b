"""Prints results: one document with `--json`, the bare result with `-q`, tables and sentences otherwise."""

from __future__ import annotations

import json
import os
import signal
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from speechft_merge.cli.options import Json, Quiet, Verbose
from speechft_merge.cli.text import clean, fit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LONGEST_WARNING = 2000
"""Characters; names out of foreign files may have megabytes."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under titles; columns after the first are aligned right if they hold numbers."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]


class View(ABC):
    """A result of the library as a command shows it."""

    __slots__ = ()

    @property
    def headline(self) -> str | None:
        """All that `-q` prints; None for nothing."""
        return None

    @property
    def warnings(self) -> Sequence[str]:
        """What goes to stderr in every mode."""
        return ()

    @abstractmethod
    def document(self) -> dict[str, Any]:
        """Return what `--json` prints."""

    @abstractmethod
    def body(self, verbose: int) -> Iterator[Table | str]:
        """Yield the tables and sentences for people, with more of them for each `-v`."""


@dataclass(frozen=True, slots=True)
class Sink:
    """The one place that prints: results to stdout, everything else to stderr. Also the options that say how."""

    panel: ClassVar[str] = "Messages"
    quiet: Quiet = False
    verbose: Verbose = 0
    json: Json = False

    def show(self, view: View) -> None:
        """Print a result in the way that was asked for."""
        for warning in view.warnings:
            print(f"speechft-merge: warning: {fit(warning, LONGEST_WARNING)}", file=sys.stderr)
        if self.json:
            _emit(json.dumps(view.document(), indent=2, ensure_ascii=True))
        elif not self.quiet:
            for part in view.body(self.verbose):
                _emit(_draw(part) if isinstance(part, Table) else clean(part))
        elif view.headline is not None:
            _emit(clean(view.headline))

    def detail(self, text: str) -> None:
        """Print a sentence that `-v` asks for, while the work goes on."""
        if self.verbose:
            print(clean(text), file=sys.stderr)


def _emit(text: str) -> None:
    """Print to stdout; if its reader is gone (`| head`), exit with SIGPIPE's code as other programs do."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at exit
        raise SystemExit(128 + signal.SIGPIPE) from None


def _draw(table: Table) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    width = None if sys.stdout.isatty() else 200  # a job's log has no width; 80 columns would fold every line
    console = Console(highlight=False, markup=False, emoji=False, width=width, force_terminal=sys.stdout.isatty())
    drawn = Drawn(box=box.SIMPLE, pad_edge=False, show_edge=False)
    for i, title in enumerate(table.titles):
        numeric = i > 0 and all(row[i][:1] in "0123456789-+." for row in table.rows)
        drawn.add_column(title, justify="right" if numeric else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(clean(cell)) for cell in row))
    with console.capture() as captured:
        console.print(drawn)
    return captured.get().rstrip("\n")
