"""Carries out a sweep: opens the models once, measures the cells that have no result yet, decides, writes the pick."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from speechft_merge.arguments import or_default, path_of
from speechft_merge.bench import Bench, SweepRequest
from speechft_merge.checkpoints.companions import read_extractor
from speechft_merge.errors import MismatchError, OutputError, TemporaryError, UsageError, amount
from speechft_merge.evidence import Evidence, Figure, Measured
from speechft_merge.merging import open_merge
from speechft_merge.options import MergeOptions
from speechft_merge.output.folder import write_whole
from speechft_merge.plan.findings import Level, texts
from speechft_merge.plan.plan import make_plan
from speechft_merge.progress import Progress, Step, counted, silent
from speechft_merge.recipe.recipe import Recipe
from speechft_merge.record.card import short
from speechft_merge.record.codec import finite
from speechft_merge.sources.reference import encoder_of, local_path
from speechft_merge.sweep.decision import cka_floor, decide
from speechft_merge.sweep.folder import SweepFolder
from speechft_merge.sweep.grid import BASE, FINETUNED, STOCK
from speechft_merge.sweep.intervals import curves
from speechft_merge.sweep.plot import draw_sweep
from speechft_merge.sweep.report import SweepReport
from speechft_merge.sweep.results import CellResult
from speechft_merge.sweep.words import in_words
from speechft_merge.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from speechft_merge.arguments import PathText
    from speechft_merge.merging import Merge, MergeResult
    from speechft_merge.sources.reference import Reference
    from speechft_merge.sweep.decision import Decision, Rule
    from speechft_merge.sweep.grid import Cell
    from speechft_merge.sweep.intervals import Curve
Share = Callable[[Sequence["Cell"]], Sequence["Cell"]]
"""Returns those of the cells that are this run's."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What a run did."""

    cells: int
    """Of its share."""
    measured: int
    notes: tuple[str, ...] = ()
    """What is to be known of the models and the data."""

    @property
    def skipped(self) -> int:
        """Cells that were done before."""
        return self.cells - self.measured


def sweep(
    base: Reference, finetuned: Reference | Sequence[Reference], folder: PathText, request: SweepRequest,
    options: MergeOptions | None = None, share: Share = lambda cells: cells, progress: Progress = silent,
) -> Swept:  # fmt: skip
    """Measure the cells of a sweep that have no result in its folder yet.

    Args:
        base: the pre-trained model.
        finetuned: a fine-tune of it, or several.
        folder: of the sweep; any number of runs may share it.
        request: what is swept and measured.
        options: how models are opened; `overwrite` removes the results of another sweep.
        share: returns those of all cells that this run measures; none to say only what is swept.
        progress: told how far it is.

    Raises:
        OutputError, WriteError: the folder holds another sweep, or cannot be written.
        CheckpointError, MismatchError, UsageError: the models cannot be read, merged or run.
        ScoreError: a cell cannot be scored; those before it are kept.
    """
    # other shares read the models, too, and the pick does; what is written for a score is thrown away
    options = replace(or_default(options, MergeOptions, "options"), download=True, fsync=False)
    with open_merge(base, finetuned, replace(request.recipe, alpha=1.0), options) as opened:
        _require_cells(opened, request)
        kept = SweepFolder(path_of(folder, "folder"))
        kept.begin(_describe(opened, request), request.cells, options.overwrite)
        cells = share(request.cells)
        todo = [cell for cell in cells if not kept.is_done(cell)]
        found = _measure(opened, request, todo, kept, progress) if todo else []
    return Swept(len(cells), len(todo), (*_notes(opened, request), *found))


def _notes(opened: Merge, request: SweepRequest) -> tuple[str, ...]:
    return (*texts(opened.findings, Level.WARNING), *(note for scorer in request.scorers for note in scorer.notes))


def _describe(opened: Merge, request: SweepRequest) -> dict[str, Any]:
    models = [_absolute(model.pinned) for model in opened.models]
    small = [sorted(opened.companions.items()), *(read_extractor(model) for model in opened.models)]
    return {
        "models": models,
        "fingerprints": [entry.fingerprint for entry in opened.inputs],
        "small files": hashlib.sha256(repr(small).encode()).hexdigest(),
    } | request.description


def _absolute(reference: str) -> str:
    """Return a reference that means the same from another directory."""
    path = local_path(reference)
    picked = encoder_of(reference)
    return reference if path is None else str(path.resolve()) + (f"#{picked}" if picked else "")


def _require_cells(opened: Merge, request: SweepRequest) -> None:
    """Refuse rules that select nothing or give alphas out of range, before the folder knows of the grid."""
    for cell in {cell.rules: cell for cell in request.cells}.values():
        make_plan(opened.base, opened.finetuned, request.recipe_of(cell, opened.stacks))


def _measure(
    opened: Merge, request: SweepRequest, todo: Sequence[Cell], kept: SweepFolder, progress: Progress
) -> list[str]:
    """Measure cells, and return what is found on the way."""
    from speechft_merge.similarity.encoders import exact_products  # imports torch
    from speechft_merge.similarity.measure import torch_threads

    with torch_threads(opened.options.workers), exact_products():
        progress(Step("loading the models"))
        bench, known = Bench(opened, request), list[CellResult]()
        count = counted(progress, "measuring", "cells")
        for done, cell in enumerate(todo, 1):
            result = bench.measure(cell)
            known = known or kept.results([BASE])
            curves([*known, result])  # a cell that was scored on other utterances would make the sweep undecidable
            kept.put(result)
            count(done, len(todo))
    return bench.notes


def collect(folder: PathText, rule: Rule, floor: float | None = None) -> SweepReport:
    """Decide on the cells that are done.

    Args:
        folder: of the sweep.
        rule: what decides.
        floor: least mean CKA to the base, for what the heuristic of that name would pick; None to leave that out.

    Raises:
        NotFoundError: no sweep began there.
        TemporaryError: none of its cells is done.
        UsageError: the rule names a score that is not there.
    """
    kept = SweepFolder(path_of(folder, "folder"))
    description, cells = kept.read()
    results = kept.results(cells)
    done = {result.cell for result in results}
    if not results:
        raise TemporaryError(f"none of the {len(cells)} cells of {folder} is done yet", hint="run the sweep first")
    alone = len(description["models"]) == 2 and description["recipe"].get("method") == "mean"
    base, *finetuned = map(short, description["models"])
    return SweepReport(
        models={"base": base, "finetuned": ", ".join(finetuned)},
        recipe=description["recipe"],
        results=tuple(results),
        decision=decide(results, rule, _heuristics(results, floor), "the fine-tune" if alone else "alpha 1"),
        probe=description.get("probe"),
        missing=tuple(cell for cell in cells if cell not in done),
        warnings=_clipped(results),
        versions={"speechft_merge": __version__},
    )


def _heuristics(results: Sequence[CellResult], floor: float | None) -> dict[str, Cell]:
    """Return what is picked without any score."""
    found = {"model-stock": STOCK} if any(result.cell == STOCK for result in results) else {}
    taken = None if floor is None else cka_floor(results, floor)
    return found if taken is None else found | {f"CKA floor {floor:g}": taken}


def _clipped(results: Sequence[CellResult]) -> tuple[str, ...]:
    cells = [result.cell.label for result in results if result.cell.clips]
    if not cells:
        return ()
    return (f"alphas above 1, which the tilts of {amount(len(cells), 'cell')} ask for, are clipped, first {cells[0]}",)


def merge_best(
    folder: PathText, decision: Decision, output: PathText, options: MergeOptions | None = None,
    progress: Progress = silent,
) -> MergeResult:  # fmt: skip
    """Write the pick of a sweep as a model directory, with the evidence for it in card and manifest.

    Args:
        folder: of the sweep, which says what the models are.
        decision: on its cells.
        output: the directory to make.
        options: how the merge is done.
        progress: told how far it is.

    Raises:
        UsageError: nothing was picked.
        MismatchError: the models are not those that were swept.
        OutputError, WriteError: the output exists, with other evidence perhaps, or cannot be written.
    """
    if decision.pick is None:
        raise UsageError("the sweep picked no cell, so there is none to be merged", hint="name a goal that cells reach")
    description, _ = SweepFolder(path_of(folder, "folder")).read()
    base, *finetuned = description["models"]
    request = SweepRequest((), Recipe.from_json(description["recipe"]))
    evidence = make_evidence(decision, decision.pick)
    options = replace(or_default(options, MergeOptions, "options"), evidence=evidence)
    with open_merge(base, finetuned, replace(request.recipe, alpha=1.0), options) as opened:
        if [entry.fingerprint for entry in opened.inputs] != description["fingerprints"]:
            raise MismatchError(f"{', '.join(description['models'])} are not the models that were swept in {folder}")
        recipe = request.recipe_of(decision.pick, opened.stacks)
        command = ("merge", base, *finetuned, *recipe.to_words(), "-o", str(output))
        made = replace(opened.at(recipe), options=replace(options, command=command)).write(output, progress)
    if made.already_done and made.manifest.evidence != evidence.to_json():
        raise OutputError(f"{output} is this merge already, with other evidence or none", hint="name another directory")
    return made


def make_evidence(decision: Decision, pick: Cell) -> Evidence:
    """Return what speaks for a pick, as a merge records it."""
    scores = tuple(
        Measured(curve.name, curve.better.value, *(_figure(curve, cell) for cell in (BASE, pick, FINETUNED)))
        for curve in decision.scores.values()
    )
    return Evidence(_rule(decision), scores, tuple(in_words(decision)), decision.end)


def _rule(decision: Decision) -> str:
    """Return the rule in words: what is best, and what it must meet."""
    rule, goal = decision.rule, decision.goal
    best = "" if goal is None else f"{'highest' if goal.better.sign > 0 else 'lowest'} {goal.name}"
    gates = " and ".join(map(str, rule.gates))
    return best + (f" of the merges with {gates}" if gates else "") + (" by the whole interval" if rule.strict else "")


def _figure(curve: Curve, cell: Cell) -> Figure:
    estimate = curve.estimates()[cell]
    return Figure(*map(finite, (estimate.value, estimate.low, estimate.high)))


def write_report(report: SweepReport, folder: Path) -> list[str]:
    """Write the report into the sweep's folder: JSON, CSV, a line for each cell, figures; return what is to be noted.

    Raises:
        OutputError, WriteError: the folder cannot be written.
    """
    write_whole(folder / "report.json", (json.dumps(report.to_json(), indent=2) + "\n").encode())
    write_whole(folder / "report.csv", report.to_csv().encode())
    write_whole(folder / "cells.jsonl", "".join(json.dumps(one.to_json()) + "\n" for one in report.results).encode())
    try:
        drawing = draw_sweep(report)
        for kind in (".png", ".svg", ".html"):
            write_whole(folder / f"report{kind}", drawing.render(kind))
    except UsageError as error:  # matplotlib is not installed
        return [f"no figures are drawn: {error}"]
    return []
