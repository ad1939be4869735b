"""Defines `speechft-merge verify OUTPUT [BASE FINETUNED...]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speechft_merge.cli.groups import with_groups
from speechft_merge.cli.options import WorkOptions
from speechft_merge.cli.progress import ProgressLine
from speechft_merge.cli.show_verification import show_verification
from speechft_merge.cli.sink import Sink
from speechft_merge.errors import MismatchError, amount

Folder = Annotated[Path, typer.Argument(metavar="OUTPUT", help="The output of a merge.")]
Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[BASE FINETUNED...]", help="Where the models lie now; default: where they were, by its manifest."
    ),
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help="Compare the checksums of its files alone; read no model.",
        rich_help_panel="What is compared",
    ),
]


@with_groups
def verify(folder: Folder, models: Models = None, *, quick: Quick = False, work: WorkOptions, sink: Sink) -> None:
    """Make a merge again from its manifest and compare it with its output, byte by byte; nothing is written.

    Examples:
      speechft-merge verify merged
      speechft-merge verify merged --quick
      speechft-merge verify merged /new/place/base /new/place/asr
    """
    from speechft_merge.verifying import verify as verify_output

    work.require_effect(not quick, "with --quick", "leave out --quick")
    with ProgressLine(sink, f"verifying {folder}") as progress:
        found = verify_output(folder, models or (), quick=quick, options=work.read(), progress=progress)
    sink.show(show_verification(found, str(folder)))
    if found.differences:
        raise MismatchError(
            f"{folder} is not what the merge makes, in {amount(len(found.differences), 'place')}, first "
            f"{found.differences[0]}",
            hint="merge again with --overwrite",
        )
