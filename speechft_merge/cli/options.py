"""Options that several commands share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Base = Annotated[
    str,
    typer.Argument(
        metavar="BASE",
        help="The pre-trained model: a directory, a weights file, or org/name[@revision][:file] on the Hub.",
    ),
]
Finetuned = Annotated[list[str], typer.Argument(metavar="FINETUNED...", help="One or more fine-tunes of it, likewise.")]
OutputDir = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Directory to make; default: named after the fine-tune, here."),
]
Alpha = Annotated[
    float | None,
    typer.Option("--alpha", help="Weight of the fine-tune: 0 gives the base, 1 the fine-tune. Default: 0.25."),
]
LayerAlpha = Annotated[
    list[str] | None,
    typer.Option(
        "--layer-alpha",
        metavar="SELECTOR=ALPHA",
        help="An alpha for some tensors; may be repeated, later ones win. SELECTOR: layers (3 or 0-5, decoder.0-3), a "
        "part (cnn, projection, pos_conv, layers, final_norm, other, head, encoder, decoder), or a pattern on whole "
        "names (encoder.layers.*.attention.**). Over layers ALPHA may be a ramp, 0.1:0.5.",
    ),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="FILE", help="YAML file with all of this, or the manifest of a merge."),
]
Weight = Annotated[
    list[float] | None,
    typer.Option("--weight", help="Weight of each fine-tune in their mean, in their order; default: equal."),
]
DTypeName = Annotated[
    str | None,
    typer.Option("--dtype", metavar="TYPE", help="keep (the base's; default), float32, float16 or bfloat16."),
]
FormatName = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="auto (the base's own kind; default), safetensors (for transformers), s3prl or fairseq.",
    ),
]
KeepHead = Annotated[
    bool,
    typer.Option("--keep-head", help="Write the fine-tuned class: its names, config and head; the encoder is merged."),
]
Extrapolate = Annotated[bool, typer.Option("--extrapolate", help="Allow alphas below 0 and above 1.")]
MaxShardSize = Annotated[
    str | None,
    typer.Option("--max-shard-size", metavar="SIZE", help="Cut the weights into files of at most this (500MB)."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that already exists.")]
AllowUnrelated = Annotated[
    bool, typer.Option("--allow-unrelated", help="Merge models that seem unrelated, or that share little.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done; write nothing.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Workers; default: as many as help.")]
DownloadFirst = Annotated[
    bool, typer.Option("--download", help="Fetch models from the Hub into its cache first, instead of reading ranges.")
]
Fsync = Annotated[
    bool, typer.Option("--fsync/--no-fsync", help="Wait until the output is on the disk; off for throw-away merges.")
]
PushTo = Annotated[
    str | None,
    typer.Option("--push-to-hub", metavar="REPO", help="Push the result; without -o it is then removed here."),
]
Private = Annotated[bool, typer.Option("--private", help="Make the repository private, if it is made.")]
CreatePr = Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")]
Branch = Annotated[str | None, typer.Option("--branch", help="Branch to commit to; it is made if it is not there.")]
CommitMessage = Annotated[str | None, typer.Option("--commit-message", help="First line of the commit.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the result; errors still go to stderr.")]
Verbose = Annotated[int, typer.Option("--verbose", "-v", count=True, show_default=False, help="Say more.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Cka = Annotated[
    bool,
    typer.Option("--cka", help="Then compare the features of base, fine-tune and merge on a probe batch of speech."),
]
ProbePaths = Annotated[
    list[str] | None,
    typer.Option(
        "--probe",
        metavar="PATH",
        help="Audio files or folders to compare on; may be repeated, - reads a list from stdin. Default: 24 clips "
        "that come with the package.",
    ),
]
ProbeSeconds = Annotated[float | None, typer.Option("--probe-seconds", help="Seconds of audio, at most; default: 120.")]
EstimatorName = Annotated[
    str | None,
    typer.Option("--estimator", metavar="NAME", help="Of CKA: utterance (unbiased; default), frame or biased."),
]
Device = Annotated[str | None, typer.Option("--device", help="Where to run the models: cpu, cuda, cuda:1.")]
Null = Annotated[bool, typer.Option("--null", help="Also measure the floor: the base on mismatched utterances.")]
Memory = Annotated[
    str | None,
    typer.Option("--memory", metavar="SIZE", help="For features, which error bars need to be kept; default: 1GiB."),
]
Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw layer against CKA into a .png, .svg, .pdf or .html.")
]
Heatmap = Annotated[
    Path | None, typer.Option("--heatmap", metavar="FILE", help="Draw every layer against every other, likewise.")
]
CsvFile = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the figures as CSV.")]
