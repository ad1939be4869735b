"""Fine-tune an encoder for one task: all of it but a HuBERT's CNN, under a linear head."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

from examples.choosing_alpha.encoders import Base, State, half
from examples.choosing_alpha.tasks import WINDOW, Task

BATCH = 32
HEAD_RATE = 10.0
"""The head's learning rate over the encoder's: it starts from nothing."""


def finetune(base: Base, task: Task, *, rate: float, steps: int, seed: int) -> tuple[State, State]:
    """The weights of the encoder and of the head."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    encoder = base.build(WINDOW).model.train()
    if base.config["model_type"] == "hubert":
        encoder.feature_extractor._freeze_parameters()
    head = torch.nn.Linear(base.config.get("d_model") or base.config["hidden_size"], task.classes)
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    groups = [{"params": trained, "lr": rate}, {"params": head.parameters(), "lr": HEAD_RATE * rate}]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.01)
    warm = steps // 10
    schedule = LambdaLR(optimiser, lambda step: min((step + 1) / warm, (steps - step) / (steps - warm)))
    started, losses = time.monotonic(), []
    for _ in range(steps):
        waves, labels = task.batch(BATCH, generator)
        inputs = base.hear(waves)
        with half():
            loss = loss_of(head, encoder(**inputs).last_hidden_state, labels)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*trained, *head.parameters()], 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    ends = np.mean(losses[:5]), np.mean(losses[-(steps // 10) :])
    print(f"loss {ends[0]:.2f} to {ends[1]:.2f} in {time.monotonic() - started:.0f} s", flush=True)
    return encoder.state_dict(), head.state_dict()


def loss_of(head: torch.nn.Linear, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the last layer's states, (rows, frames, width), by frame, or averaged if a row has one label."""
    if labels.dim() == 1:
        return cross_entropy(head(states.mean(dim=1)), labels)
    labels = labels[:, : states.shape[1]]  # HuBERT gives one frame less than there are labels
    return cross_entropy(head(states[:, : labels.shape[1]]).flatten(0, 1), labels.flatten(), ignore_index=-1)
