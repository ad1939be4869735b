"""Make the fine-tune: the base and a classifier trained together to tell the five Asterisk voices apart."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import HubertForSequenceClassification

from examples.small_hubert.distill import save
from examples.sources.recordings import RATE, normalise, random_crops, voice_clips

CROP = 3 * RATE // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder that distill.py wrote")
    parser.add_argument("--speech", type=Path, required=True, help="folder with the unpacked Debian packages")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--per-voice", type=int, default=4, help="crops of each voice in a batch")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    generator = np.random.default_rng(args.seed)

    voices = voice_clips(args.speech, held_out=False)
    names = dict(enumerate(voices))
    model = HubertForSequenceClassification.from_pretrained(
        args.base, dtype=torch.float32, id2label=names, label2id={name: index for index, name in names.items()}
    )
    model.freeze_feature_encoder()
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=args.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, args.lr, total_steps=args.steps, pct_start=0.1)
    labels = torch.arange(len(voices)).repeat_interleave(args.per_voice)

    losses = []
    for step in range(1, args.steps + 1):
        waves = torch.cat([random_crops(voice, args.per_voice, CROP, generator) for voice in voices.values()])
        loss = cross_entropy(model(normalise(waves)).logits, labels)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if step % 20 == 0:
            print(f"step {step}: loss {np.mean(losses[-20:]):.4f}", flush=True)
    save(model, args.out)


if __name__ == "__main__":
    main()
