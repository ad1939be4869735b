"""Defines the options of `sweep`: the grid, what scores a cell, what decides, and which share of the work is done."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from speechft_merge.cli.groups import OptionGroup
from speechft_merge.cli.options import AllowPartial, AllowUnrelated, Dtype, KeepHead, LoraAlpha, Method, Weight
from speechft_merge.errors import UsageError

if TYPE_CHECKING:
    from speechft_merge.options import MergeOptions
    from speechft_merge.recipe.recipe import Recipe
    from speechft_merge.scoring.scorer import Scorer
    from speechft_merge.scoring.scores import Better
    from speechft_merge.sweep.decision import Rule
    from speechft_merge.sweep.grid import Cell
    from speechft_merge.sweep.share import Share


@dataclass(frozen=True)
class GridOptions(OptionGroup):
    """Which merges are tried."""

    panel: ClassVar[str] = "Grid"
    alphas: Annotated[
        str, typer.Option(metavar="START:STOP:STEP", help="Alphas to try, the stop included; or a list: 0.1,0.25,0.5.")
    ] = "0:1:0.1"
    tilts: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Tilts to try, likewise: with tilt t, alpha of block k of L is alpha * (1 + t * (2k / (L-1) - 1)), "
            "more at the top where t is positive; the mean over blocks stays.",
        ),
    ] = "0"
    layer_alpha: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SELECTOR=LIST",
            help="Alphas to try for some layers, as merge's --layer-alpha with commas: cnn=0,0.25; may be repeated.",
        ),
    ] = None
    method: Method = None
    weight: Weight = None
    lora_alpha: LoraAlpha = None
    keep_head: KeepHead = False
    dtype: Dtype = None
    allow_unrelated: AllowUnrelated = False
    allow_partial: AllowPartial = False

    def allow(self, options: MergeOptions) -> MergeOptions:
        """Return how models are opened, with what is allowed of them."""
        return replace(options, allow_unrelated=self.allow_unrelated, allow_partial=self.allow_partial)

    def cells(self, finetuned: int) -> tuple[Cell, ...]:
        """Return the cells of the grid; with several fine-tunes also what Model Stock makes of them."""
        from speechft_merge.sweep.grid import STOCK, lay_out, parse_numbers, parse_rule_grid  # not for --help

        rules = [parse_rule_grid(rule) for rule in self.layer_alpha or ()]
        cells = lay_out(parse_numbers(self.alphas, "an alpha", 0, 1), parse_numbers(self.tilts, "a tilt", -1, 1), rules)
        return (*cells, STOCK) if finetuned > 1 and self.method is None else cells

    def read(self) -> Recipe:
        """Return what all cells share."""
        from speechft_merge.recipe.recipe import Recipe, override

        return override(
            Recipe(), method=self.method, weight=tuple(self.weight or ()), lora_alpha=self.lora_alpha,
            keep_head=self.keep_head, dtype=self.dtype,
        )  # fmt: skip


@dataclass(frozen=True)
class ScoreOptions(OptionGroup):
    """What scores a cell."""

    panel: ClassVar[str] = "Scores"
    probe_task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="Accuracy of a ridge probe, fitted anew to each cell: a folder with a folder of audio for each class, "
            "or a TSV of path, label and perhaps group (speaker). May be repeated, as all of these.",
        ),
    ] = None
    wer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]PATH",
            help="Word error rate of a CTC model or Whisper: a folder of audio with transcripts beside it, or a TSV of "
            "path, text and perhaps group.",
        ),
    ] = None
    score: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:lower]=COMMAND",
            help="What a command prints of a model that is written to {model}: a number, or for error bars JSON lines "
            "of id, group, correct and total, or value. With :lower less is better.",
        ),
    ] = None
    score_python: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME[:lower]=]MODULE:FUNCTION",
            help="What function(model, processor) returns, likewise; the model is live, and no file is written.",
        ),
    ] = None
    scratch: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where models are written for commands; default: $SLURM_TMPDIR or $TMPDIR."),
    ] = None

    def read(self) -> list[Scorer]:
        """Return the scorers, after checking that each has what it needs."""
        from speechft_merge.scoring.command import parse_command_score  # not for --help
        from speechft_merge.scoring.function import parse_function_score
        from speechft_merge.scoring.probe_task import parse_probe_task
        from speechft_merge.scoring.wer import parse_wer
        from speechft_merge.sweep.intervals import FEATURES

        scorers: list[Scorer] = [
            *map(parse_probe_task, self.probe_task or ()),
            *map(parse_wer, self.wer or ()),
            *map(parse_function_score, self.score_python or ()),
            *map(parse_command_score, self.score or ()),
        ]
        names = [str(scorer.description["name"]) for scorer in scorers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError(f"two scores are called {', '.join(twice)}", hint="give each another name: NAME=...")
        taken = [name for name in names if name in FEATURES]
        if taken:
            raise UsageError(f"{taken[0]} is what every sweep measures of features", hint="give the score another name")
        return scorers


@dataclass(frozen=True)
class DecisionOptions(OptionGroup):
    """What decides which cell is best: said before the sweep, so that it is no choice after the fact."""

    panel: ClassVar[str] = "Decision"
    maximize: Annotated[
        str | None, typer.Option(metavar="SCORE", help="Pick the cell with the highest score of this name.")
    ] = None
    minimize: Annotated[
        str | None, typer.Option(metavar="SCORE", help="Pick the cell with the lowest score of this name.")
    ] = None
    gate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="What the pick must meet: 'phones>=base-0.01', 'wer<=0.12', 'cka_base>=0.9'; may be repeated. Exit "
            "code 3 if no cell does.",
        ),
    ] = None
    strict_gate: Annotated[
        bool, typer.Option("--strict-gate", help="Let the whole 95 % interval meet the gates, not only the estimate.")
    ] = False
    cka_floor: Annotated[
        float | None,
        typer.Option(
            metavar="CKA",
            help="Also show what a heuristic takes: the largest alpha whose mean CKA to the base stays above this. "
            "On 27 fine-tunes no such floor did better than a fixed alpha.",
        ),
    ] = None

    def read(self) -> Rule:
        """Return the rule."""
        from speechft_merge.sweep.decision import Rule  # not for --help
        from speechft_merge.sweep.gate import parse_gate

        if self.maximize and self.minimize:
            raise UsageError("--maximize and --minimize name one score each", hint="pass one of them, and --gate")
        return Rule(self.maximize or self.minimize, tuple(map(parse_gate, self.gate or ())), self.strict_gate)

    def require_direction(self, goal: str, better: Better | None) -> None:
        """Refuse to maximise what is better when lower, and the other way round.

        Args:
            goal: name of the score that is to be best.
            better: which direction of it is; None if that is not known yet.

        Raises:
            UsageError: the other one was asked for.
        """
        given, other = ("maximize", "minimize") if self.maximize else ("minimize", "maximize")
        if better is not None and (better.sign > 0) != (given == "maximize"):
            raise UsageError(f"--{given} {goal}: of this score {better} is better", hint=f"pass --{other}")


@dataclass(frozen=True)
class ShareOptions(OptionGroup):
    """Which part of the work this process does."""

    panel: ClassVar[str] = "Shares"
    task: Annotated[
        str | None,
        typer.Option(
            metavar="i/n",
            help="Measure every n-th cell from number i (from 0), and decide nothing; auto takes i and n from a Slurm "
            "array, srun or torchrun.",
        ),
    ] = None
    collect: Annotated[
        bool, typer.Option("--collect", help="Measure nothing: decide on what is in the folder, and say what is not.")
    ] = False

    def read(self) -> Share | None:
        """Return the share of this process; None for all of the work."""
        from speechft_merge.sweep.share import Share  # not for --help

        if self.task is None:
            return None
        if self.collect:
            raise UsageError("--task measures cells, --collect decides on them", hint="pass one of them")
        return Share.from_environment(os.environ) if self.task == "auto" else Share.parse(self.task)
