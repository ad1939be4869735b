"""Fine-tune an encoder for one task, under a linear head, by a recipe: all of it but a HuBERT's CNN, or less."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from examples.sources.encoders import Base, State, half
from speechft_merge.stage1 import Schedule, StableFineTuning


class Lessons(Protocol):
    """What an encoder is fine-tuned for."""

    classes: int
    window: int
    """Samples of a crop."""

    def batch(self, rows: int, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Crops, (rows, window), and their labels, (rows,) or (rows, frames), -1 for none."""


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune: AdamW, a linear warm-up over a tenth of the steps, and a linear decay."""

    rate: float
    steps: int
    rows: int
    """Crops of a batch."""
    head_rate: float = 1.0
    """The head's learning rate over the encoder's: it starts from nothing."""
    stage1: bool = False
    """Stage 1 of Speech-FT instead: its schedule, the head alone at first, the convolutions never."""
    pull: float = 0.0
    """Towards the base (L2-SP), apart from the gradient: a step takes off `rate * pull` of the way from there."""
    top: int | None = None
    """Train only so many blocks, the last ones, and the norm after them."""
    keep: tuple[int, ...] = ()
    """Numbers of steps after which the weights are kept, beside the last."""


def finetune(base: Base, lessons: Lessons, recipe: Recipe, *, seed: int) -> tuple[dict[int, State], State]:
    """The weights of the encoder, by the number of steps after which they were kept, and of the head."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    encoder = base.build(lessons.window).model.train()
    head = torch.nn.Linear(base.config.get("d_model") or base.config["hidden_size"], lessons.classes)
    trained = chosen(encoder, recipe.top)
    start = [parameter.detach().clone() for parameter in trained]
    groups = [
        {"params": trained, "lr": recipe.rate},
        {"params": head.parameters(), "lr": recipe.head_rate * recipe.rate},
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.01)
    stage = None
    if recipe.stage1:
        stage = StableFineTuning(torch.nn.ModuleDict({"encoder": encoder, "head": head}), Schedule(recipe.steps))
    schedule = stage.scheduler(optimiser) if stage else warm_and_decay(optimiser, recipe.steps)
    started, losses, kept = time.monotonic(), [], {}
    for step in range(1, recipe.steps + 1):
        if stage:
            stage.begin(step - 1)
        waves, labels = lessons.batch(recipe.rows, generator)
        inputs = base.hear(waves)
        with half():
            loss = loss_of(head, encoder(**inputs).last_hidden_state, labels)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*trained, *head.parameters()], 1.0)
        optimiser.step()
        if recipe.pull:
            with torch.no_grad():
                torch._foreach_lerp_(trained, start, recipe.pull * schedule.get_last_lr()[0])
        schedule.step()
        losses.append(loss.item())
        if step in (*recipe.keep, recipe.steps):
            kept[step] = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    ends = np.mean(losses[:5]), np.mean(losses[-(recipe.steps // 10) :])
    print(f"loss {ends[0]:.2f} to {ends[1]:.2f} in {time.monotonic() - started:.0f} s", flush=True)
    return kept, head.state_dict()


def chosen(encoder: Any, top: int | None) -> list[torch.nn.Parameter]:
    """The parameters that train; the others are frozen, as a HuBERT's CNN is."""
    if encoder.config.model_type == "hubert":
        encoder.feature_extractor._freeze_parameters()
    if top is not None:
        encoder.requires_grad_(False)
        for module in (*encoder.layers[-top:], encoder.layer_norm):
            module.requires_grad_(True)
    return [parameter for parameter in encoder.parameters() if parameter.requires_grad]


def warm_and_decay(optimiser: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """A linear warm-up over a tenth of the steps, then a linear decay to 0."""
    warm = steps // 10
    return LambdaLR(optimiser, lambda step: min((step + 1) / warm, (steps - step) / (steps - warm)))


def loss_of(head: torch.nn.Linear, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the last layer's states, (rows, frames, width), by frame, or averaged if a row has one label."""
    if labels.dim() == 1:
        return cross_entropy(head(states.mean(dim=1)), labels)
    labels = labels[:, : states.shape[1]]  # HuBERT gives one frame less than there are labels
    return cross_entropy(head(states[:, : labels.shape[1]]).flatten(0, 1), labels.flatten(), ignore_index=-1)
