"""Time the merge of one pair of HuBERT Base's size in every container, as whole processes, and print a table.

python containers.py FOLDER [--rounds 5]: the pairs are made there if they are missing (container_pairs.py, 9 GB).
Rounds are interleaved, each begins with another container. Inputs lie in the page cache, nothing is synced. For Linux.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from machine import facts
from runs import Failed, Run, measure, warm
from targets import Check
from tools import ALPHA, HERE

KINDS = {
    "safetensors": "safetensors",
    "zip.pt": "torch zip",
    "legacy.pt": "torch legacy",
    "fairseq.pt": "fairseq, a fine-tune with its optimizer",
    "s3prl.ckpt": "S3PRL, a fine-tune with its optimizer",
    "whisper.pt": "openai-whisper",
    "lightning.ckpt": "Lightning, a fine-tune with its optimizer",
    "training.ckpt": "Lightning, a base with its optimizer, which is copied",
    "tar.nemo": "a tar, as of NeMo",
    "lora": "a LoRA adapter on safetensors",
}
"""Ending of a pair's names -> what it is; the first is what the others are held against."""

REFERENCE = next(iter(KINDS))
COPIED = "training.ckpt"  # three times the output, so no time is held against it
MAX_RATIO = 1.3  # CPU, in that of safetensors
MAX_MB = 60


@dataclass
class Container:
    """A pair, and what its merges took."""

    kind: str
    base: Path
    finetuned: Path
    runs: list[Run] = field(default_factory=list)
    refusal: str = ""  # once refused, it is not run again

    @property
    def files(self) -> list[Path]:
        both = (self.base, self.finetuned)
        return [file for model in both for file in ([*model.iterdir()] if model.is_dir() else [model])]

    def median(self, figure: str) -> float:
        return statistics.median(getattr(run, figure) for run in self.runs)

    @property
    def rss(self) -> float:
        """MB, the highest of all runs."""
        return max(run.rss for run in self.runs) / 1e6

    def run(self, scratch: Path, counted: bool) -> None:
        """Merge the pair into an empty folder."""
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        warm(self.files)
        words = [
            sys.executable,
            "-m",
            "speechft_merge",
            str(self.base),
            str(self.finetuned),
            "-o",
            str(scratch / "merged"),
        ]
        try:
            taken = measure([*words, "--alpha", str(ALPHA), "--no-fsync", "-q"], scratch / "log")
        except Failed as error:
            self.refusal = f"refused, exit {error.exit_status}"
            print(f"{KINDS[self.kind]}: {error}", file=sys.stderr)
            return
        if counted:
            self.runs.append(taken)


def bench(folder: Path, rounds: int) -> list[Container]:
    """Merge every pair once to warm what is imported, then in rounds."""
    found = [Container(kind, folder / f"base-{kind}", folder / f"finetuned-{kind}") for kind in KINDS]
    scratch = folder / "scratch"
    for number in range(rounds + 1):
        print(f"round {number} of {rounds}", file=sys.stderr)
        turn = number % len(found)
        for container in found[turn:] + found[:turn]:
            if not container.refusal:
                container.run(scratch, counted=number > 0)
    shutil.rmtree(scratch)
    return found


def row(container: Container, reference: Container) -> list[str]:
    """The cells of a container."""
    name = KINDS[container.kind]
    if container.refusal:
        return [name, container.refusal, "", "", ""]
    wall, cpu = container.median("wall"), container.median("cpu")
    walls = [run.wall for run in container.runs]
    ratio = cpu / reference.median("cpu")
    return [
        name,
        f"{wall:.2f} ({min(walls):.2f} to {max(walls):.2f})",
        f"{cpu:.2f}",
        f"{ratio:.2f}",
        f"{container.rss:.0f}",
    ]


def checks(found: list[Container]) -> Iterator[Check]:
    """Hold every container that was merged against the targets."""
    reference = found[0].median("cpu")
    for container in (container for container in found if container.runs):
        name = KINDS[container.kind]
        if container.kind != COPIED:
            yield Check(f"CPU, {name}", container.median("cpu") / reference, MAX_RATIO, "times that of safetensors")
        yield Check(f"peak RSS, {name}", container.rss, MAX_MB, "MB")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the merge of one pair in every container.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    subprocess.run([sys.executable, HERE / "container_pairs.py", options.folder], check=True)
    print(", ".join(f"{name} {value}" for name, value in facts().items()), flush=True)
    found = bench(options.folder, options.rounds)
    if not found[0].runs:
        raise SystemExit(f"{KINDS[REFERENCE]}: {found[0].refusal}")
    heads = ["container", "wall s (min to max)", "CPU s", "CPU, of safetensors", "peak RSS MB"]
    for cells in (heads, ["---"] * 5, *(row(container, found[0]) for container in found)):
        print(f"| {' | '.join(cells)} |")
    print("", *checks(found), sep="\n")


if __name__ == "__main__":
    main()
