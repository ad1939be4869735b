"""From recordings to a merge: fine-tune a speech encoder stably, merge it with its base, and compare the three.

A second run with the same options goes on where one broke off, and does not do again what is done.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.stage1.data import LABEL, SHORTEST, prepare
from speechft_merge.errors import CheckpointError, SpeechFTMergeError, UsageError
from speechft_merge.output.folder import write_whole
from speechft_merge.packages import require_packages
from speechft_merge.recipe.recipe import Recipe
from speechft_merge.scoring.clips import read_table
from speechft_merge.scoring.probe_task import ProbeTask
from speechft_merge.stage1 import Schedule


def at_least(least: float) -> Callable[[str], float]:
    """Reads a number, whole where `least` is, as an option's type."""

    def number(text: str) -> float:
        value = type(least)(text)
        if not least <= value < 1 << 32:  # the most that is a seed
            raise argparse.ArgumentTypeError(f"{text} is not a number from {least} on")
        return value

    return number


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.stage1", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("base", help="HuBERT, wav2vec 2.0, WavLM, w2v-BERT or Whisper: a folder of transformers, or its id on the Hub")
    add("--data", required=True, help="a folder of audio, a table, or a dataset, see README.md")
    add("--task", required=True, choices=("classification", "ctc", "seq2seq"))
    add("-o", "--out", required=True, type=Path, help="folder for everything that is made")
    add("--alpha", type=float, default=0.25, help="weight of the fine-tune in the merge")
    add("--steps", type=int, default=2000, help="optimizer steps; the paper's is 50000")
    add("--learning-rate", type=at_least(0.0), default=1e-4, help="its peak")
    add("--batch-size", type=at_least(1), default=16, help="recordings in one batch of a device")
    add("--accumulate", type=at_least(1), default=1, help="batches in one step")
    add(
        "--seconds",
        type=at_least(SHORTEST),
        default=15.0,
        help="of a recording in training: a class is learnt from the first, longer texts are left out",
    )
    add("--head-only", type=float, default=0.1, help="share of the steps in which the head alone trains")
    add("--warmup", type=float, default=0.1, help="share of the steps in which the learning rate rises")
    add("--hold", type=float, default=0.4, help="share of the steps in which it then stays; after that it falls to 0")
    add("--cnn", default="freeze", choices=("freeze", "train", "none"), help="what becomes of the convolutions")
    add("--encoder", help="name of the encoder's module, where it is not found")
    add("--workers", type=at_least(0), default=0, help="processes that decode audio")
    add("--seed", type=at_least(0), default=0)
    return parser.parse_args(words)


def remember(args: argparse.Namespace) -> None:
    """Keep the settings of a run, and refuse to go on with others what they have made."""
    kept, own = args.out / "settings.json", {key: value for key, value in vars(args).items() if key not in FREE}
    if Path(args.data).is_dir() and args.out.resolve().is_relative_to(Path(args.data).resolve()):
        raise UsageError(f"{args.out} lies in the data, {args.data}", hint="name a folder beside it with -o")
    try:
        before = {**json.loads(kept.read_text())} if kept.exists() else {}
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{kept} does not hold the settings of a run: {error}") from error
    trained = (args.out / "finetuned").exists() or any((args.out / "checkpoints").glob("*"))
    fixed = [*own] if trained else ["data", "task"] if (args.out / "train.tsv").exists() else []
    differ = [f"{key} {before[key]!r}" for key in fixed if key in before and own[key] != before[key]]
    if differ:
        raise UsageError(f"{args.out} holds a run with {', '.join(differ)}", hint="name another folder with -o")
    write_whole(kept, (json.dumps(own, indent=2) + "\n").encode())


FREE = ("out", "alpha", "workers")
"""Options that may change from run to run."""


def commands(args: argparse.Namespace, finetuned: Path) -> tuple[list[str], list[str], list[str]]:
    """What is done with a fine-tune, as words of speechft-merge: the merge, the scores; and what to do next."""
    pair = [args.base, str(finetuned)]
    merged = args.out / f"merged-{args.alpha:g}"
    merge = ["merge", *pair, "--alpha", f"{args.alpha:g}", "--cka", "--plot", str(args.out / "features.png"),
             "-o", str(merged)]  # fmt: skip
    tried = ["--alphas", f"{args.alpha:g}", *scores(args, "test"), "-o", str(args.out / f"scores-{args.alpha:g}")]
    goal = ["--maximize", "own_head"] if args.task == "classification" else ["--minimize", "wer"]
    which = ["--alphas", "0:1:0.1", *scores(args, "dev"), *goal, "-o", str(args.out / "sweep")]
    return merge, ["sweep", *pair, "--keep-head", *tried], ["sweep", *pair, "--keep-head", *which]


def scores(args: argparse.Namespace, split: str) -> list[str]:
    """What is scored on a split: the fine-tune's own head, and of classes a probe that is fitted anew to each model."""
    table = args.out / f"{split}.tsv"
    if args.task != "classification":
        return ["--wer", str(table)]
    command = shlex.join([sys.executable, "-m", "examples.stage1.score", "{model}", str(table)])
    own = ["--score", f"own_head={command.replace(shlex.quote('{model}'), '{model}')}"]
    try:
        ProbeTask("probe", read_table(table, LABEL))
    except CheckpointError as error:  # too few recordings, or speakers of a class
        print(f"no probe on {table.name}: {error}", file=sys.stderr)
        return own
    return [*own, "--probe-task", f"probe={table}"]


def run(words: list[str]) -> None:
    """One command of speechft-merge, shown as it is typed."""
    from speechft_merge.cli.app import app

    print(f"\n$ speechft-merge {shlex.join(words)}", flush=True)
    code: Any = app(words, prog_name="speechft-merge", standalone_mode=False)
    if code:
        raise SystemExit(code)


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    require_packages("torch", "transformers", "soundfile", "soxr", "matplotlib")
    if args.task != "classification":
        require_packages("jiwer", extra="score")
    try:
        import accelerate  # noqa: F401
    except ModuleNotFoundError:
        raise UsageError("accelerate is not installed", hint='run pip install "transformers[torch]"') from None
    from transformers.utils import logging

    from examples.stage1.tasks import TASKS
    from examples.stage1.train import finetune

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    Recipe(alpha=args.alpha)  # what is wrong with a number is said now, and not after training
    Schedule(args.steps, args.head_only, args.warmup, args.hold)
    remember(args)
    kind = TASKS[args.task]
    clips = prepare(args.data, kind.column, args.out, lambda text: print(text, file=sys.stderr))
    print(", ".join(f"{len(part)} {split}" for split, part in clips.items()), "recordings")
    finetuned = args.out / "finetuned"
    if not finetuned.exists():
        finetune(kind(args.base, clips["train"], args.out), clips, args.out, args)
    merge, score, which = commands(args, finetuned)
    run(merge)
    run(score)
    print(f"\nWhich alpha is best for your task, on the development set:\n  speechft-merge {shlex.join(which)}")


if __name__ == "__main__":
    try:
        main()
    except SpeechFTMergeError as error:
        lines = [
            f"error: {error.message}",
            error.found and f"  found: {error.found}",
            error.hint and f"hint: {error.hint}",
        ]
        print("\n".join(line for line in lines if line), file=sys.stderr)
        raise SystemExit(error.exit_code) from None
