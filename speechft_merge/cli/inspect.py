"""Defines `speechft-merge inspect MODEL` and `inspect BASE FINETUNED`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from speechft_merge.cli.groups import with_groups
from speechft_merge.cli.sink import Sink

References = Annotated[
    list[str],
    typer.Argument(metavar="MODEL...", help="A model, or a base and fine-tunes to be matched with it."),
]


@with_groups
def inspect(models: References, sink: Sink) -> None:
    """Show what is in a checkpoint, or how two would be matched; no weights are read. -v lists every tensor.

    Examples:
      speechft-merge inspect facebook/wav2vec2-base
      speechft-merge inspect checkpoint_best.pt --json
      speechft-merge inspect base asr -v
    """
    from speechft_merge.checkpoints import open_checkpoint

    with ExitStack() as opened:
        base, *finetuned = [opened.enter_context(open_checkpoint(reference)) for reference in models]
        if not finetuned:
            from speechft_merge.cli.show_checkpoint import show_checkpoint

            sink.show(show_checkpoint(base))
        else:
            from speechft_merge.cli.show_match import show_match
            from speechft_merge.plan.models import prepare_models
            from speechft_merge.plan.plan import make_plan
            from speechft_merge.recipe import Recipe

            (base, *finetuned), found = prepare_models(base, finetuned, Recipe())
            plan = make_plan(base, finetuned, Recipe())
            sink.show(show_match(plan, [*found, *plan.findings], models))
