"""Defines `speechft-merge compare BASE FINETUNED [MERGED]`."""

from __future__ import annotations

from typing import Annotated

import typer

from speechft_merge.cli.features import FeatureOptions
from speechft_merge.cli.groups import with_groups
from speechft_merge.cli.options import AlphaOptions, WorkOptions
from speechft_merge.cli.progress import ProgressLine
from speechft_merge.cli.sink import Sink
from speechft_merge.errors import UsageError, amount
from speechft_merge.progress import Step

Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="BASE FINETUNED [MERGED]",
        help="The models, on disk or on the Hub; without MERGED it is made in memory.",
    ),
]


@with_groups
def compare(
    models: Models = None, *, mixing: AlphaOptions, features: FeatureOptions, work: WorkOptions, sink: Sink
) -> None:
    """Compare the features of a base, a fine-tune and their merge, layer by layer (CKA); no model is written.

    Examples:
      speechft-merge compare base asr --alpha 0.5
      speechft-merge compare base asr merged --null --plot cka.png --csv cka.csv
      speechft-merge compare base asr --probe recordings/ --group-by '/(spk\\d+)_'
    """
    given = models or []
    if len(given) not in (0, 2, 3):
        raise UsageError(
            f"compare takes a base, a fine-tune and perhaps their merge; got {amount(len(given), 'model')}",
            hint="for a merge of several fine-tunes give a recipe that names them",
        )
    merged = given[2] if len(given) == 3 else None
    mixing.require_effect(merged is None, f"on a merge that is given ({merged})", "leave out the merge")
    recipe, request = mixing.read(), features.read(work)
    base, *finetuned = mixing.models(given[:2])
    with ProgressLine(sink, f"comparing {' + '.join((base, *finetuned))}") as progress:
        progress(Step("importing transformers"))
        from speechft_merge.cli.show_report import seconds_in_words, show_report
        from speechft_merge.comparing import compare as compare_models

        report = compare_models(base, finetuned, merged, request, recipe=recipe, options=work.read(), progress=progress)
    features.write(report)
    sink.detail(seconds_in_words(report))
    sink.show(show_report(report))
