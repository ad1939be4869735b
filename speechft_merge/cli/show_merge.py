"""Shows what `merge` did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from speechft_merge.cli.show_push import push_parts
from speechft_merge.cli.sink import Shown
from speechft_merge.errors import ComparisonError
from speechft_merge.plan.findings import Level, texts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from speechft_merge.display import Table
    from speechft_merge.merging import MergeResult
    from speechft_merge.push import Pushed
    from speechft_merge.similarity.report import Report


def show_merge(
    result: MergeResult, output: str, pushed: Pushed | None = None, compared: Report | ComparisonError | None = None
) -> Shown:
    """Return what was merged, layer by layer, and what that did to the features; the last line is where the model is.

    Args:
        result: what the merge did.
        output: the output, as the user named it.
        pushed: where it was pushed to, and what became of the files there.
        compared: the comparison of features, or why there is none.
    """
    report = None if isinstance(compared, ComparisonError) else compared
    warnings = texts(result.findings, Level.WARNING)
    notes = [*texts(result.findings, Level.NOTE), *(pushed.notes if pushed is not None else [])]

    def document() -> dict[str, Any]:
        extra = {"output": output, "pushed": pushed and pushed.to_json(), "already_done": result.already_done}
        return result.manifest.to_json() | extra | {"warnings": [*warnings, *notes]} | _similarity(compared)

    def parts(verbose: int) -> Iterator[Table | str]:
        yield from result.parts(verbose)
        if report is not None:
            yield from report.parts(verbose)
        if pushed is not None:
            yield from push_parts(pushed)
        yield headline

    headline = output if pushed is None else pushed.url
    return Shown(document, parts, headline, [*warnings, *(report.warnings if report is not None else ())], notes)


def _similarity(compared: Report | ComparisonError | None) -> dict[str, Any]:
    """Return what the document has of a comparison; if it failed, null and the reason."""
    if isinstance(compared, ComparisonError):
        return {"similarity": None, "problem": str(compared)}
    return {} if compared is None else {"similarity": compared.to_json()}
