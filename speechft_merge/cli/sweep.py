"""Defines `speechft-merge sweep BASE FINETUNED...`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speechft_merge.cli.features import ProbeOptions
from speechft_merge.cli.groups import with_groups
from speechft_merge.cli.options import Base, Finetuned, HubOptions, WorkOptions
from speechft_merge.cli.sink import Sink
from speechft_merge.cli.sweep_options import DecisionOptions, GridOptions, ScoreOptions, ShareOptions

if TYPE_CHECKING:
    pass

_PANEL = "Output"
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        help="Folder of the sweep: what is measured is kept there, and counts in the next run. Default: named after "
        "the fine-tune.",
        rich_help_panel=_PANEL,
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Remove the results of another sweep in the folder.", rich_help_panel=_PANEL)
]
MergeBest = Annotated[
    Path | None,
    typer.Option(
        "--merge-best",
        metavar="DIR",
        help="Then write the pick as a model directory, with what speaks for it.",
        rich_help_panel=_PANEL,
    ),
]
PushTo = Annotated[
    str | None, typer.Option("--push-to-hub", metavar="REPO", help="Push the pick.", rich_help_panel=HubOptions.panel)
]
NoCka = Annotated[
    bool,
    typer.Option(
        "--no-cka",
        help="Do not compare features with the base's and the fine-tune's.",
        rich_help_panel=ProbeOptions.panel,
    ),
]


@with_groups
def sweep(
    base: Base = None,
    finetuned: Finetuned = None,
    *,
    grid: GridOptions,
    scores: ScoreOptions,
    decision: DecisionOptions,
    output: Output = None,
    overwrite: Overwrite = False,
    merge_best: MergeBest = None,
    push_to_hub: PushTo = None,
    hub: HubOptions,
    share: ShareOptions,
    no_cka: NoCka = False,
    features: ProbeOptions,
    work: WorkOptions,
    sink: Sink,
) -> None:
    """Find out which alpha: make every merge of a grid in memory, compare and score it, and decide by a rule."""
    models = [*filter(None, [base]), *(finetuned or ())]
