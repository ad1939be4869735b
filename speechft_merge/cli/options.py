"""Defines the options of the commands, each once, in groups that commands share."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from speechft_merge.choices import DTYPES, FORMATS, METHODS
from speechft_merge.cli.groups import OptionGroup, one_of
from speechft_merge.errors import UsageError
from speechft_merge.sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechft_merge.options import MergeOptions
    from speechft_merge.push import PushTarget
    from speechft_merge.recipe import Recipe
    from speechft_merge.recipe.file import RecipeFile

Base = Annotated[
    str | None,
    typer.Argument(
        metavar="BASE",
        help="The pre-trained model: a directory, a weights file, or org/name[@revision][:file] on the Hub.",
    ),
]
Finetuned = Annotated[
    list[str] | None, typer.Argument(metavar="FINETUNED...", help="One or more fine-tunes of it, likewise.")
]

MIXED = "What is mixed"
"""Title in the help, of commands whose other options of that kind are of another group as well."""

Method = Annotated[
    str | None,
    one_of(
        METHODS,
        "What becomes of the fine-tunes' differences from the base: their mean (default), their sum by weights of any "
        "sign (task-arithmetic), or their mean by a ratio estimated for each tensor (model-stock).",
        MIXED,
    ),
]
Weight = Annotated[
    list[float] | None,
    typer.Option(
        metavar="NUMBER",
        rich_help_panel=MIXED,
        help="Weight of each fine-tune, in their order: in their mean (positive; default: equal), or its "
        "coefficient in task arithmetic (any but 0; default: 1).",
    ),
]
LoraAlpha = Annotated[
    float | None,
    typer.Option(
        metavar="NUMBER",
        rich_help_panel=MIXED,
        help="Alpha of LoRA in a fine-tune that has no adapter_config.json; its scale is alpha / rank.",
    ),
]
KeepHead = Annotated[
    bool,
    typer.Option(
        "--keep-head",
        rich_help_panel=MIXED,
        help="Write the fine-tuned class: its names, config and head; the encoder is merged.",
    ),
]
Dtype = Annotated[
    str | None,
    one_of(DTYPES, "Element type of the output; keep (default): the base's. Also fp32, fp16, half, bf16.", MIXED),
]

AllowUnrelated = Annotated[
    bool,
    typer.Option(
        "--allow-unrelated",
        rich_help_panel=MIXED,
        help="Merge models that seem unrelated, or in the wrong order.",
    ),
]
AllowPartial = Annotated[
    bool,
    typer.Option(
        "--allow-partial",
        rich_help_panel=MIXED,
        help="Merge a fine-tune that has some stack of the base in part only.",
    ),
]


@dataclass(frozen=True)
class AlphaOptions(OptionGroup):
    """How much of the fine-tune goes in, and where."""

    panel: ClassVar[str] = MIXED
    alpha: Annotated[
        str | None,
        typer.Option(
            metavar="ALPHA",
            help="Weight of the fine-tune, as 0.25 or 25%: 0 gives the base, 1 the fine-tune; it scales what another "
            "method than the mean makes of several. Default: 0.25 for the mean, else 1.",
        ),
    ] = None
    layer_alpha: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SELECTOR=ALPHA",
            help="An alpha for some tensors; may be repeated, later ones win. SELECTOR: blocks (3 or 0-5, "
            "decoder.0-3), a part (cnn, projection, pos_conv, layers, final_norm, other, head, encoder, decoder), or a "
            "pattern on whole names (encoder.layers.*.attention.**). Over blocks ALPHA may be a ramp, 0.1:0.5.",
        ),
    ] = None
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="YAML file with all of this, the manifest of a merge, or a merge of mergekit's (linear, "
            "task_arithmetic, model_stock), which names the models, too.",
        ),
    ] = None
    extrapolate: Annotated[bool, typer.Option("--extrapolate", help="Allow alphas below 0 and above 1.")] = False

    def read(self) -> Recipe:
        """Return the recipe of the file, if there is one, with the options on top; they have the names of its keys."""
        from speechft_merge.recipe.recipe import override  # not for --help
        from speechft_merge.recipe.rules import parse_rule

        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "recipe"}
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        given["layer_alpha"] = tuple(map(parse_rule, self.layer_alpha or ()))
        return override(self._file.recipe, **given)

    def models(self, given: Sequence[str]) -> Sequence[str]:
        """Return the models that are merged: those of the command line, or of the recipe.

        Raises:
            UsageError: both name some, or neither does.
        """
        named = self._file.models
        if named and given:
            raise UsageError(
                f"the recipe {self.recipe} names the models, and so does the command line",
                hint="name them in one place",
            )
        if not named and len(given) < 2:
            raise UsageError(
                f"missing argument '{'FINETUNED...' if given else 'BASE'}'",
                hint="run speechft-merge merge -h for what it takes",
            )
        return named or given

    @cached_property
    def _file(self) -> RecipeFile:
        from speechft_merge.recipe.file import RecipeFile, read_recipe_file
        from speechft_merge.recipe.recipe import Recipe

        return read_recipe_file(self.recipe) if self.recipe else RecipeFile(Recipe())


@dataclass(frozen=True)
class RecipeOptions(AlphaOptions):
    """What is mixed, and how."""

    method: Method = None
    weight: Weight = None
    lora_alpha: LoraAlpha = None
    keep_head: KeepHead = False
    dtype: Dtype = None
    format: Annotated[
        str | None,
        one_of(FORMATS, "Kind of file to write; auto (default): the base's own; safetensors: for transformers."),
    ] = None
    strip: Annotated[
        bool,
        typer.Option(
            "--strip", help="Leave optimizer states, schedulers and copies of the weights (EMA) out of a pickled file."
        ),
    ] = False


@dataclass(frozen=True)
class WorkOptions(OptionGroup):
    """How the work is done."""

    panel: ClassVar[str] = "Machine"
    download: Annotated[
        bool,
        typer.Option(
            "--download", help="Download models from the Hub to its cache (HF_HOME) first, instead of reading ranges."
        ),
    ] = False
    verify_inputs: Annotated[
        bool,
        typer.Option(
            "--verify-inputs", help="First read the models whole and compare their checksums (the Hub's, a zip's)."
        ),
    ] = False
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Threads that work at once; default: by cores (SLURM_CPUS_PER_TASK) and size."
        ),
    ] = None
    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE",
            help="Where to compute: auto, cpu, cuda, cuda:N or mps; the merge has the same bytes. With auto (default) "
            "files are merged on the CPU, and models compared on a GPU if there is one.",
            show_default=False,
            autocompletion=lambda: ["auto", "cpu", "cuda", "mps"],
        ),
    ] = "auto"

    def read(self) -> MergeOptions:
        """Return how the work is done, without what is said of an output."""
        from speechft_merge.options import MergeOptions  # not for --help

        return MergeOptions(
            download=self.download, verify_inputs=self.verify_inputs, workers=self.workers, device=self.device
        )


@dataclass(frozen=True)
class OutputOptions(OptionGroup):
    """What is written, and where."""

    panel: ClassVar[str] = "Output"
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Directory to make; default: named after the fine-tune."),
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it already exists.")] = False
    allow_unrelated: AllowUnrelated = False
    allow_partial: AllowPartial = False
    max_shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Split the weights into files of at most this size (500MB).")
    ] = None
    max_output: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Most that the weights may take; default: 100 times the inputs' size."),
    ] = None
    fsync: Annotated[
        bool,
        typer.Option(
            "--fsync/--no-fsync", help="Wait until the output is on the disk; --no-fsync is for throw-away merges."
        ),
    ] = True
    verify: Annotated[
        bool, typer.Option("--verify", help="Then make it again and compare it with what was written, byte by byte.")
    ] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done; write nothing.")] = False

    def read(self, work: WorkOptions) -> MergeOptions:
        """Return how the merge is done."""
        return replace(
            work.read(),
            overwrite=self.overwrite,
            allow_unrelated=self.allow_unrelated,
            allow_partial=self.allow_partial,
            fsync=self.fsync,
            max_shard_size=None if self.max_shard_size is None else parse_size(self.max_shard_size),
            max_output=None if self.max_output is None else parse_size(self.max_output),
            command=tuple(sys.argv[1:]),
        )


@dataclass(frozen=True)
class HubOptions(OptionGroup):
    """How a model is pushed."""

    panel: ClassVar[str] = "Hub"
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead of committing to the branch.")
    ] = False
    branch: Annotated[
        str | None, typer.Option(metavar="NAME", help="Branch to commit to; it is created if it does not exist.")
    ] = None
    commit_message: Annotated[str | None, typer.Option(metavar="TEXT", help="First line of the commit.")] = None

    def prepare(self, repository: str) -> PushTarget:
        """Return the repository, after checking that it can be pushed to."""
        from speechft_merge.push import prepare_push

        return prepare_push(repository, private=self.private, create_pr=self.create_pr, branch=self.branch)
