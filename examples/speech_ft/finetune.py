"""Fine-tune the base to tell who speaks: plainly, or by stage 1 of Speech-FT."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

from examples.sources.recordings import random_crops
from examples.speech_ft.encoder import WINDOW, Hearing, load, save
from examples.speech_ft.tasks import speakers
from speechft_merge.stage1 import Schedule, StableFineTuning

RECIPES = ("ordinary", "stable")


def finetune(work: Path, out: Path, *, recipe: str, lr: float, steps: int, seed: int, batch: int = 16) -> None:
    """Train all of the base, or what stage 1 lets train, and write it with its head."""
    base, recordings = work / "base", work / "recordings.npz"
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    voices = speakers(recordings, "train")
    model, hear = load(base, list(voices)), Hearing(base)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    if recipe == "stable":
        stage = StableFineTuning(model, Schedule(steps))
        schedule = stage.scheduler(optimiser)
    else:
        warm = steps // 10
        schedule = LambdaLR(optimiser, lambda step: min(step / warm, (steps - step) / (steps - warm)) if warm else 1.0)

    started, losses = time.monotonic(), []
    for step in range(steps):
        if recipe == "stable":
            stage.begin(step)
        labels = generator.integers(0, len(voices), size=batch)
        clips = [list(voices.values())[label] for label in labels]
        waves = torch.cat([random_crops(clip, 1, WINDOW, generator) for clip in clips])
        logits = model(**hear(waves)).logits
        loss = cross_entropy(logits, torch.from_numpy(labels).to(logits.device))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 20 == 0:
            print(f"step {step + 1}: loss {np.mean(losses[-20:]):.3f}, {time.monotonic() - started:.0f} s", flush=True)
    save(model, hear.extractor, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--recipe", choices=RECIPES, default="stable")
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--steps", type=int, default=140)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    finetune(args.work, args.out, recipe=args.recipe, lr=args.lr, steps=args.steps, seed=args.seed, batch=args.batch)


if __name__ == "__main__":
    main()
