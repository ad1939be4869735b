"""`speechft-merge compare BASE FINETUNED [MERGED]`, and what `--cka` adds to a merge."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speechft_merge.cli import options
from speechft_merge.cli.sink import Output, ProgressLine
from speechft_merge.errors import UsageError
from speechft_merge.recipe.recipe import Recipe, override, read_recipe
from speechft_merge.recipe.rules import parse_rule
from speechft_merge.similarity.request import MEMORY, SECONDS, ProbeRequest, figure_kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechft_merge.similarity.report import Report

Models = Annotated[
    list[str],
    typer.Argument(
        metavar="BASE FINETUNED [MERGED]",
        help="The models, on disk or on the Hub; without MERGED it is made in memory.",
    ),
]


def compare(
    models: Models,
    alpha: options.Alpha = None,
    layer_alpha: options.LayerAlpha = None,
    recipe: options.RecipeFile = None,
    probe: options.ProbePaths = None,
    probe_seconds: options.ProbeSeconds = None,
    estimator: options.EstimatorName = None,
    device: options.Device = None,
    null: options.Null = False,
    memory: options.Memory = None,
    plot: options.Plot = None,
    heatmap: options.Heatmap = None,
    csv: options.CsvFile = None,
    download: options.DownloadFirst = False,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Compare the features of a base, a fine-tune and their merge, layer by layer (CKA); no model is written."""
    shown = Output(json, quiet, verbose)
    if not 2 <= len(models) <= 3:
        raise UsageError(f"compare takes a base, a fine-tune and perhaps their merge; got {len(models)} models")
    if len(models) == 3 and (alpha is not None or layer_alpha or recipe):
        raise UsageError("a merge is given; --alpha, --layer-alpha and --recipe are for one made in memory")
    rules = tuple(parse_rule(text) for text in layer_alpha or ())
    whole = override(read_recipe(recipe) if recipe else Recipe(), alpha=alpha, layer_alpha=rules)
    request = make_request(probe, probe_seconds, estimator, device, null, memory, heatmap)
    require_means(request, plot, heatmap)
    report = run(shown, models[:2], models[2] if len(models) == 3 else None, request, whole, download, threads)
    write_files(report, plot, heatmap, csv)
    shown.document(report.to_json())
    show_report(shown, report)
    show_means(shown, report)


def make_request(
    probe: list[str] | None, seconds: float | None, estimator: str | None, device: str | None, null: bool,
    memory: str | None, heatmap: Path | None,
) -> ProbeRequest:  # fmt: skip
    """What the options ask for."""
    from speechft_merge.sizes import parse_size

    paths: tuple[Path, ...] | None = None
    if probe:
        words = [word for given in probe for word in (sys.stdin.read().splitlines() if given == "-" else [given])]
        paths = tuple(Path(word) for word in words if word.strip())
    return ProbeRequest(
        paths=paths, seconds=SECONDS if seconds is None else seconds, estimator=estimator or "utterance",  # type: ignore[arg-type]
        device=device, null=null, grid=heatmap is not None, memory=MEMORY if memory is None else parse_size(memory),
    )  # fmt: skip


def require_means(request: ProbeRequest, plot: Path | None, heatmap: Path | None, *packages: str) -> None:
    """Find out before any work that it can be done and shown."""
    figures = [figure_kind(path) for path in (plot, heatmap) if path is not None]
    request.require_means(*packages, *(["matplotlib"] if figures else []))
    if request.device is not None:
        from speechft_merge.similarity.encoders import choose_device

        choose_device(request.device)


def run(
    shown: Output, pair: Sequence[str], merged: str | None, request: ProbeRequest, recipe: Recipe, download: bool,
    threads: int | None,
) -> Report:  # fmt: skip
    """Compare, with progress."""
    import torch

    from speechft_merge.merging import MergeOptions
    from speechft_merge.merging import compare as compare_models

    if threads is not None:
        torch.set_num_threads(threads)
    progress = ProgressLine(shown, "clips")
    try:
        options = MergeOptions(download=download)
        return compare_models(pair[0], pair[1:], merged, request, recipe=recipe, options=options, progress=progress)
    finally:
        progress.stop()


def write_files(report: Report, plot: Path | None, heatmap: Path | None, csv: Path | None) -> None:
    """The figures and the table that were asked for."""
    from speechft_merge.output.folder import write_whole
    from speechft_merge.similarity.plot import draw_grids, draw_lines

    if plot is not None:
        write_whole(plot, draw_lines(report, figure_kind(plot)))
    if heatmap is not None and report.grids:
        write_whole(heatmap, draw_grids(report, figure_kind(heatmap)))
    if csv is not None:
        write_whole(csv, report.to_csv().encode())


def show_report(shown: Output, report: Report) -> None:
    """The table for people, and how to read it."""
    for warning in report.warnings:
        shown.warn(warning)
    titles, *rows = report.to_table()
    shown.table(titles, rows)
    if shown.verbose:
        show_others(shown, report)
    shown.say(
        f"CKA ({report.estimator}) of the input of the first block and of each block's output; {report.utterances} "
        f"utterances, {report.frames} frames; probe {report.probe['origin']}, sha256 {report.probe['sha256'][:12]}"
    )
    for sentence in report.in_words():
        shown.say(sentence)


def show_means(shown: Output, report: Report) -> None:
    """With `-q`: the mean CKA of each pair."""
    if shown.quiet:
        shown.result(" ".join(f"{report.mean[pair][0]:.6f}" for pair in report.mean))


def show_others(shown: Output, report: Report) -> None:
    """The other measures, and what took how long."""
    from speechft_merge.similarity.report import LABELS

    heads = ["layer", "models", "frame", "biased", "procrustes", "cosine"]
    rows = [
        [
            layer.key.label,
            LABELS[pair],
            *(f"{value:.3f}" for value in (found.frame, found.biased, found.procrustes, found.cosine)),
        ]
        for layer in report.layers
        for pair, found in layer.pairs.items()
    ]
    shown.table(heads, rows)
    shown.detail(", ".join(f"{what} {seconds:.1f} s" for what, seconds in report.seconds.items()))
