"""Write a pair of many large tensors as sparse files: the base as one .pt, the fine-tune as one, or as safetensors.

python large_pair.py FOLDER COUNT pt|shards: of so many tensors of 256 MiB; a model that is there is left alone. The
checksums within a .pt are not those of its data, so --verify-inputs refuses it.
"""

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


def write_pt(path: Path, names: list[str], noise: float) -> None:
    """Save tensors that memory does not hold: a file without their data, then the numbers that are not 0."""
    with torch.serialization.skip_data():
        torch.save({name: torch.empty(SIDE, SIDE) for name in names}, path)
    records = torch._C.PyTorchFileReader(str(path))
    with path.open("r+b") as file:
        for i in range(len(names)):
            file.seek(records.get_record_offset(f"data/{i}"))
            file.write(make_tensor(i, noise).flatten()[:RANDOM].numpy().tobytes())


def write_shards(path: Path, names: list[str], noise: float) -> None:
    """Save each tensor in a file of its own."""
    path.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        file = path / f"model-{i + 1:05d}-of-{len(names):05d}.safetensors"
        save_file({name: make_tensor(i, noise)}, file, metadata={"format": "pt"})
        dig_holes(file)


def make(folder: Path, count: int, kind: str) -> None:
    """Write base and fine-tune of so many tensors, unless they are there."""
    names = [f"encoder.layers.{i}.feed_forward.intermediate_dense.weight" for i in range(count)]
    finetuned = (f"finetuned{count}.pt", write_pt) if kind == "pt" else (f"finetuned{count}", write_shards)
    for (name, write), noise in (((f"base{count}.pt", write_pt), 0.0), (finetuned, 0.05)):
        if not (folder / name).exists():
            write(part := folder / "part", names, noise)
            part.rename(folder / name)


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
