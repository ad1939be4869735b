"""Stage 1 in S3PRL's own runner: `python -m examples.stage1.s3prl_runner` takes the options of `run_downstream.py`.

Nothing of S3PRL is edited. Phases, frozen bits and learning rates are those of the official `set_require_grad` and
`stable_finetuning_schedule` (nervjack2/Speech-FT), whose own runner is not published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from s3prl.downstream.runner import Runner

from speechft_merge.errors import UsageError
from speechft_merge.stage1 import Schedule, StableFineTuning

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LambdaLR


class StableRunner(Runner):
    """S3PRL's runner with stable fine-tuning, whatever scheduler its config names; `grad_scheduler` is read."""

    def __init__(self, args: Any, config: dict[str, Any]) -> None:
        if not args.upstream_trainable:
            raise UsageError("stage 1 trains the upstream", hint="pass -f, and -s last_hidden_state as the paper does")
        config["scheduler"] = {"name": "stable_finetuning_schedule"}  # without one the runner asks for none
        super().__init__(args, config)

    def _get_optimizer(self, model_params: list[torch.nn.Module]) -> torch.optim.Optimizer:
        share = self.config.get("grad_scheduler", {}).get("finetune_steps", 0.1)
        schedule = Schedule(self.config["runner"]["total_steps"], head_only=share, first_step=1)
        whole = torch.nn.ModuleDict({entry.name: entry.model for entry in self.all_entries})
        self.stage = StableFineTuning(whole, schedule)
        return super()._get_optimizer(model_params)

    def _get_scheduler(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
        scheduler = self.stage.scheduler(optimizer)
        self._load_weight(scheduler, "Scheduler")  # of a run that is resumed
        for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = rate  # else the first step of a resumed run has that of step 0, as in S3PRL
        upstream = self.upstream.model
        upstream.register_forward_pre_hook(
            lambda *_: self.stage.begin(scheduler.last_epoch) if upstream.training else None
        )
        return scheduler


if __name__ == "__main__":
    from s3prl import run_downstream

    run_downstream.Runner = StableRunner
    run_downstream.main()
