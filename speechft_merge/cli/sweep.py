"""Defines `speechft-merge sweep BASE FINETUNED...`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speechft_merge.background import wait_for
from speechft_merge.cli.features import ProbeOptions
from speechft_merge.cli.groups import with_groups
from speechft_merge.cli.options import Base, Finetuned, HubOptions, WorkOptions
from speechft_merge.cli.progress import ProgressLine
from speechft_merge.cli.sink import Sink
from speechft_merge.cli.submission import SubmitOptions
from speechft_merge.cli.sweep_options import DecisionOptions, GridOptions, ScoreOptions, ShareOptions
from speechft_merge.errors import GateError, OutputError, TemporaryError, UsageError
from speechft_merge.progress import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from speechft_merge.bench import SweepRequest
    from speechft_merge.options import MergeOptions
    from speechft_merge.push import PushTarget
    from speechft_merge.scoring.scores import Better
    from speechft_merge.sweep.decision import Rule
    from speechft_merge.sweep.grid import Cell
    from speechft_merge.sweep.report import SweepReport
    from speechft_merge.sweep.share import Share
    from speechft_merge.sweeping import Swept

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
    no_cka: NoCka = False,
    features: ProbeOptions,
    work: WorkOptions,
    share: ShareOptions,
    submission: SubmitOptions,
    sink: Sink,
) -> None:
    """Find out which alpha: make every merge of a grid in memory, compare and score it, and decide by a rule.

    Examples:
      speechft-merge sweep base asr --wer dev/ --minimize wer --merge-best merged
      speechft-merge sweep base asr --probe-task phones=dev.tsv \\
          --gate 'phones>=base-0.01' --maximize cka_base --alphas 0:0.5:0.05
      speechft-merge sweep base asr --wer dev/ -o sweep --submit slurm --gpus 1
      speechft-merge sweep --collect -o sweep --minimize wer
    """
    models = [*filter(None, [base]), *(finetuned or ())]
    folder, rule, part = _folder(output, models, share.collect), decision.read(), share.read()
    features.require_effect(not no_cka, "with --no-cka", "leave --no-cka out")
    if submission.submit is not None and "-" in (features.probe or ()):
        raise UsageError("jobs cannot read a probe from this stdin", hint="name its files or folders")
    hub.require_effect(push_to_hub is not None, "without --push-to-hub", "pass --push-to-hub")
    _require_goal(rule, merge_best, push_to_hub)
    target = None if push_to_hub is None or part is not None else hub.prepare(push_to_hub)
    swept = None
    if share.collect:
        for group in (grid, scores, features, submission):
            group.require_effect(False, "with --collect", "leave --collect out")
        if overwrite or no_cka:
            raise UsageError(f"--{'overwrite' if overwrite else 'no-cka'} has no effect with --collect")
    else:
        request = _request(models, grid, scores, None if no_cka else features, work)
        _check(decision, rule, request)
        options = replace(grid.allow(work.read()), overwrite=overwrite)
        swept = _run(models, folder, request, options, part, submission, sink)
        if swept is None:
            return
    _conclude(folder, decision, rule, merge_best, target, hub.commit_message, grid.allow(work.read()), swept, sink)


def _conclude(
    folder: Path, decision: DecisionOptions, rule: Rule, merge_best: Path | None, target: PushTarget | None,
    message: str | None, options: MergeOptions, swept: Swept | None, sink: Sink,
) -> None:  # fmt: skip
    """Decide on what is measured, write the report and the pick, show both."""
    from speechft_merge.cli.show_sweep import show_sweep
    from speechft_merge.push import push
    from speechft_merge.sweep.grid import BASE, FINETUNED
    from speechft_merge.sweeping import collect, write_report
    from speechft_merge.sweeping import merge_best as write_pick

    report = collect(folder, rule, decision.cka_floor)
    if report.decision.goal is not None:
        decision.require_direction(report.decision.goal.name, report.decision.goal.better)
    notes, failed = list(swept.notes if swept is not None else ()), None
    try:
        notes += write_report(report, folder)
    except OutputError as error:  # what was measured is shown all the same
        failed = error
    if merge_best is not None and report.decision.pick in (BASE, FINETUNED):
        notes.append(f"the pick is {report.decision.pick.label}: what is written has the weights of one of the models")
    result, pushed = None, None
    if merge_best is not None and report.decision.pick is not None and not report.missing:
        with ProgressLine(sink, f"{report.decision.pick.label} -> {merge_best}") as progress:
            result = write_pick(folder, report.decision, merge_best, options, progress)
            if target is not None:
                pushed = wait_for(lambda: push(result.output, target, message, progress))
    sink.show(show_sweep(report, str(folder), result, pushed, notes))
    if failed is not None:
        raise failed
    _require_pick(report, folder)


def _folder(output: Path | None, models: Sequence[str], collects: bool) -> Path:
    from speechft_merge.output.path import require_path, stem_of

    if len(models) < 2 and (output is None or not collects):
        missing = "--output" if collects else "FINETUNED..." if models else "BASE"
        raise UsageError(
            f"missing {'option' if collects else 'argument'} '{missing}'", hint="run speechft-merge sweep -h"
        )
    return require_path(output or f"{stem_of(models[1])}-sweep", models)


def _require_goal(rule: Rule, merge_best: Path | None, push_to_hub: str | None) -> None:
    if merge_best is not None and rule.goal is None:
        raise UsageError("--merge-best has nothing to go by", hint="say which score decides: --maximize or --minimize")
    if push_to_hub is not None and merge_best is None:
        raise UsageError("--push-to-hub has nothing to push", hint="pass --merge-best DIR, which it pushes")


def _request(
    models: Sequence[str], grid: GridOptions, scores: ScoreOptions, features: ProbeOptions | None, work: WorkOptions
) -> SweepRequest:
    """Return what is swept, after checking that it can be."""
    from speechft_merge.bench import SweepRequest

    probe = None if features is None else features.probed(work)
    if probe is not None:
        probe.require_means()
    scorers = scores.read()
    if probe is None and not scorers:
        raise UsageError(
            "there is nothing to measure", hint="give a score (--probe-task, --wer, --score), or no --no-cka"
        )
    return SweepRequest(grid.cells(len(models) - 1), grid.read(), scorers, probe, scores.scratch)


def _check(decision: DecisionOptions, rule: Rule, request: SweepRequest) -> None:
    """Refuse a rule that names no score, before the first cell; of commands and functions only the name is known."""
    from speechft_merge.sweep.gate import check_gates, check_goal
    from speechft_merge.sweep.intervals import FEATURES

    owners = {str(scorer.description["name"]): scorer.names for scorer in request.scorers}
    known: dict[str, Better | None] = {}
    for owner, names in owners.items():
        known |= dict(names) or dict.fromkeys([owner])
    for name in [*([rule.goal] if rule.goal else []), *(gate.name for gate in rule.gates)]:
        if owners.get(name.partition(".")[0]) == {}:
            known.setdefault(name)
    check_gates(rule.gates, known | dict.fromkeys(FEATURES if request.probe is not None else ()))
    if rule.goal is not None:
        check_goal(rule.goal, known)
        decision.require_direction(rule.goal, known[rule.goal])


def _run(
    models: Sequence[str], folder: Path, request: SweepRequest, options: MergeOptions, part: Share | None,
    submission: SubmitOptions, sink: Sink,
) -> Swept | None:  # fmt: skip
    """Measure this process's share, or let jobs measure all; return None where it is not yet time to decide."""
    from speechft_merge.cli.show_sweep import show_share

    base, *finetuned = models
    submission.require_effect(submission.submit is not None, "without --submit", "pass --submit slurm or local")
    submits = submission.submit is not None and part is None
    share: Callable[[Sequence[Cell]], Sequence[Cell]] = part.of if part else lambda cells: () if submits else cells
    with ProgressLine(sink, f"{' + '.join(models)} -> {folder}: {len(request.cells)} cells") as progress:
        progress(Step("importing transformers"))
        from speechft_merge.sweeping import sweep as measure

        swept = wait_for(lambda: measure(base, finetuned, folder, request, options, share, progress))
    if submits:
        return swept if submission.start(folder, sink) else None
    if part is not None:
        sink.show(show_share(part, swept, str(folder)))
        return None
    return swept


def _require_pick(report: SweepReport, folder: Path) -> None:
    """Raise what gives the exit code of a sweep that is not whole, or has no cell that meets the gates."""
    if report.missing:
        of = len(report.missing) + len(report.results)
        raise TemporaryError(
            f"{len(report.missing)} of {of} cells of {folder} are missing, first {report.missing[0].label}",
            hint="run the sweep again: what is done is not measured again",
        )
    if report.decision.rule.gates and not report.decision.meeting:
        raise GateError(f"no cell of {folder} meets the gates", hint="see the table for what each of them lacks")
