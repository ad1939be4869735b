"""Base and fine-tune in memory, and what is found about their merge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from models import checkpoint_of

from speechft_merge.plan.encoders import choose_encoders
from speechft_merge.plan.findings import Finding, Level, texts
from speechft_merge.plan.plan import Plan, make_plan
from speechft_merge.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

Tensors = dict[str, torch.Tensor]


def moved(tensors: Mapping[str, torch.Tensor], share: float = 0.1, seed: int = 1) -> Tensors:
    """Each tensor of numbers moved by noise of `share` times its own size."""
    torch.manual_seed(seed)
    return {
        name: t + share * t.abs().mean() * torch.randn(t.shape).to(t.dtype) if t.is_floating_point() else t.clone()
        for name, t in tensors.items()
    }


def prefixed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def without(tensors: Mapping[str, torch.Tensor], *words: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not any(word in name for word in words)}


def planned(base: Mapping[str, torch.Tensor], finetuned: Mapping[str, torch.Tensor], **recipe: Any) -> Plan:
    return make_plan(checkpoint_of(base, "base"), [checkpoint_of(finetuned, "tuned")], Recipe(**recipe))


def findings(
    base: Mapping[str, torch.Tensor], finetuned: Mapping[str, torch.Tensor], **recipe: Any
) -> tuple[Finding, ...]:
    (one, *others), found = choose_encoders(checkpoint_of(base, "base"), [checkpoint_of(finetuned, "tuned")])
    return (*found, *make_plan(one, others, Recipe(**recipe)).findings)


def refusals(base: Mapping[str, torch.Tensor], finetuned: Mapping[str, torch.Tensor], **recipe: Any) -> tuple[str, ...]:
    return texts(findings(base, finetuned, **recipe), Level.REFUSAL)
