"""The merge as most scripts do it: load both checkpoints, interpolate each tensor, save.

python plain_merge.py BASE FINETUNED OUTPUT ALPHA; a model is a file, or a folder of shards.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def load(path: Path) -> dict[str, torch.Tensor]:
    if path.is_dir():
        return {name: tensor for shard in path.glob("*.safetensors") for name, tensor in load_file(shard).items()}
    if path.suffix == ".safetensors":
        return load_file(path)
    weights: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


base, finetuned = load(Path(sys.argv[1])), load(Path(sys.argv[2]))
alpha = float(sys.argv[4])
merged = {key: torch.lerp(tensor, finetuned[key], alpha) for key, tensor in base.items()}
save_file(merged, sys.argv[3], metadata={"format": "pt"})
