"""Carries out a sweep: opens the models once, measures the cells that have no result yet, and collects them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from speechft_merge.bench import Bench, SweepRequest
from speechft_merge.merging import open_merge
from speechft_merge.options import MergeOptions
from speechft_merge.plan.findings import Level, texts
from speechft_merge.similarity.encoders import exact_products
from speechft_merge.similarity.measure import torch_threads
from speechft_merge.sweep.folder import SweepFolder

if TYPE_CHECKING:
    from pathlib import Path

    from speechft_merge.merging import Merge
    from speechft_merge.sources.reference import Reference
    from speechft_merge.sweep.grid import Cell

Progress = Callable[[int, int], None]
"""Called with the cells done and the total."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What a run did."""

    cells: int
    """Of its share."""
    measured: int
    skipped: int
    """Cells that were done before."""
    findings: tuple[str, ...] = ()


def sweep(
    base: Reference, finetuned: Reference | Sequence[Reference], folder: Path, request: SweepRequest,
    options: MergeOptions | None = None, share: Callable[[Sequence[Cell]], Sequence[Cell]] = lambda cells: cells,
    progress: Progress | None = None,
) -> Swept:  # fmt: skip
    """Measure the cells of a sweep that have no result in its folder yet.

    Args:
        base: the pre-trained model.
        finetuned: a fine-tune of it, or several.
        folder: of the sweep; any number of runs may share it.
        request: what is swept and measured.
        options: how models are opened; `overwrite` removes the results of another sweep.
        share: returns those of all cells that this run measures.
        progress: called after each cell.

    Raises:
        OutputError: the folder holds another sweep.
        CheckpointError, MismatchError, UsageError: the models cannot be read, merged or scored.
    """
    options = options or MergeOptions()
    if any(scorer.needs_files for scorer in request.scorers):
        options = replace(options, download=True)  # read for every cell
    with open_merge(base, finetuned, replace(request.recipe, alpha=1.0), options) as opened:
        kept = SweepFolder(folder)
        kept.begin(_describe(opened, request), request.cells, options.overwrite)
        cells = share(request.cells)
        todo = [cell for cell in cells if not kept.is_done(cell)]
        findings = texts(opened.findings, Level.WARNING)
        if todo:
            _measure(opened, request, todo, kept, progress)
    return Swept(len(cells), len(todo), len(cells) - len(todo), findings)


def _describe(opened: Merge, request: SweepRequest) -> dict[str, Any]:
    models = [model.pinned for model in opened.models]
    return {"models": models, "fingerprints": [entry.fingerprint for entry in opened.inputs]} | request.description


def _measure(
    opened: Merge, request: SweepRequest, todo: Sequence[Cell], kept: SweepFolder, progress: Progress | None
) -> None:
    threads = request.probe.workers if request.probe is not None else None
    with torch_threads(threads), exact_products():
        bench = Bench(opened, request)
        for done, cell in enumerate(todo, 1):
            kept.put(bench.measure(cell))
            if progress is not None:
                progress(done, len(todo))
