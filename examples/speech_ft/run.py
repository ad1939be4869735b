"""Everything: fetch, prepare, fine-tune by both recipes, merge, measure, draw, check."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import torch
from transformers.utils import logging

from examples.speech_ft.evaluate import ALPHAS, RAMPS, Journal, control, floor, sweep
from examples.speech_ft.finetune import RECIPES, finetune
from examples.speech_ft.prepare import prepare
from examples.speech_ft.report import check, draw, table
from examples.speech_ft.tasks import Tasks

RATES = {"hot": 6e-4, "gentle": 2e-4}
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=HERE / "work", help="folder for everything that is made")
    parser.add_argument(
        "--sources", type=Path, help="folder that examples/sources/fetch.sh filled; fetched if not there"
    )
    parser.add_argument("--base", help="folder or Hub id of another encoder, such as facebook/hubert-base-ls960")
    parser.add_argument("--quick", action="store_true", help="one fine-tune, three alphas, smaller tests")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gentle-seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=140)
    parser.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    sources = args.sources or args.work / "sources"
    if not (args.work / "recordings.npz").exists():
        if not sources.exists():
            subprocess.run(["sh", HERE.parent / "sources/fetch.sh", sources], check=True)
        prepare(sources, args.work, args.base)
    tasks = Tasks(args.work, quick=args.quick)
    journal = Journal(args.work / ("quick.jsonl" if args.quick else "results.jsonl"))
    floor(tasks, journal)
    seeds = {"hot": 1} if args.quick else {"hot": args.seeds, "gentle": args.gentle_seeds}
    trials = [
        (rate, seed, recipe)
        for seed in range(max(seeds.values()))
        for rate, count in seeds.items()
        for recipe in (RECIPES[:1] if args.quick else RECIPES)
        if seed < count
    ]
    for rate, seed, recipe in trials:
        out = args.work / "finetuned" / f"{recipe}-{rate}-{seed}"
        if not (out / "preprocessor_config.json").exists():
            print(f"fine-tuning {out.name}", flush=True)
            finetune(args.work, out, recipe=recipe, lr=RATES[rate], steps=args.steps, seed=seed)
        settings = ALPHAS | RAMPS if seed == 0 and rate == "hot" else ALPHAS
        if args.quick:
            settings = {alpha: ALPHAS[alpha] for alpha in ("0.0", "0.25", "1.0")}
        sweep(args.work, out, {"recipe": recipe, "rate": rate, "seed": seed}, settings, tasks, journal)
    if (args.work / "unrelated").exists():
        control(args.work, args.work / "finetuned" / f"{RECIPES[0]}-hot-0", tasks, journal)

    print(table(journal.records))
    if not args.quick:
        draw(journal.records, args.work / "figure.png")
    raise SystemExit(check(journal.records))


if __name__ == "__main__":
    main()
