"""Runs stage 1 of Speech-FT in transformers' Trainer: `Trainer(..., callbacks=[StableFineTuningCallback()])`."""

from __future__ import annotations

import logging
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import LambdaLR

from speechft_merge.errors import UsageError
from speechft_merge.stage1.schedule import Schedule
from speechft_merge.stage1.stage import Cnn, StableFineTuning

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError('the Trainer needs transformers: pip install "transformers[torch]"') from error

if TYPE_CHECKING:
    import torch
    from transformers import TrainerControl, TrainerState, TrainingArguments


_REPLACED = ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio")
"""Arguments of the Trainer that have no effect."""

_log = logging.getLogger(__name__)


class StableFineTuningCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Stable fine-tuning over one training run, with the arguments' learning rate as the peak.

    The callback starts after the Trainer has created its optimizer, which must hold the encoder: do not freeze anything
    beforehand but the CNN (`freeze_feature_encoder()`), see `StableFineTuning`. It replaces the Trainer's learning-rate
    schedule: where `lr_scheduler_type`, `lr_scheduler_kwargs`, `warmup_steps` or `warmup_ratio` are not at their
    defaults, a warning in the log says that they have no effect. Steps are the Trainer's, so gradient accumulation,
    mixed precision, `auto_find_batch_size` and `resume_from_checkpoint` work as they are; DistributedDataParallel needs
    `ddp_find_unused_parameters=True`, the Trainer's default unless gradient checkpointing is on. DeepSpeed and FSDP
    shard parameters before training begins and are refused.

    Args:
        head_only, warmup, hold, first_step: see `Schedule`.
        encoder, cnn: see `StableFineTuning`.

    Raises:
        UsageError: at once, if the shares do not fit together; when training begins, if the model or the arguments do
            not allow it.
    """

    def __init__(
        self, *, head_only: float = 0.1, warmup: float = 0.1, hold: float = 0.4, first_step: int = 0,
        encoder: str | None = None, cnn: Cnn = "freeze",
    ) -> None:  # fmt: skip
        self.encoder, self.cnn = encoder, cnn
        self.stage: StableFineTuning | None = None
        self._schedule = Schedule(1, head_only, warmup, hold, first_step)
        """For one step; how many there are is known when training begins."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set up the stage for the model; on a resume, at the step where it stopped."""
        _require_plain_parallelism(args)
        if self.stage is not None:
            self.stage.end()  # auto_find_batch_size begins anew where memory ran out, maybe while the encoder is frozen
        schedule = replace(self._schedule, total_steps=state.max_steps)
        self.stage = StableFineTuning(kwargs["model"], schedule, encoder=self.encoder, cnn=self.cnn)
        self.stage.check_optimizer(kwargs["optimizer"])
        _follow(kwargs["lr_scheduler"], schedule)
        if replaced := _replaced(args):
            _log.warning("stable fine-tuning has its own learning rates: %s has no effect", ", ".join(replaced))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Freeze or unfreeze for the next optimizer step."""
        assert self.stage is not None
        self.stage.begin(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Unfreeze what required gradients before training."""
        assert self.stage is not None
        self.stage.end()


def _replaced(args: TrainingArguments) -> list[str]:
    """Return the arguments of `_REPLACED` that were changed, as `name=value`."""
    defaults = {field.name: field.default for field in fields(args) if field.name in _REPLACED}
    values = {name: getattr(args, name) for name, default in defaults.items() if getattr(args, name) != default}
    return [f"{name}={getattr(value, 'value', value)}" for name, value in values.items()]


def _require_plain_parallelism(args: TrainingArguments) -> None:
    if args.deepspeed or args.fsdp:
        raise UsageError(
            "stable fine-tuning freezes and unfreezes whole parameters, which DeepSpeed and FSDP have split by then",
            hint="use DistributedDataParallel (torchrun without either)",
        )
    finds_unused = args.ddp_find_unused_parameters
    if finds_unused is None:
        finds_unused = not args.gradient_checkpointing
    if args.parallel_mode.value == "distributed" and not finds_unused:
        raise UsageError(
            "DistributedDataParallel would wait for the gradients of frozen parameters",
            hint="set ddp_find_unused_parameters=True in the TrainingArguments",
        )


def _follow(scheduler: torch.optim.lr_scheduler.LRScheduler, schedule: Schedule) -> None:
    """Make the Trainer's scheduler follow ours from its current step on, so that logs and checkpoints are right."""
    if not isinstance(scheduler, LambdaLR):
        raise UsageError(
            f"the Trainer's learning-rate scheduler is a {type(scheduler).__name__}, which cannot be replaced",
            hint="leave lr_scheduler_type at its default: stable fine-tuning has its own schedule",
        )
    scheduler.lr_lambdas = [schedule.learning_rate] * len(scheduler.base_lrs)
    scheduler._last_lr = [peak * schedule.learning_rate(scheduler.last_epoch) for peak in scheduler.base_lrs]
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
        group["lr"] = rate
