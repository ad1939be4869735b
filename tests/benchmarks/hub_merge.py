"""Time a merge of two models on a Hub, and count what it fetches: this package's, and download first, merge then.

python pairs.py FOLDER --only hubert, then python hub_merge.py --pairs FOLDER, with the Python that has
speechft-merge and its test extra. The Hub is the tests' own, on loopback; every answer of it waits as long as
one from afar would. Each variant begins with an empty cache. For Linux.

This process imports nothing large: a child's peak memory starts at its parent's.
"""

import argparse
import json
import os
import shutil
import statistics
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from machine import facts
from runs import ENVIRONMENT, Run, measure, together
from targets import Check
from tools import ALPHA

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hub"))
from harness import HubServer, serving  # the folder is not a package

WEIGHTS = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}
DOWNLOAD = """
import json, sys, huggingface_hub
config, file, base, finetuned, alpha = sys.argv[1:]
weights = {base: 1 - float(alpha), finetuned: float(alpha)}
models = [
    {"model": huggingface_hub.hf_hub_download(repo, file), "parameters": {"weight": weight}}
    for repo, weight in weights.items()
]
with open(config, "w") as out:
    json.dump({"merge_method": "linear", "models": models, "dtype": "float32"}, out)
"""
"""Fetches both files, and writes what mergekit-pytorch shall do with them: JSON is YAML."""

MAX_BYTES = 1.01  # of the tensors needed
MAX_REQUESTS = 100
MAX_DOWNLOADS = 1.3  # wall time, in those of hf_hub_download of both files
MAX_MB = 128


@dataclass(frozen=True)
class Fetched(Run):
    """What a variant took, and what the Hub saw of it."""

    requests: int
    received: int  # bytes
    disk: int  # bytes, of cache and output


@dataclass
class Variant:
    name: str
    commands: list[list[str]]
    runs: list[Fetched] = field(default_factory=list)

    @property
    def wall(self) -> float:
        return statistics.median(run.wall for run in self.runs)


def variants(kind: str, output: Path, options: argparse.Namespace) -> Iterator[Variant]:
    """Ours, the mere download, and the download with a merge after it."""
    repos, config = [f"alice/{kind}-{side}" for side in ("base", "finetuned")], str(output / "mergekit.yaml")
    ours = [sys.executable, "-m", "speechft_merge", *repos, "-o", str(output / "merged"), "--alpha", str(ALPHA)]
    download = [sys.executable, "-c", DOWNLOAD, config, WEIGHTS[kind], *repos, str(ALPHA)]
    yield Variant("speechft-merge", [[*ours, "--no-fsync", "-q"]])
    yield Variant("hf_hub_download of both", [download])
    if options.mergekit_python:
        merge = [str(options.mergekit_python.with_name("mergekit-pytorch")), config, str(output / "merged")]
        yield Variant("hf_hub_download, then mergekit-pytorch", [download, merge])


def once(variant: Variant, hub: HubServer, latency: float, scratch: Path) -> Fetched:
    """Run a variant once, from an empty cache."""
    shutil.rmtree(hub.home, ignore_errors=True)
    output = scratch / "output"
    output.mkdir()
    os.sync()
    hub.reset()
    hub.latency(latency)
    runs = [measure(command, scratch / "log", ENVIRONMENT | hub.env()) for command in variant.commands]
    log = hub.log()
    taken = Fetched(
        **asdict(together(runs)),
        requests=len(log),
        received=sum(entry.sent for entry in log),
        disk=size_of(output) + size_of(hub.home),
    )
    shutil.rmtree(output)
    return taken


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def tensor_bytes(path: Path) -> int:
    """Bytes of all tensors of a safetensors file."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int(struct.unpack("<Q", file.read(8))[0])


def checks(ours: Variant, download: Variant, needed: int) -> Iterator[Check]:
    """Hold what was measured against the targets."""
    yield Check("bytes, of those of the tensors", max(run.received for run in ours.runs) / needed, MAX_BYTES, "times")
    yield Check("requests", max(run.requests for run in ours.runs), MAX_REQUESTS, "")
    yield Check("wall, of the download of both files", ours.wall / download.wall, MAX_DOWNLOADS, "times")
    yield Check("peak RSS", max(run.rss for run in ours.runs) / 1e6, MAX_MB, "MB")
    disk = max(run.disk for run in ours.runs) / (needed / 2)
    yield Check("disk, of the tensors of the output", disk, MAX_BYTES, "times")


def table(found: list[Variant]) -> str:
    """The measurements, in Markdown."""
    lines = [
        "| variant | wall s, median (min) | CPU s, median | peak RSS MiB | requests | MB fetched | MB of disk |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant in found:
        runs = variant.runs
        cells = [
            variant.name,
            f"{variant.wall:.2f} ({min(run.wall for run in runs):.2f})",
            f"{statistics.median(run.cpu for run in runs):.2f}",
            f"{max(run.rss for run in runs) / 2**20:.0f}",
            f"{max(run.requests for run in runs)}",
            f"{max(run.received for run in runs) / 1e6:.1f}",
            f"{max(run.disk for run in runs) / 1e6:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def bench(kind: str, hub: HubServer, scratch: Path, options: argparse.Namespace) -> list[Variant]:
    """Run all variants on a pair in interleaved rounds; a first round, not counted, warms imports."""
    found = list(variants(kind, scratch / "output", options))
    for number in range(options.rounds + 1):
        print(f"{kind}: round {number} of {options.rounds}", file=sys.stderr)
        turn = number % len(found)
        for variant in found[turn:] + found[:turn]:
            taken = once(variant, hub, options.latency, scratch)
            if number:
                variant.runs.append(taken)
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time merges of two models on a Hub.")
    parser.add_argument("--pairs", type=Path, required=True, help="the folder given to pairs.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds that every answer waits")
    parser.add_argument("--mergekit-python", type=Path, help="Python that has mergekit (default: not run)")
    parser.add_argument("--json", type=Path, help="also write every run to this file")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return options


def main() -> None:
    options = arguments()
    machine = facts(options.mergekit_python)
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    folder = options.pairs / "hubert"
    needed = sum(tensor_bytes(folder / "safetensors" / side / WEIGHTS["safetensors"]) for side in ("base", "finetuned"))
    record: dict[str, object] = {"machine": machine, "latency": options.latency}
    with tempfile.TemporaryDirectory(dir=options.pairs.resolve(), prefix="bench-") as temporary:
        scratch = Path(temporary)
        with serving(scratch / "hub") as hub:
            for kind in WEIGHTS:
                for side in ("base", "finetuned"):
                    hub.repo(f"alice/{kind}-{side}", folder / kind / side)
                found = bench(kind, hub, scratch, options)
                checked = list(checks(found[0], found[1], needed))
                print(f"\n## {WEIGHTS[kind]}\n\n{table(found)}\n", *checked, sep="\n")
                record[kind] = {
                    "runs": {variant.name: [asdict(run) for run in variant.runs] for variant in found},
                    "checks": [asdict(check) | {"passed": check.passed} for check in checked],
                }
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
