"""Stage 1: fine-tunes by transformers' Trainer, goes on where a run broke off, keeps what is best on the dev set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from examples.stage1.data import LABEL, Recordings, Splits, within
from examples.stage1.tasks import Task
from speechft_merge.errors import UsageError
from speechft_merge.similarity.audio import LONGEST
from speechft_merge.stage1.trainer import StableFineTuningCallback

EVALUATIONS = 20
"""Times that the development set is scored: after every twentieth of the steps, though not while the head alone trains,
since the encoder is the base's then and there is nothing to merge."""


def finetune(task: Task, clips: Splits, out: Path, args: Any) -> Path:
    """The folder of the fine-tune, with its processor: made if it is not there."""
    done = out / "finetuned"
    if done.exists():
        return done
    every, first = max(1, args.steps // EVALUATIONS), int(args.steps * args.head_only) + 1
    if first > args.steps // every * every:
        raise UsageError("the encoder does not train, or is not scored", hint="use more --steps, or less --head-only")
    gpu = torch.cuda.is_available()
    settings = task.settings(
        output_dir=str(out / "checkpoints"), max_steps=args.steps, learning_rate=args.learning_rate,
        per_device_train_batch_size=args.batch_size, per_device_eval_batch_size=args.batch_size,
        gradient_accumulation_steps=args.accumulate, eval_strategy="steps", eval_steps=every,
        eval_delay=first, save_strategy="steps",
        save_steps=every, save_total_limit=2, load_best_model_at_end=True, metric_for_best_model=task.metric,
        greater_is_better=task.greater_is_better, logging_steps=every, report_to="none", remove_unused_columns=False,
        label_names=["labels"], dataloader_num_workers=args.workers, dataloader_pin_memory=gpu, use_cpu=not gpu,
        bf16=gpu and torch.cuda.is_bf16_supported(), seed=args.seed, disable_tqdm=True,
        **task.generating,
    )  # fmt: skip
    stable = StableFineTuningCallback(
        head_only=args.head_only, warmup=args.warmup, hold=args.hold, encoder=args.encoder, cnn=args.cnn
    )
    kept = within(clips["train"], task.column, args.seconds, print)
    longest = args.seconds if task.column == LABEL else LONGEST
    run = task.trainer(
        model=task.model, args=settings, data_collator=task.collate, compute_metrics=task.metrics, callbacks=[stable],
        train_dataset=Recordings(kept, task.rate, longest), eval_dataset=Recordings(clips["dev"], task.rate, longest),
    )  # fmt: skip
    run.train(resume_from_checkpoint=last_checkpoint(out / "checkpoints"))
    print(f"best on the development set: {task.metric} {run.state.best_metric:.3f}, {run.state.best_model_checkpoint}")
    part = out / "finetuned.part"
    run.save_model(str(part))
    task.processor.save_pretrained(part)
    part.replace(done)
    return done


def last_checkpoint(folder: Path) -> str | None:
    """The last checkpoint that is whole: its trainer_state.json is written when all else is."""
    whole = [(int(found[1]), path.parent) for path in folder.glob("checkpoint-*/trainer_state.json")
             if (found := re.fullmatch(r"checkpoint-(\d+)", path.parent.name))]  # fmt: skip
    return str(max(whole)[1]) if whole else None
