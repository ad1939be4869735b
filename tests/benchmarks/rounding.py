"""Compare a merge with its float64 reference, on every STRIDE-th tensor.

python rounding.py BASE FINETUNED OUTPUT ALPHA: prints the share of elements whose bits are not
those of (1 - alpha) * base + alpha * finetuned rounded once, to the nearest and ties to even.
BASE and FINETUNED are safetensors files, OUTPUT a folder that holds one or more.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

STRIDE = 7  # shares no factor with the 16 tensors of a layer, so that all kinds are met


def rounded(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round float64 to a dtype once; by way of float32 rounded to odd for the half types."""
    single = exact.float()
    if dtype == torch.float32:
        return single
    bits = single.view(torch.int32)
    bits -= (single.double().abs() > exact.abs()).int()  # now towards zero
    bits |= (single.double() != exact).int()
    return single.to(dtype)


def differing(output: torch.Tensor, base: torch.Tensor, finetuned: torch.Tensor, alpha: float) -> int:
    if output.dtype != base.dtype or output.shape != base.shape:
        raise SystemExit(f"expected {base.dtype} {tuple(base.shape)}, found {output.dtype} {tuple(output.shape)}")
    expected = rounded((1 - alpha) * base.double() + alpha * finetuned.double(), base.dtype)
    bits = torch.int32 if base.dtype == torch.float32 else torch.int16
    return int((output.view(bits) != expected.view(bits)).sum())


def main() -> None:
    alpha = float(sys.argv[4])
    base, finetuned = (load_file(path) for path in sys.argv[1:3])
    outputs = {name: t for path in Path(sys.argv[3]).rglob("*.safetensors") for name, t in load_file(path).items()}
    if names := set(base) ^ set(outputs):
        raise SystemExit(f"names on one side only: {sorted(names)[:5]}")
    sample = sorted(base)[::STRIDE]
    wrong = sum(differing(outputs[name], base[name], finetuned[name], alpha) for name in sample)
    total = sum(base[name].numel() for name in sample)
    print(wrong / total)


if __name__ == "__main__":
    main()
