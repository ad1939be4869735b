"""Defines the options of a comparison of features: on what, how, and into which files the figures go."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from speechft_merge.choices import ESTIMATORS
from speechft_merge.cli.groups import OptionGroup, one_of
from speechft_merge.sizes import parse_size

if TYPE_CHECKING:
    from speechft_merge.cli.options import WorkOptions
    from speechft_merge.similarity.report import Report
    from speechft_merge.similarity.request import ProbeRequest


@dataclass(frozen=True)
class ProbeOptions(OptionGroup):
    """On what audio features are compared, and how."""

    panel: ClassVar[str] = "Features"
    probe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Audio files, folders or tables (.tsv: path, group) to compare on; may be repeated, - reads a list "
            "from stdin. Default: 24 clips that come with the package.",
        ),
    ] = None
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="Which recordings are one speaker's, the unit of error bars: auto (a table's groups, else the first "
            "folder in which the paths differ, else the file name up to - or _; default), file (each its own), or a "
            r"regular expression found in the path: '/(\d+)-'.",
        ),
    ] = None
    probe_seconds: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Seconds of audio, at most; default: 120.")
    ] = None
    estimator: Annotated[
        str | None,
        one_of(ESTIMATORS, "How to estimate CKA; group (default) is unbiased, the others are for comparisons."),
    ] = None

    def probed(self, work: WorkOptions) -> ProbeRequest:
        """Return what they ask for; a probe of `-` is read from stdin."""
        from speechft_merge.similarity.grouping import AUTOMATIC  # not for --help
        from speechft_merge.similarity.request import SECONDS, ProbeRequest

        paths: tuple[Path, ...] | None = None
        if self.probe:
            listed = (sys.stdin.read().splitlines() if given == "-" else [given] for given in self.probe)
            paths = tuple(Path(word) for words in listed for word in words if word.strip())
        return ProbeRequest(
            paths=paths,
            seconds=SECONDS if self.probe_seconds is None else self.probe_seconds,
            group_by=AUTOMATIC if self.group_by is None else self.group_by,
            estimator=self.estimator or "group",  # type: ignore[arg-type]
            device=work.device,
            workers=work.workers,
        )


@dataclass(frozen=True)
class FeatureOptions(ProbeOptions):
    """On what audio features are compared, how, and where the figures go."""

    null: Annotated[bool, typer.Option("--null", help="Also measure the floor: the base on mismatched speech.")] = False
    decoder: Annotated[
        bool, typer.Option("--decoder", help="Also compare the text decoders, on what the base hears in each clip.")
    ] = False
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory for features, which error bars need; default: 1GiB."),
    ] = None
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw CKA by layer: a .png, .svg, .pdf or .html file.")
    ] = None
    heatmap: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw CKA of every layer with every other, likewise.")
    ] = None
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures as CSV.")] = None

    def read(self, work: WorkOptions, *packages: str) -> ProbeRequest:
        """Return what they ask for, after checking that it can be had."""
        from speechft_merge.similarity.request import MEMORY  # not for --help

        request = replace(
            self.probed(work),
            null=self.null,
            grid=self.heatmap is not None,
            decoder=self.decoder,
            memory=MEMORY if self.memory is None else parse_size(self.memory),
        )
        request.require_means(*packages, figures=[path for path in (self.plot, self.heatmap) if path is not None])
        return request

    def write(self, report: Report) -> None:
        """Write the figures and the table that were asked for."""
        from speechft_merge.similarity.figures import write_figures

        write_figures(report, self.plot, self.heatmap, self.csv)
