"""Compare a merge with its float64 reference, on every STRIDE-th tensor.

python rounding.py BASE FINETUNED OUTPUT ALPHA: prints the share of elements whose bits are not
those of (1 - alpha) * base + alpha * finetuned rounded once, to the nearest and ties to even.
Each is a folder that holds files of weights; OUTPUT must have the base's tensors, and no others.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from tools import weights

STRIDE = 7  # shares no factor with the 16 tensors of a layer, so that all kinds are met


class Model:
    """The tensors of files, each read when it is asked for."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.pickled: dict[str, torch.Tensor] = {}
        self.files: dict[str, Path] = {}
        for path in files:
            if path.suffix == ".bin":
                self.pickled |= torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                continue
            with safe_open(path, "pt") as file:
                self.files |= dict.fromkeys(file.keys(), path)

    @property
    def names(self) -> set[str]:
        return {*self.pickled, *self.files}

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self.pickled:
            return self.pickled[name]
        with safe_open(self.files[name], "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor


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
    base, finetuned, output = (Model(weights(Path(argument))) for argument in sys.argv[1:4])
    if names := base.names ^ output.names:
        raise SystemExit(f"names on one side only: {sorted(names)[:5]}")
    wrong = total = 0
    for name in sorted(base.names)[::STRIDE]:
        tensor = base[name]
        wrong += differing(output[name], tensor, finetuned[name], float(sys.argv[4]))
        total += tensor.numel()
    print(wrong / total)


if __name__ == "__main__":
    main()
