"""Write a pair of many large tensors as sparse files: a .pt, and shards of safetensors.

python large_pair.py FOLDER COUNT: of so many tensors of 256 MiB; a pair that is there is left alone.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

SIDE = 8192  # a tensor of 256 MiB in float32
RANDOM = 1 << 18  # elements


def make_tensor(seed: int, noise: float) -> torch.Tensor:
    torch.manual_seed(seed)
    tensor = torch.zeros(SIDE * SIDE)
    tensor[:RANDOM] = torch.randn(RANDOM)
    if noise:
        torch.manual_seed(seed + 1_000_000)
        tensor[:RANDOM] += noise * torch.randn(RANDOM)
    return tensor.reshape(SIDE, SIDE)


def dig_holes(path: Path) -> None:
    """Give the space of zeros back."""
    subprocess.run(["fallocate", "--dig-holes", path], check=True)


def make(folder: Path, count: int) -> None:
    """Write base and fine-tune of so many tensors, unless they are there."""
    names = [f"encoder.layers.{i}.feed_forward.intermediate_dense.weight" for i in range(count)]
    base, finetuned = folder / f"base{count}.pt", folder / f"finetuned{count}"
    if not base.exists():
        room = folder / "room"
        with room.open("wb") as file:
            file.truncate(count * SIDE * SIDE * 4)
        whole = torch.from_file(str(room), shared=True, size=count * SIDE * SIDE)
        weights: dict[str, torch.Tensor] = {}
        for i, name in enumerate(names):
            weights[name] = whole[i * SIDE * SIDE : (i + 1) * SIDE * SIDE].view(SIDE, SIDE)
            weights[name][:32] = make_tensor(i, 0)[:32]
        part = folder / "part.pt"
        torch.save(weights, part)
        dig_holes(part)
        part.rename(base)
        room.unlink()
    if not finetuned.exists():
        part = folder / "part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for i, name in enumerate(names):
            file = part / f"model-{i + 1:05d}-of-{count:05d}.safetensors"
            save_file({name: make_tensor(i, 0.05)}, file, metadata={"format": "pt"})
            dig_holes(file)
        part.rename(finetuned)


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]))
