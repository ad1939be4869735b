"""`speechft-merge [merge] BASE FINETUNED...`."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechft_merge.cli import options
from speechft_merge.cli.compare import make_request, require_means, run, show_report, write_files
from speechft_merge.cli.sink import Output, ProgressLine, megabytes
from speechft_merge.errors import OutputError, SpeechFTMergeError
from speechft_merge.recipe.recipe import Recipe, override, read_recipe
from speechft_merge.recipe.rules import parse_rule
from speechft_merge.sources.reference import HubReference, parse_reference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechft_merge.merging import Merge, MergeResult
    from speechft_merge.push import PushTarget
    from speechft_merge.record.layers import LayerRow
    from speechft_merge.similarity.report import Report
    from speechft_merge.similarity.request import ProbeRequest


def merge(
    base: options.Base,
    finetuned: options.Finetuned,
    output: options.OutputDir = None,
    alpha: options.Alpha = None,
    layer_alpha: options.LayerAlpha = None,
    weight: options.Weight = None,
    recipe: options.RecipeFile = None,
    keep_head: options.KeepHead = False,
    dtype: options.DTypeName = None,
    format: options.FormatName = None,
    extrapolate: options.Extrapolate = False,
    max_shard_size: options.MaxShardSize = None,
    overwrite: options.Overwrite = False,
    allow_unrelated: options.AllowUnrelated = False,
    dry_run: options.DryRun = False,
    threads: options.Threads = None,
    download: options.DownloadFirst = False,
    push_to_hub: options.PushTo = None,
    private: options.Private = False,
    create_pr: options.CreatePr = False,
    branch: options.Branch = None,
    commit_message: options.CommitMessage = None,
    fsync: options.Fsync = True,
    cka: options.Cka = False,
    probe: options.ProbePaths = None,
    probe_seconds: options.ProbeSeconds = None,
    estimator: options.EstimatorName = None,
    device: options.Device = None,
    null: options.Null = False,
    memory: options.Memory = None,
    plot: options.Plot = None,
    heatmap: options.Heatmap = None,
    csv: options.CsvFile = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Merge: base + alpha * (finetuned - base), written as a model directory (the default command)."""
    from speechft_merge.merging import MergeOptions, open_merge
    from speechft_merge.output.place import default_name, require_place
    from speechft_merge.sizes import parse_size

    shown = Output(json, quiet, verbose)
    whole = override(
        read_recipe(recipe) if recipe else Recipe(),
        alpha=alpha,
        layer_alpha=tuple(parse_rule(text) for text in layer_alpha or ()),
        weight=tuple(weight or ()),
        dtype=dtype,
        format=format,
        keep_head=keep_head,
        extrapolate=extrapolate,
    )
    others = (probe, probe_seconds, estimator, device, memory, plot, heatmap, csv)
    asked = cka or null or any(option is not None for option in others)
    request = make_request(probe, probe_seconds, estimator, device, null, memory, heatmap) if asked else None
    if request is not None:
        require_means(request, plot, heatmap, "matplotlib")
    named = output or default_name(finetuned[0], whole)
    place = require_place(named, (base, *finetuned))
    target = None if dry_run else _push_target(push_to_hub, private=private, create_pr=create_pr, branch=branch)
    limit = None if max_shard_size is None else parse_size(max_shard_size)
    settings = MergeOptions(overwrite, allow_unrelated, download, threads, fsync, limit, tuple(sys.argv[1:]))
    prepared = open_merge(base, finetuned, whole, settings)
    if dry_run:
        show_plan(shown, prepared, place, str(named))
        return
    show_details(shown, prepared)
    progress = ProgressLine(shown)
    try:
        result = prepared.write(place, progress)
    finally:
        progress.stop()
        prepared.close()
    report, problem = None, None
    if request is not None:
        report, problem = _compare(shown, (base, *finetuned), result, request, download, threads)
    unwritten = None if report is None else _write_files(report, plot, heatmap, csv)
    url = None if target is None else _push(result, target, commit_message, named, keep=output is not None)
    show_result(shown, result, str(named), url, report, problem)
    if unwritten is not None:
        raise unwritten


def _compare(
    shown: Output, models: Sequence[str], result: MergeResult, request: ProbeRequest, download: bool,
    threads: int | None,
) -> tuple[Report | None, str | None]:  # fmt: skip
    """What the merge did to the features, put beside it; or why that cannot be told, which does not undo the merge."""
    try:
        report = run(shown, _pinned(models, result), str(result.output), request, Recipe(), download, threads)
        from speechft_merge.similarity.attach import attach

        return attach(result.output, report), None
    except SpeechFTMergeError as error:
        return None, f"merged, but the features were not compared: {error}"
    except Exception as error:  # nothing that happens here may hide that the merge is there
        return None, f"merged, but the features were not compared: {type(error).__name__}: {error}"


def _pinned(models: Sequence[str], result: MergeResult) -> list[str]:
    """The references with the commits that were merged: a branch may have moved since."""
    described = [result.manifest.base, *result.manifest.finetuned]
    pinned = list(models)
    for number, (reference, entry) in enumerate(zip(models, described, strict=True)):
        found = parse_reference(reference)
        if isinstance(found, HubReference) and entry.hub is not None:
            pinned[number] = str(replace(found, revision=entry.hub.commit))
    return pinned


def _write_files(report: Report, plot: Path | None, heatmap: Path | None, csv: Path | None) -> OutputError | None:
    """The figures; what stands in their way is told last, since the merge is there all the same."""
    try:
        write_files(report, plot, heatmap, csv)
    except OutputError as error:
        return error
    return None


def _push_target(repo: str | None, *, private: bool, create_pr: bool, branch: str | None) -> PushTarget | None:
    """Where to push, found out before the merge begins."""
    if repo is None:
        return None
    from speechft_merge.push import prepare_push

    return prepare_push(repo, private=private, create_pr=create_pr, branch=branch)


def _push(result: MergeResult, target: PushTarget, message: str | None, named: Path | str, keep: bool) -> str:
    """Push what was merged; afterwards it is removed here unless a place was named for it."""
    from speechft_merge.push import push, push_command

    try:
        url = push(result.output, target, message)
    except SpeechFTMergeError as error:
        error.add_note(f"the merged model is in {named}; push it with: {push_command(named, target, message)}")
        raise
    if not keep and not result.already_done:
        shutil.rmtree(result.output, ignore_errors=True)
    return url


def show_result(
    shown: Output, result: MergeResult, named: str, url: str | None = None, report: Report | None = None,
    problem: str | None = None,
) -> None:  # fmt: skip
    """What was merged, layer by layer, what that did to the features, and where it is."""
    from speechft_merge.executor.drift import Drift

    warnings = [*result.warnings, *([] if problem is None else [problem])]
    for warning in warnings:
        shown.warn(warning)
    if shown.json:
        extra: dict[str, Any] = {"output": named, "pushed": url, "already_done": result.already_done}
        extra["warnings"] = warnings
        similarity = {} if report is None else {"similarity": report.to_json()}
        shown.document(extra | result.manifest.to_json() | similarity)
        return
    if result.already_done:
        shown.say("already done: the output is there, with the same inputs and recipe, and whole")
    else:
        show_layers(shown, result.manifest.layers)
        counts = ", ".join(f"{count} {what}" for what, count in result.manifest.counts.items() if count)
        drift = Drift.relative(result.drifts.values())
        moved = "" if drift is None else f"; the fine-tune lies {drift:.2%} from the base"
        shown.say(f"{counts}{moved}")
    if report is not None:
        show_report(shown, report)
    shown.result(url or named)


def show_layers(shown: Output, rows: Sequence[LayerRow]) -> None:
    """The table of layers, without columns that say nothing, and under it why tensors were not interpolated."""
    from speechft_merge.record.layers import drift_cell

    columns: dict[str, list[str]] = {
        "layer": [row.key.label for row in rows],
        "alpha": [row.alpha_cell for row in rows],
        "drift": [drift_cell(row.drift) for row in rows],
        "interpolated": [str(row.interpolated) for row in rows],
        "identical": [str(row.identical or 0) for row in rows],
        "copied": [str(row.copied) for row in rows],
        "left out": [str(row.left_out) for row in rows],
        "parameters": [f"{row.parameters:,}" for row in rows],
    }
    told = {title: cells for title, cells in columns.items() if any(cell not in ("-", "0") for cell in cells)}
    shown.table(list(told), list(zip(*told.values(), strict=True)))
    for row in rows:
        for reason in row.reasons:
            shown.say(f"{row.key.label}: {reason}")


def show_plan(shown: Output, prepared: Merge, place: Path, named: str) -> None:
    """What `--dry-run` prints."""
    from speechft_merge.record.layers import summarise_layers

    document = describe_plan(prepared, place, named)
    for warning in prepared.warnings:
        shown.warn(warning)
    shown.document(document)
    show_layers(shown, summarise_layers(prepared.plan))
    files = ", ".join(f"{file['file']} ({megabytes(file['size'])})" for file in document["files"])
    shown.say(f"would write {files} and {', '.join(document['companions']) or 'no config'}")
    free, workers = megabytes(document["free_bytes"]), f"{document['workers']} workers ({document['workers_reason']})"
    needed = megabytes(document["needed_bytes"])
    shown.say(f"reads {megabytes(document['read_bytes'])}, needs {needed} of disk ({free} free), {workers}")
    for entry in document["finetuned"]:
        shown.say(f"{entry['reference']}: {_relation(entry['cosine'])}")
    shown.result(named)


def show_details(shown: Output, prepared: Merge) -> None:
    """What `-v` adds: how the models were found to belong together, and with `-vv` every tensor."""
    for checkpoint, relation in zip(prepared.finetuned, prepared.relations, strict=True):
        shown.detail(f"{checkpoint.reference}: {checkpoint.container}, {_relation(relation.median)}")
    shown.detail(f"{prepared.workers.count} workers ({prepared.workers.reason})")
    if shown.verbose > 1:
        for tensor in (*prepared.plan.tensors, *prepared.plan.left_out):
            alpha = f" alpha {tensor.alpha:g}" if tensor.alpha is not None else ""
            shown.detail(f"{tensor.name}: {tensor.action}{alpha} {tensor.reason}".rstrip())


def describe_plan(prepared: Merge, place: Path, named: str) -> dict[str, Any]:
    """The plan as `--dry-run --json` prints it."""
    from speechft_merge.output.place import free_space
    from speechft_merge.record.layers import summarise_layers

    plan, files = prepared.plan, prepared.files
    return {
        "output": named,
        "recipe": plan.recipe.to_json(),
        "counts": plan.counts,
        "coverage": min(plan.coverages),
        "files": [{"file": file.name, "size": file.size} for file in files.files],
        "companions": sorted(prepared.companions),
        "read_bytes": files.read_bytes,
        "needed_bytes": files.size,
        "free_bytes": free_space(place)[1],
        "workers": prepared.workers.count,
        "workers_reason": prepared.workers.reason,
        "finetuned": [
            {"reference": checkpoint.reference, "cosine": relation.median}
            for checkpoint, relation in zip(prepared.finetuned, prepared.relations, strict=True)
        ],
        "layers": [row.to_json() for row in summarise_layers(plan)],
        "warnings": list(prepared.warnings),
    }


def _relation(cosine: float | None) -> str:
    return (
        "too small to tell whether it is related to the base" if cosine is None else f"cosine to the base {cosine:.4f}"
    )
