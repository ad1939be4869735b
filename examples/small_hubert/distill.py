"""Make the base: a small HuBERT taught to predict the last layer of Whisper's encoder on recorded speech."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import mse_loss
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from examples.small_hubert.teacher import Teacher
from examples.sources.recordings import RATE, decode, festvox_paths, normalise, random_crops, voice_clips

CROP = 2 * RATE


def small_hubert() -> HubertModel:
    """HuBERT Base in small: the same kinds of layer (group-normed CNN, weight-normed positions), 3.1 M parameters."""
    config = HubertConfig(
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=768,
        conv_dim=(32, 64, 96, 128, 128, 192, 192),
        num_conv_pos_embeddings=64,
        num_conv_pos_embedding_groups=16,
        classifier_proj_size=64,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
    )
    return HubertModel(config)


def save(model: torch.nn.Module, folder: Path) -> None:
    """Write a model in float16 with its preprocessor, readable by everyone."""
    model.half().save_pretrained(folder)  # type: ignore[operator]
    Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True, return_attention_mask=False).save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True, help="CTranslate2 model.bin of Whisper")
    parser.add_argument("--speech", type=Path, required=True, help="folder with the unpacked Debian packages")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=1150)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    generator = np.random.default_rng(args.seed)

    festvox = [decode(path) for path in festvox_paths(args.speech, held_out=False)]
    speech = np.concatenate([*festvox, *voice_clips(args.speech, held_out=False).values()])
    print(f"{len(speech) / RATE / 60:.1f} minutes of speech to train on", flush=True)
    teacher = Teacher(args.teacher, CROP)
    sample = teacher(random_crops(speech, 64, CROP, generator)).flatten(0, 1)
    mean, scale = sample.mean(dim=0), sample.std(dim=0)

    student = small_hubert().train()
    head = torch.nn.Linear(student.config.hidden_size, teacher.width)
    parameters = [*student.parameters(), *head.parameters()]
    print(f"{sum(p.numel() for p in student.parameters()):,} parameters", flush=True)
    optimiser = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, args.lr, total_steps=args.steps, pct_start=0.08)

    started, losses = time.monotonic(), []
    for step in range(1, args.steps + 1):
        waves = random_crops(speech, args.batch, CROP, generator)
        target = (teacher(waves) - mean) / scale
        states = head(student(normalise(waves)).last_hidden_state)
        loss = mse_loss(states, target[:, : states.shape[1]])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 0:
            print(f"step {step}: loss {np.mean(losses[-50:]):.4f}, {time.monotonic() - started:.0f} s", flush=True)
    save(student, args.out)


if __name__ == "__main__":
    main()
