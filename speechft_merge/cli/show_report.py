"""Shows a comparison of features, for `compare`: how alike they are, layer by layer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from speechft_merge.cli.sink import Shown
from speechft_merge.cli.tables import Table
from speechft_merge.similarity.report import LABELS, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from speechft_merge.similarity.report import Report

_MORE = ("frame", "biased", "procrustes", "cosine")
"""Measures that `-v` adds."""


def show_report(report: Report) -> Shown:
    """Return the table and how to read it; the headline is the mean CKA of each pair."""
    means = " ".join(f"{mean.cka:.6f}" for mean in report.mean.values())
    return Shown(report.to_json, partial(report_parts, report), means, report.warnings)


def report_parts(report: Report, verbose: int) -> Iterator[Table | str]:
    """Yield the table and how to read it, and with `-v` the other measures."""
    titles, *rows = report.to_table()
    yield Table(titles, rows)
    if verbose:
        found = ((layer.key.label, LABELS[pair], one) for layer in report.layers for pair, one in layer.pairs.items())
        rows = [[label, models, *(f"{getattr(one, measure):.3f}" for measure in _MORE)] for label, models, one in found]
        yield Table(["layer", "models", *_MORE], rows)
        if any(layer.null is not None for layer in report.layers):
            floors = [[layer.key.label, *map(number, layer.floor.values())] for layer in report.layers]
            yield Table(["layer", "floor", "sd of its draws", "aligned floor"], floors)
    yield (
        f"CKA ({report.estimator}) of the input of the first block and of each block's output; "
        f"probe {report.probe.origin}, sha256 {report.probe.sha256[:12]}: {report.of_what()}"
    )
    yield from report.in_words()


def seconds_in_words(report: Report) -> str:
    """Return what took how long; not for stdout, which is the same from run to run."""
    return ", ".join(f"{what} {seconds:.1f} s" for what, seconds in report.seconds.items())
