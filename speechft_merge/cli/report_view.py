"""Shows a comparison of features, for `compare`: how alike they are, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speechft_merge.cli.sink import Table, View
from speechft_merge.similarity.report import LABELS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from speechft_merge.similarity.report import Report


@dataclass(frozen=True, slots=True)
class ReportView(View):
    """A comparison of features."""

    report: Report

    @property
    def headline(self) -> str:
        """The mean CKA of each pair."""
        return " ".join(f"{mean:.6f}" for mean, _ in self.report.mean.values())

    @property
    def warnings(self) -> Sequence[str]:
        """Warnings of the comparison."""
        return self.report.warnings

    def document(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return self.report.to_json()

    def body(self, verbose: int) -> Iterator[Table | str]:
        """Yield the table and how to read it, and with `-v` the other measures and what took how long."""
        report = self.report
        titles, *rows = report.to_table()
        yield Table(titles, rows)
        if verbose:
            yield _other_measures(report)
            yield ", ".join(f"{what} {seconds:.1f} s" for what, seconds in report.seconds.items())
        yield (
            f"CKA ({report.estimator}) of the input of the first block and of each block's output; {report.utterances} "
            f"utterances, {report.frames} frames; probe {report.probe.origin}, sha256 {report.probe.sha256[:12]}"
        )
        yield from report.in_words()


def _other_measures(report: Report) -> Table:
    measures = ("frame", "biased", "procrustes", "cosine")
    rows = [
        [layer.key.label, LABELS[pair], *(f"{getattr(found, measure):.3f}" for measure in measures)]
        for layer in report.layers
        for pair, found in layer.pairs.items()
    ]
    return Table(["layer", "models", *measures], rows)
