"""What a comparison costs: `compare` on a HuBERT Base pair and 60 s of speech, and its CKA beside others' CKA.

    python pairs.py FOLDER --only hubert
    python similarity.py --pairs FOLDER [--threads 1] [--peer]

Prints seconds of each model's forward passes, of the statistics and their share, and the peak of memory in copies of
one model; then, for one pair of layers of width 768, time, memory and error of three ways to the same number (the peer
is pytorch-cka from PyPI, if it is installed). Medians of several rounds, interleaved. For Linux.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

SECONDS = 60.0
WIDTH = 768
ROUNDS = 3

COMPARE = """
import json, resource, sys, time
from pathlib import Path
import torch
import transformers
from speechft_merge import ProbeRequest, compare

torch.set_num_threads(int(sys.argv[3]))
if sys.argv[3] == "1":
    time.perf_counter = time.process_time  # which other load on the machine disturbs less
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
paths = None if sys.argv[4] == "-" else (Path(sys.argv[4]),)
report = compare(sys.argv[1], sys.argv[2], request=ProbeRequest(paths=paths, seconds=60))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
told = {"frames": report.frames, "utterances": report.utterances, "audio": report.probe.seconds}
print(json.dumps(told | {"seconds": report.seconds, "peak": peak, "libraries": before}))
"""


def compare_once(pair: Path, threads: int, probe: str) -> dict[str, Any]:
    command = [sys.executable, "-c", COMPARE, str(pair / "base"), str(pair / "finetuned"), str(threads), probe]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def show_comparison(pair: Path, threads: int, probe: str) -> None:
    model = sum(path.stat().st_size for path in (pair / "base").glob("*.safetensors"))
    runs = [compare_once(pair, threads, probe) for _ in range(ROUNDS)]
    first = runs[0]
    medians = {key: statistics.median(run["seconds"][key] for run in runs) for key in first["seconds"]}
    forward = sum(value for key, value in medians.items() if key != "statistics")
    print(
        f"{first['audio']} s of audio, {first['utterances']} utterances, {first['frames']} frames, {threads} thread(s)"
    )
    for key, value in medians.items():
        print(f"  {key:<12}{value:8.2f} s")
    print(f"  statistics / forward passes: {medians['statistics'] / forward:.0%}")
    peak, libraries = (max(run[key] for run in runs) for key in ("peak", "libraries"))
    print(f"  peak RSS: {peak / 1e6:.0f} MB, {libraries / 1e6:.0f} MB of it torch and transformers by themselves;")
    print(f"  the rest is {(peak - libraries) / model:.2f} copies of one model ({model / 1e6:.0f} MB)")


def features(frames: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 features as encoders have them: correlated dimensions, two of them with a large mean."""
    random = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, WIDTH + 1).float().rsqrt()
    x = torch.randn(frames, WIDTH, generator=random) * spectrum
    y = x + 0.5 * torch.randn(frames, WIDTH, generator=random) * spectrum
    offset = torch.zeros(WIDTH)
    offset[:2] = 10
    return x + offset, y + offset


def ours(x: torch.Tensor, y: torch.Tensor) -> float:
    from speechft_merge.similarity.cka import Cross, Representation, cka

    left, right = Representation(), Representation()
    cross, own, other = Cross(left, right), Cross(left, left), Cross(right, right)
    for a, b in zip(x.split(250), y.split(250), strict=True):
        p, q = left.add(a), right.add(b)
        cross.add(p, q)
        own.add(p, p)
        other.add(q, q)
    return cka(cross, own, other, "frame")


def gram(x: torch.Tensor, y: torch.Tensor) -> float:
    """The definition of Song et al. 2012 in float64."""
    n = len(x)
    grams = []
    for one in (x.double().numpy(), y.double().numpy()):
        centred = one - one.mean(0)
        whole = centred @ centred.T
        np.fill_diagonal(whole, 0)
        grams.append(whole)

    def hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
        inner = np.vdot(k, l) + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ l.sum(0))
        return float(inner) / (n * (n - 3))

    k, l = grams  # noqa: E741
    return hsic(k, l) / (hsic(k, k) * hsic(l, l)) ** 0.5


def peer(x: torch.Tensor, y: torch.Tensor) -> float:
    from cka import cka_from_features

    return float(cka_from_features(x, y))


WAYS = {"this package": ours, "Gram matrices, float64": gram, "pytorch-cka": peer}


def run_way(name: str, frames: int) -> None:
    """In a process of its own: prints seconds, memory beyond the features, and the value."""
    x, y = features(frames)
    WAYS[name](x[:500], y[:500])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    value = WAYS[name](x, y)
    taken = time.process_time() - began
    print(json.dumps([taken, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, value]))


def show_ways(with_peer: bool) -> None:
    names = [name for name in WAYS if with_peer or name != "pytorch-cka"]
    for frames in (4_000, 10_000):
        found: dict[str, list[list[float]]] = {name: [] for name in names}
        for _ in range(ROUNDS):
            for name in names:
                command = [sys.executable, __file__, "--way", name, "--frames", str(frames)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
        truth = found["Gram matrices, float64"][0][2]
        print(f"{frames} frames of width {WIDTH}, frame estimator, CPU seconds")
        for name, runs in found.items():
            seconds, memory = (statistics.median(run[i] for run in runs) for i in (0, 1))
            print(f"  {name:<24}{seconds:8.2f} s {memory:8.0f} MiB   error {abs(runs[0][2] - truth):.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--probe", default="-", help="a folder of speech; default: the built-in probe")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--way")
    parser.add_argument("--frames", type=int)
    given = parser.parse_args()
    if given.way:
        torch.set_num_threads(1)
        run_way(given.way, given.frames)
        return
    if given.pairs:
        show_comparison(given.pairs / "hubert" / "safetensors", given.threads, given.probe)
    show_ways(given.peer)


if __name__ == "__main__":
    main()
