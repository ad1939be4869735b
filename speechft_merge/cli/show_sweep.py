"""Shows a sweep: its cells, what was decided and how sure that is; or what one share of it did."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from speechft_merge.cli.show_push import push_parts
from speechft_merge.cli.sink import Shown
from speechft_merge.errors import amount
from speechft_merge.sweep.terminal import text_plot
from speechft_merge.text import columns_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from speechft_merge.display import Table
    from speechft_merge.merging import MergeResult
    from speechft_merge.push import Pushed
    from speechft_merge.sweep.report import SweepReport
    from speechft_merge.sweep.share import Share
    from speechft_merge.sweeping import Swept


def show_sweep(
    report: SweepReport, folder: str, result: MergeResult | None, pushed: Pushed | None, notes: Sequence[str]
) -> Shown:
    """Return the table of cells, the curves and the decision; the headline is the pick.

    Args:
        report: what was measured and decided.
        folder: of the sweep, as it is shown.
        result: the pick as it was written.
        pushed: where it was pushed to.
        notes: what is to be said besides.
    """
    output = None if result is None else str(result.output)

    def document() -> dict[str, Any]:
        extra = {"folder": folder, "output": output, "pushed": pushed and pushed.to_json()}
        return report.to_json() | extra

    def parts(verbose: int) -> Iterator[Table | str]:
        table, legend, *words = report.parts(verbose)
        plot = text_plot(report, min(columns_of(sys.stdout) or 80, 80))
        yield from (table, legend, *plot.splitlines(), *words)
        yield f"more in {folder}: report.html, report.json, report.csv, cells.jsonl"
        if pushed is not None:
            yield from push_parts(pushed)
        yield from [pushed.url] if pushed is not None else [output] if output is not None else []

    pick = "" if report.decision.pick is None else report.decision.pick.label
    headline = pushed.url if pushed is not None else output or pick
    return Shown(document, parts, headline or None, report.warnings, notes)


def show_share(share: Share, swept: Swept, folder: str) -> Shown:
    """Return how many cells a share has, and how many of them were measured."""
    document = {"task": str(share), "folder": folder, "cells": swept.cells, "measured": swept.measured}
    of = amount(swept.cells, "cell")
    said = f"task {share}: {swept.measured} of {of} measured, {swept.skipped} were done before; in {folder}"
    return Shown(lambda: document | {"skipped": swept.skipped}, lambda _: [said], folder, notes=swept.notes)
