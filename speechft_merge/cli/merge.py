"""Defines `speechft-merge [merge] BASE FINETUNED...`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from speechft_merge.cli.features import FeatureOptions
from speechft_merge.cli.groups import with_groups
from speechft_merge.cli.options import Base, Finetuned, HubOptions, OutputOptions, RecipeOptions, WorkOptions
from speechft_merge.cli.progress import ProgressLine
from speechft_merge.cli.sink import Sink
from speechft_merge.errors import SpeechFTMergeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from speechft_merge.similarity.report import Report

PushTo = Annotated[
    str | None,
    typer.Option(
        metavar="REPO", help="Push the result; without -o the local copy is removed.", rich_help_panel=HubOptions.panel
    ),
]
Cka = Annotated[
    bool,
    typer.Option(
        "--cka",
        help="Then compare the features of base, fine-tune and merge on a probe batch of speech.",
        rich_help_panel=FeatureOptions.panel,
    ),
]


@with_groups
def merge(
    base: Base,
    finetuned: Finetuned,
    *,
    recipe: RecipeOptions,
    output: OutputOptions,
    work: WorkOptions,
    push_to_hub: PushTo = None,
    hub: HubOptions,
    cka: Cka = False,
    features: FeatureOptions,
    shown: Sink,
) -> None:
    """Merge: base + alpha * (finetuned - base), written as a model directory (the default command)."""
    from speechft_merge.cli.merge_view import MergeView, PlanView, details
    from speechft_merge.merging import MergeOptions, open_merge
    from speechft_merge.output.place import default_name, require_place

    whole = recipe.read()
    request = features.read(work.workers, "matplotlib") if cka or features.given else None
    named = output.output or default_name(finetuned[0], whole)
    place = require_place(named, (base, *finetuned))
    target = None if push_to_hub is None or output.dry_run else hub.prepare(push_to_hub)
    settings = MergeOptions(
        overwrite=output.overwrite,
        allow_unrelated=output.allow_unrelated,
        download=work.download,
        workers=work.workers,
        fsync=output.fsync,
        max_shard_size=output.shard_limit,
        command=tuple(sys.argv[1:]),
    )
    with open_merge(base, finetuned, whole, settings) as opened:
        if output.dry_run:
            shown.show(PlanView(opened, place, str(named)))
            return
        for line in details(opened, shown.verbose):
            shown.detail(line)
        with ProgressLine(shown) as progress:
            result = opened.write(place, progress)
        report, problem = None, None
        if request is not None:
            with ProgressLine(shown, "clips") as progress:
                report, problem = _attempt(lambda: opened.compare(request, result, progress))
        keep = output.output is not None
        url = None if target is None else opened.push(result, target, hub.commit_message, keep=keep)
    shown.show(MergeView(result, str(named), url, report, problem))
    if report is not None:
        features.write(report)


def _attempt(compare: Callable[[], Report]) -> tuple[Report | None, str | None]:
    """Return the comparison, or why there is none: no failure here may hide that the merge is written."""
    try:
        return compare(), None
    except Exception as error:
        why = str(error) if isinstance(error, SpeechFTMergeError) else f"{type(error).__name__}: {error}"
        return None, f"merged, but the features were not compared: {why}"
