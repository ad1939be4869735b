"""Runs stage 1 of Speech-FT in transformers' Trainer: `Trainer(..., callbacks=[StableFineTuningCallback()])`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import LambdaLR

from speechft_merge.errors import UsageError
from speechft_merge.stage1.schedule import Schedule
from speechft_merge.stage1.stage import StableFineTuning

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError('the Trainer needs transformers: pip install "transformers[torch]"') from error

if TYPE_CHECKING:
    import torch
    from transformers import TrainerControl, TrainerState, TrainingArguments


class StableFineTuningCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Stable fine-tuning over one training run, with the arguments' learning rate as the peak.

    The callback starts after the Trainer has created its optimizer, which must hold the encoder: do not freeze anything
    beforehand. It replaces the Trainer's learning-rate schedule. Steps are the Trainer's, so gradient accumulation,
    mixed precision and `resume_from_checkpoint` work as they are; DistributedDataParallel needs
    `ddp_find_unused_parameters=True`, the Trainer's default unless gradient checkpointing is on. DeepSpeed and FSDP
    shard parameters before training begins and are refused.

    Args:
        head_only: the share of the steps in which only the head trains.
        encoder, cnn: see `StableFineTuning`.

    Raises:
        UsageError: when training begins, if the model or the arguments do not allow it.
    """

    def __init__(self, *, head_only: float = 0.1, encoder: str | None = None, cnn: bool = True) -> None:
        self.head_only = head_only
        self.encoder = encoder
        self.cnn = cnn
        self.stage: StableFineTuning | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set up the stage for the model; on a resume, at the step where it stopped."""
        _require_plain_parallelism(args)
        schedule = Schedule(state.max_steps, head_only=self.head_only)
        self.stage = StableFineTuning(kwargs["model"], schedule, encoder=self.encoder, cnn=self.cnn)
        self.stage.check_optimizer(kwargs["optimizer"])
        _follow(kwargs["lr_scheduler"], schedule)

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
