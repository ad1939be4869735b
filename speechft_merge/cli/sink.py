"""Prints results: one document with `--json`, the bare result with `-q`, tables and sentences otherwise."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from speechft_merge.foreign import clean
from speechft_merge.text import columns_of, fit, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from speechft_merge.display import Table


@dataclass(frozen=True, slots=True)
class Shown:
    """A result of the library as a command shows it."""

    document: Callable[[], dict[str, Any]]
    """Return what `--json` prints."""
    parts: Callable[[int], Iterable[Table | str]]
    """Yield tables and sentences for people, with more of them for each `-v`."""
    headline: str | None = None
    """All that `-q` prints; None for nothing."""
    warnings: Sequence[str] = ()
    """What goes to stderr in every mode."""
    notes: Sequence[str] = ()
    """Likewise; nothing is wrong."""


@dataclass(frozen=True, slots=True)
class Sink:
    """The one place that prints: results to stdout, everything else to stderr. Also the options that say how."""

    panel: ClassVar[str] = "Messages"
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print nothing but the result; errors still go to stderr.")
    ] = False
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, show_default=False, help="Print more; -vv prints most.")
    ] = 0
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of tables; errors likewise.")
    ] = False

    def show(self, result: Shown) -> None:
        """Print a result in the way that was asked for."""
        for kind, lines in (("warning", result.warnings), ("note", result.notes)):
            for line in lines:
                print(wrapped(f"speechft-merge: {kind}: {fit(line)}", columns_of(sys.stderr), "  "), file=sys.stderr)
        if self.json:
            _emit(json.dumps(result.document(), indent=2, ensure_ascii=True))
        elif not self.quiet:
            columns = columns_of(sys.stdout)
            for part in result.parts(self.verbose):
                if isinstance(part, str):
                    _emit(wrapped(clean(part), columns))
                else:
                    _emit(part.draw(columns, bold=columns is not None))
        elif result.headline is not None:
            _emit(clean(result.headline))

    def detail(self, text: str) -> None:
        """Print a sentence that `-v` asks for, while the work goes on."""
        if self.verbose:
            print(wrapped(fit(text), columns_of(sys.stderr)), file=sys.stderr)


def _emit(text: str) -> None:
    """Print to stdout; if its reader is gone (`| head`), exit with SIGPIPE's code as other programs do."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at exit
        raise SystemExit(128 + signal.SIGPIPE) from None
