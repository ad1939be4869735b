"""Everything: fetch, prepare, fine-tune, measure each merge, report; a second run goes on where one broke off."""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from examples.choosing_alpha import report, tasks
from examples.choosing_alpha.measure import Bench, Merge
from examples.choosing_alpha.prepare import prepare
from examples.choosing_alpha.tasks import WINDOW, Task
from examples.finetune import Recipe, finetune
from examples.journal import Journal
from examples.sources.encoders import Base, State, open_base

ENCODERS = ("whisper-tiny.en", "small-hubert", "whisper-base")
ALPHAS = (0.0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
RATES = (2e-4, 4e-4, 8e-4)
"""The learning rate of each seed: gentle and hot fine-tunes are what a rule has to tell apart."""
STEPS = 120
ROWS = 32
"""Crops of a batch."""
HERE = Path(__file__).parent


def trained(path: Path, base: Base, task: Task, seed: int) -> tuple[State, State]:
    """A fine-tune's encoder and head, made if they are not there."""
    if not path.exists():
        print(f"fine-tuning {path.stem}", flush=True)
        recipe = Recipe(rate=RATES[seed], steps=STEPS, rows=ROWS, head_rate=10.0)
        states, head = finetune(base, task, recipe, seed=seed)
        encoder = states[STEPS]
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        save_file({f"encoder.{name}": each.contiguous() for name, each in encoder.items()} | head, part)
        part.replace(path)
    state = load_file(path)
    encoder = {name.removeprefix("encoder."): each for name, each in state.items() if name.startswith("encoder.")}
    return encoder, {name: each for name, each in state.items() if not name.startswith("encoder.")}


def measure(bench: Bench, own: str, seed: int, ends: tuple[State, State], journal: Journal) -> None:
    """One fine-tune at all alphas."""
    key = {"encoder": bench.base.name, "task": own, "seed": seed}
    missing = [alpha for alpha in ALPHAS if journal.find(**key, alpha=alpha) is None]
    if not missing:
        return
    finetuned, head = ends
    merge = Merge(bench, finetuned, own, head)
    for alpha in missing:
        journal.add(**key, alpha=alpha, **{name: round(value, 5) for name, value in merge.at(alpha).items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=HERE / "work", help="folder for everything that is made")
    parser.add_argument("--sources", type=Path, help="folder that fetch.sh filled; fetched if not there")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    args = parser.parse_args()
    os.umask(0o022)
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    args.work.mkdir(parents=True, exist_ok=True)
    sources, speech = args.sources or args.work / "sources", args.work / "recordings.npz"
    if not speech.exists():
        if not sources.exists():
            subprocess.run(["sh", HERE.parent / "sources/fetch.sh", sources], check=True)
        prepare(sources / "speech", speech, WINDOW)
    known = tasks.open_tasks(speech)
    benches = {name: Bench(open_base(name, sources), known) for name in ENCODERS}
    journal = Journal(args.work / "results.jsonl")
    for seed in range(len(RATES)):
        for name, bench in benches.items():
            for own, task in known.items():
                path = args.work / "finetuned" / f"{name}-{own}-{seed}.safetensors"
                measure(bench, own, seed, trained(path, bench.base, task, seed), journal)
    raise SystemExit(report.show(journal.records))


if __name__ == "__main__":
    main()
