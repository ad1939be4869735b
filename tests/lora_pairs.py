"""LoRA adapters of any model, as peft saves them, and the weights that they make of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

Tensors = dict[str, torch.Tensor]


def factors(base: Tensors, rank: int = 4) -> tuple[Tensors, Tensors]:
    """LoRA on every q_proj and fc1 or its like, and the weights with it at a scale of 2."""
    torch.manual_seed(1)
    added, whole = {}, dict(base)
    for name in [name for name in base if name.endswith(("q_proj.weight", "intermediate_dense.weight"))]:
        rows, columns = base[name].shape
        left, right = 0.1 * torch.randn(rows, rank), 0.1 * torch.randn(rank, columns)
        stem = "base_model.model." + name.removesuffix("weight")
        added |= {f"{stem}lora_A.weight": right, f"{stem}lora_B.weight": left}
        whole[name] = base[name].double() + 2 * (left.double() @ right.double())
    return added, whole


def settings(rank: int = 4, scale: float = 2) -> str:
    return json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": scale * rank})


def save_adapter(folder: Path, tensors: Tensors, rank: int = 4) -> None:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(settings(rank))
    save_file(tensors, folder / "adapter_model.safetensors")
