"""Defines `speechft-merge [merge] BASE FINETUNED...`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from speechft_merge.cli.features import FeatureOptions
from speechft_merge.cli.groups import with_groups
from speechft_merge.cli.options import Base, Finetuned, HubOptions, OutputOptions, RecipeOptions, WorkOptions
from speechft_merge.cli.progress import ProgressLine
from speechft_merge.cli.sink import Sink
from speechft_merge.errors import SpeechFTMergeError

if TYPE_CHECKING:
    from speechft_merge.merging import Merge, MergeResult
    from speechft_merge.similarity.report import Report
    from speechft_merge.similarity.request import ProbeRequest

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
    mixing: RecipeOptions,
    output: OutputOptions,
    work: WorkOptions,
    push_to_hub: PushTo = None,
    hub: HubOptions,
    cka: Cka = False,
    features: FeatureOptions,
    sink: Sink,
) -> None:
    """Merge: base + alpha * (finetuned - base), written as a model directory (the default command)."""
    from speechft_merge.cli.show_merge import show_merge
    from speechft_merge.cli.show_plan import details, show_plan
    from speechft_merge.merging import open_merge
    from speechft_merge.output.path import default_name, require_path

    recipe, options = mixing.read(), output.read(work)
    request = features.read(work.workers, "matplotlib") if cka or features.given else None
    named = str(output.output or default_name(finetuned[0], recipe))
    path = require_path(named, (base, *finetuned))
    target = None if push_to_hub is None or output.dry_run else hub.prepare(push_to_hub)
    with open_merge(base, finetuned, recipe, options) as opened:
        if output.dry_run:
            sink.show(show_plan(opened, path, named))
            return
        for line in details(opened, sink.verbose):
            sink.detail(line)
        with ProgressLine(sink) as progress:
            result = opened.write(path, progress)
        report, problem, url = None, None, None
        if request is not None:
            report, problem = _compare(opened, request, result, sink)
        if target is not None:
            url = opened.push(result, target, hub.commit_message, keep=output.output is not None)
    sink.show(show_merge(result, named, url, report, problem))
    if report is not None:
        features.write(report)


def _compare(opened: Merge, request: ProbeRequest, result: MergeResult, sink: Sink) -> tuple[Report | None, str | None]:
    """Return the comparison, or why there is none: no failure here may hide that the merge is written."""
    try:
        with ProgressLine(sink, "clips") as progress:
            report = opened.compare(request, result, progress)
    except Exception as error:
        why = str(error) if isinstance(error, SpeechFTMergeError) else f"{type(error).__name__}: {error}"
        return None, f"merged, but the features were not compared: {why}"
    from speechft_merge.cli.show_report import seconds_in_words  # imports torch

    sink.detail(seconds_in_words(report))
    return report, None
