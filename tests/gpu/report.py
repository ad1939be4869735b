"""Measure merges on a GPU: python -m tests.gpu.report [--device cuda] [--folder DIR] [--rounds 3].

Prints, in Markdown, on pairs of random weights in the shapes of HuBERT Base (float32) and XLS-R-1B (bfloat16): files to
files by CPU and device, from the page cache and from the disk, beside what disk and bus allow; loaded models on the
device; and the switch from one alpha to another in a live module, beside the device's own copy.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from speechft_merge import LiveMerge, MergeOptions, merge, merge_state_dicts

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from runs import evict, warm  # the folder is not a package

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
ALPHAS = [number / 20 for number in range(21)]
MB = 1_000_000


def seconds(work: Callable[[], object], device: torch.device, rounds: int, before: Callable[[], object] = int) -> float:
    """Median over the rounds, after one that does not count."""
    found = []
    for _ in range(rounds + 1):
        before()
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bus(device: torch.device, rounds: int) -> tuple[float, float]:
    """Bytes a second up to the device from pinned memory, and down."""
    host = torch.empty(256 << 20, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = host.to(device)
    up = seconds(lambda: there.copy_(host, non_blocking=True), device, rounds)
    down = seconds(lambda: host.copy_(there, non_blocking=True), device, rounds)
    return host.nbytes / up, host.nbytes / down


def from_files(pair: Path, device: torch.device, rounds: int, scratch: Path) -> Iterator[str]:
    """Rows of merges from files to a file."""
    inputs = [pair / "safetensors" / side / "model.safetensors" for side in ("base", "finetuned")]
    size = inputs[0].stat().st_size
    up, down = bus(device, rounds)
    yield f"| bus: {up / 1e9:.1f} GB/s up, {down / 1e9:.1f} GB/s down; both inputs up: | {2 * size / up:.2f} | |"
    for where, before in (("page cache", lambda: warm(inputs)), ("disk", lambda: evict(inputs))):
        yield f"| reading both, from {where} | {seconds(lambda: warm(inputs), device, rounds, before):.2f} | |"
        for name in ("cpu", str(device)):
            options = MergeOptions(device=name, fsync=False, overwrite=True)
            peak = 0
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)

            def work(options: MergeOptions = options) -> None:
                merge(*(path.parent for path in inputs), scratch / "out", options=options)

            def again(before: Callable[[], object] = before) -> None:
                shutil.rmtree(scratch / "out", ignore_errors=True)
                os.sync()
                before()

            wall = seconds(work, device, rounds, again)
            if device.type == "cuda":
                peak = torch.cuda.max_memory_allocated(device)
            yield f"| merge on {name}, from {where} | {wall:.2f} | {peak / MB:.0f} |"


def in_memory(pair: Path, device: torch.device, rounds: int) -> Iterator[str]:
    """Rows of merges of loaded models."""
    base, finetuned, live = (
        load_file(pair / "safetensors" / side / "model.safetensors", device=str(device))
        for side in ("base", "finetuned", "base")
    )
    size = sum(tensor.nbytes for tensor in base.values())
    wall = seconds(lambda: merge_state_dicts(base, finetuned), device, rounds)
    yield f"| loaded models, on {device} | {wall:.4f} | |"
    module = Holder(live)
    merged = LiveMerge(module, base, finetuned)
    wall = seconds(lambda: [merged.set(alpha) for alpha in ALPHAS], device, rounds) / len(ALPHAS)
    whole = torch.empty(size, dtype=torch.uint8, device=device)
    copy = seconds(whole.clone, device, rounds)
    moved = 8 if base[next(iter(base))].dtype is torch.float32 else 14
    share = moved * size / wall / (2 * size / copy)
    yield f"| another alpha in a live module, mean of {len(ALPHAS)} | {wall:.5f} | {share:.0%} of a copy's bandwidth |"


class Holder(torch.nn.Module):
    """A module with given weights."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.tensors = tensors

    def state_dict(self, *_: object, **__: object) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return self.tensors


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure merges on a GPU.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--folder", type=Path, help="where pairs are made, and kept (default: for this run)")
    parser.add_argument("--only", choices=["hubert", "xlsr"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA GPU here: nothing was measured (--device cpu tries the script itself)")
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    print(f"{name}, torch {torch.__version__}, {os.cpu_count()} cores\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for pair in [options.only] if options.only else ["hubert", "xlsr"]:
            command = [sys.executable, BENCHMARKS / "pairs.py", folder, "--only", pair, "--kind", "safetensors"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            print(f"| {pair} | wall s | device MB |\n|---|---|---|")
            for row in (
                *from_files(folder / pair, device, options.rounds, Path(temporary)),
                *in_memory(folder / pair, device, options.rounds),
            ):
                print(row, flush=True)
            print()


if __name__ == "__main__":
    main()
