"""Shows a comparison of features, for `compare`: how alike they are, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speechft_merge.cli.sink import Shown

if TYPE_CHECKING:
    from speechft_merge.similarity.report import Report


def show_report(report: Report) -> Shown:
    """Return the table and how to read it; the headline is the mean CKA of each pair."""
    means = " ".join(f"{mean.cka:.6f}" for mean in report.mean.values())
    return Shown(report.to_json, report.parts, means, report.warnings)


def seconds_in_words(report: Report) -> str:
    """Return what took how long; not for stdout, which is the same from run to run."""
    return ", ".join(f"{what} {seconds:.1f} s" for what, seconds in report.seconds.items())
