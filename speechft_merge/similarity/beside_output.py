"""Puts the report beside a merged model: its document, its figure, and a section of the model card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING

from speechft_merge.foreign import as_markdown
from speechft_merge.output.folder import write_whole
from speechft_merge.record import card, manifest
from speechft_merge.similarity.caption import describe_lines, name_recipe
from speechft_merge.similarity.plot import draw_lines

if TYPE_CHECKING:
    from pathlib import Path

    from speechft_merge.similarity.report import Report


def put_beside(output: Path, report: Report) -> Report:
    """Put a report into the output of a merge, in place of an earlier one. The rest of the card stays as it is.

    Returns:
        The report as it was written: without paths of this machine or names of people, since it may be pushed.

    Raises:
        OutputError, WriteError: the folder cannot be written.
        UsageError: matplotlib is not installed.
    """
    models = {role: card.short(name) for role, name in report.models.items()} | {"merged": output.name}
    skipped = {PurePath(path).name: why for path, why in report.probe.skipped.items()}
    groups = {str(number): clips for number, clips in enumerate(report.probe.groups.values(), 1)}  # may be people
    report = replace(report, models=models, probe=replace(report.probe, skipped=skipped, groups=groups))
    figure = draw_lines(report, ".png")
    write_whole(output / manifest.SIMILARITY, (json.dumps(report.to_json(), indent=2) + "\n").encode())
    write_whole(output / manifest.FIGURE, figure)
    path = output / card.NAME
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    write_whole(path, card.with_section(text, make_section(report)).encode())
    return report


def make_section(report: Report) -> str:
    """Return the section of the card, in Markdown."""
    titles, *rows = report.to_table()
    table = [titles, ["---"] * len(titles), *rows]
    origin = "the tool's built-in probe" if report.probe.origin == "built-in" else "a probe"
    made = f" of the merge at {as_markdown(name_recipe(report.recipe))}" if report.recipe else ""
    return "\n".join(
        [
            f"CKA{made}, layer by layer, on {origin} of {report.probe.seconds:.0f} s of speech "
            f"(sha256 `{report.probe.sha256[:16]}`), estimator `{report.estimator}`: {as_markdown(report.of_what())}. "
            "`input` is the input of the first block, and a number the output of that block; drift is that of the "
            "weights, as above.",
            "",
            f"![{as_markdown(describe_lines(report))}]({manifest.FIGURE})",
            "",
            *("| " + " | ".join(map(as_markdown, row)) + " |" for row in table),
            "",
            as_markdown(" ".join(report.in_words())),
        ]
    )
