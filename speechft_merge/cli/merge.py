"""Defines `speechft-merge [merge] BASE FINETUNED...`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from speechft_merge.background import wait_for
from speechft_merge.cli.features import FeatureOptions
from speechft_merge.cli.groups import with_groups
from speechft_merge.cli.options import Base, Finetuned, HubOptions, OutputOptions, RecipeOptions, WorkOptions
from speechft_merge.cli.progress import ProgressLine
from speechft_merge.cli.sink import Sink
from speechft_merge.errors import ComparisonError, MismatchError, SpeechFTMergeError, amount
from speechft_merge.progress import Step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from speechft_merge.merging import Merge, MergeResult
    from speechft_merge.progress import Progress
    from speechft_merge.push import Pushed, PushTarget
    from speechft_merge.similarity.report import Report
    from speechft_merge.similarity.request import ProbeRequest

PushTo = Annotated[
    str | None,
    typer.Option(
        metavar="REPO",
        help="Push the result, with the token in HF_TOKEN or of 'hf auth login'; without -o the local copy is removed.",
        rich_help_panel=HubOptions.panel,
    ),
]
Cka = Annotated[
    bool,
    typer.Option(
        "--cka",
        help="Then compare the features of base, fine-tune and merge on a probe batch of speech; the others here say "
        "how.",
        rich_help_panel=FeatureOptions.panel,
    ),
]


@with_groups
def merge(
    base: Base = None,
    finetuned: Finetuned = None,
    *,
    mixing: RecipeOptions,
    output: OutputOptions,
    push_to_hub: PushTo = None,
    hub: HubOptions,
    cka: Cka = False,
    features: FeatureOptions,
    work: WorkOptions,
    sink: Sink,
) -> None:
    """Merge: base + alpha * (finetuned - base), written as a model directory (the default command).

    Examples:
      speechft-merge facebook/hubert-base-ls960 ./my-asr -o merged
      speechft-merge base asr --layer-alpha cnn=0 --layer-alpha 6-11=0.1:0.5
      speechft-merge base asr emotion --weight 2 --weight 1 --dtype fp16
      speechft-merge base asr --alpha 50% --cka --plot cka.png --push-to-hub me/mix
    """
    from speechft_merge.cli.show_merge import show_merge
    from speechft_merge.cli.show_plan import details, show_plan
    from speechft_merge.merging import open_merge
    from speechft_merge.output.path import default_name, require_path

    features.require_effect(cka, "without --cka", "pass --cka")
    hub.require_effect(push_to_hub is not None, "without --push-to-hub", "pass --push-to-hub")
    base, *finetuned = mixing.models([*filter(None, [base]), *(finetuned or ())])
    recipe, options = mixing.read(), output.read(work)
    request = features.read(work, "matplotlib") if cka else None
    named = str(output.output or default_name(finetuned[0], recipe))
    path = require_path(named, (base, *finetuned))
    if output.dry_run:
        with open_merge(base, finetuned, recipe, options) as opened:
            sink.show(show_plan(opened, path, named))
        return
    target = None if push_to_hub is None else hub.prepare(push_to_hub)
    how = f"alpha {recipe.alpha:g}" + (" and rules for layers" if recipe.layer_alpha else "")
    with ProgressLine(sink, f"{' + '.join((base, *finetuned))} -> {push_to_hub or named} ({how})") as progress:
        progress(Step("opening the models"))
        with open_merge(base, finetuned, recipe, options) as opened:
            for line in details(opened, sink.verbose):
                sink.detail(line)
            temporary = target is not None and output.output is None
            result = opened.write(path, progress, temporary=temporary, keep_inputs=cka)
            with _complete(named):
                if output.verify:
                    _verify(opened, path, named, progress)
                compared = None if request is None else _compare(opened, request, result, progress)
                pushed = None
                if target is not None:
                    pushed = _push(opened, result, target, hub.commit_message, compared, progress)
    if output.verify:
        sink.detail("verified: every byte is what the merge makes")
    with _complete(named):
        if compared is not None and not isinstance(compared, ComparisonError):
            from speechft_merge.cli.show_report import seconds_in_words

            sink.detail(seconds_in_words(compared))
        sink.show(show_merge(result, named, pushed, compared))
        if isinstance(compared, ComparisonError):
            raise compared
        if compared is not None:
            features.write(compared)


@contextlib.contextmanager
def _complete(named: str) -> Iterator[None]:
    """Say of a signal, or a stdout that is full, after the commit that the merge is complete."""
    try:
        yield
    except (SystemExit, OSError) as stopped:  # also where the reader of stdout is gone, which the code alone tells
        stopped.add_note(f"the merge is complete: {named}")
        raise


def _verify(opened: Merge, path: Path, named: str, progress: Progress) -> None:
    """Raise MismatchError if the output is not what the merge makes: the disk or the memory is at fault."""
    found = opened.replay(path, progress)
    if found:
        raise MismatchError(
            f"{named} was written, but it is not what the merge makes, in {amount(len(found), 'place')}, first "
            f"{found[0]}",
            hint="check the disk, and merge again with --overwrite",
        )


def _push(
    opened: Merge, result: MergeResult, target: PushTarget, message: str | None,
    compared: Report | ComparisonError | None, progress: Progress,
) -> Pushed:  # fmt: skip
    """Push the output, also if the comparison failed; a push that fails as well tells of both."""
    try:
        return wait_for(lambda: opened.push(result, target, message, progress))
    except SpeechFTMergeError as error:
        if isinstance(compared, ComparisonError):
            error.add_note(str(compared))
        raise


def _compare(opened: Merge, request: ProbeRequest, result: MergeResult, progress: Progress) -> Report | ComparisonError:
    """Return the comparison, or why there is none: no failure here may hide that the merge is written."""
    try:
        return opened.compare(request, result, progress)
    except Exception as error:
        why, told = f"{type(error).__name__}: {error}", {}
        if isinstance(error, SpeechFTMergeError):
            why, told = error.message, {"found": error.found, "hint": error.hint}
        failed = ComparisonError(f"merged, but the features were not compared: {why}", **told)
        failed.__cause__ = error
        return failed
