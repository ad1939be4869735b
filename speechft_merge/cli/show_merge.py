"""Shows what `merge` did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from speechft_merge.cli.sink import Shown
from speechft_merge.cli.tables import Table, in_words, layer_parts
from speechft_merge.executor.drift import Drift
from speechft_merge.plan.findings import Level, texts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from speechft_merge.merging import MergeResult
    from speechft_merge.similarity.report import Report


def show_merge(
    result: MergeResult, output: str, url: str | None = None, report: Report | None = None, problem: str | None = None
) -> Shown:
    """Return what was merged, layer by layer, and what that did to the features; the last line is where the model is.

    Args:
        result: what the merge did.
        output: the output, as the user named it.
        url: where it was pushed to.
        report: the comparison of features.
        problem: why there is none.
    """
    warnings = [*texts(result.findings, Level.WARNING), *([problem] if problem else [])]
    notes = texts(result.findings, Level.NOTE)

    def document() -> dict[str, Any]:
        extra = {"output": output, "pushed": url, "already_done": result.already_done}
        similarity = {} if report is None else {"similarity": report.to_json()}
        return result.manifest.to_json() | extra | {"warnings": [*warnings, *notes]} | similarity

    def parts(verbose: int) -> Iterator[Table | str]:
        yield from _layers(result)
        if report is not None:
            from speechft_merge.cli.show_report import report_parts  # imports torch

            yield from report_parts(report, verbose)
        yield url or output

    return Shown(document, parts, url or output, [*warnings, *(report.warnings if report is not None else ())], notes)


def _layers(result: MergeResult) -> Iterator[Table | str]:
    if result.already_done:
        yield "already done: the output exists, is complete, and has the same inputs and recipe"
    else:
        yield from layer_parts(result.manifest.layers)
        drift = Drift.relative(result.drifts.values())
        moved = "" if drift is None else f"; the fine-tune lies {drift:.2%} from the base"
        yield in_words(result.manifest.counts) + moved
